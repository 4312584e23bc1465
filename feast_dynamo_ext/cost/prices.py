"""What AWS charges for getting rows into DynamoDB, in US dollars, without tax and discounts.

Figures of one region and date, to compare ways by; other regions cost more:

https://aws.amazon.com/dynamodb/pricing/on-demand/ and https://aws.amazon.com/s3/pricing/
"""

from __future__ import annotations

REGION = "us-east-1"
AS_OF = "November 2024"

WRITE_UNITS_PER_MILLION_USD = 0.625
"""A million write units on demand, standard table class; a unit writes 1 KB of one item."""

IMPORT_PER_GB_USD = 0.15
"""A GB that ImportTable reads, by its size before compression."""

S3_PUT_PER_THOUSAND_USD = 0.005
"""A thousand PUT requests to S3 Standard; each part of an upload is one."""

S3_GB_MONTH_USD = 0.023
"""A GB in S3 Standard for a month."""

BYTES_PER_WRITE_UNIT = 1_024
GB = 1_024**3


def write_dollars(units: float) -> float:
    """What write units cost on demand."""
    return units * WRITE_UNITS_PER_MILLION_USD / 1_000_000


def import_dollars(raw_bytes: float) -> float:
    """What ImportTable costs for files of this size before compression."""
    return raw_bytes / GB * IMPORT_PER_GB_USD


def s3_dollars(gzip_bytes: float, puts: int) -> float:
    """What files cost that are on S3 for a month at most."""
    return gzip_bytes / GB * S3_GB_MONTH_USD + puts * S3_PUT_PER_THOUSAND_USD / 1_000
