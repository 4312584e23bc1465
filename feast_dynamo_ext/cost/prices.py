"""What AWS charges for getting rows into DynamoDB, in US dollars, without tax and discounts.

Figures of one region, to compare by; other regions cost more.
"""

from __future__ import annotations

from dataclasses import dataclass

REGION = "us-east-1"
BYTES_PER_WRITE_UNIT = 1_024
GB = 1_024**3


@dataclass(frozen=True)
class Price:
    """What so much of something costs.

    Attributes:
        dollars: for `per` of it.
        per: how much of it that buys.
        as_of: when it was read.
        source: where.
    """

    dollars: float
    per: int
    as_of: str
    source: str

    def cost(self, quantity: float) -> float:
        """Dollars of a quantity."""
        return quantity * self.dollars / self.per


DYNAMODB = "https://aws.amazon.com/dynamodb/pricing/on-demand/"
S3 = "https://aws.amazon.com/s3/pricing/"

WRITE_UNITS = Price(0.625, 1_000_000, "November 2024", DYNAMODB)
"""On demand, standard table class; a unit writes 1 KB of one item."""

IMPORT_BYTES = Price(0.15, GB, "November 2024", DYNAMODB)
"""Bytes that ImportTable reads, before compression."""

READ_UNITS = Price(0.125, 1_000_000, "November 2024", DYNAMODB)
"""On demand, standard table class; a unit reads 4 KB of one item, or 8 KB that may be stale."""

EXPORT_BYTES = Price(0.10, GB, "November 2024", DYNAMODB)
"""Bytes of an export to S3, full or incremental."""

S3_PUTS = Price(0.005, 1_000, "November 2024", S3)
"""PUT requests to S3 Standard; each part of an upload is one."""

S3_MONTH_BYTES = Price(0.023, GB, "November 2024", S3)
"""Bytes in S3 Standard for a month."""


def as_of(*prices: Price) -> str:
    """When prices were read."""
    return ", ".join(dict.fromkeys(price.as_of for price in prices))
