"""Bulk load: the newest rows as files on S3, which DynamoDB imports by itself."""
