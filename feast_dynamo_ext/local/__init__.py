"""The embedded AWS for a laptop: start, stop, status."""
