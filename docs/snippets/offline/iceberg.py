"""A table of a lake, found through AWS Glue."""

from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource

orders = IcebergSource(
    name="orders",
    catalog_type="glue",  # or rest, sql, hive, dynamodb
    warehouse="s3://my-lake/warehouse",
    namespace="shop",
    table="orders",
    timestamp_field="event_timestamp",
)
