"""The Parquet files of a source: which there are, what they hold, how they are read."""
