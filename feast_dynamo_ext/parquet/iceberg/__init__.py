"""Iceberg tables through `pyiceberg`: their catalogs, reading, commits and upkeep."""
