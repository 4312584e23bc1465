"""Training over events: aggregates over windows and lists, as of each entity row."""
