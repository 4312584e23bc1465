"""The offline side: history in Parquet, joined point in time."""
