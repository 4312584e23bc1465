"""History as Parquet: which files a source has, what they hold, how they are read and written."""
