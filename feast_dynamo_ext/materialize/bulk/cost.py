"""What the three ways into a table cost, and which to take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from feast_dynamo_ext.materialize.bulk.upload import PART_BYTES
from feast_dynamo_ext.materialize.figures import dollars
from feast_dynamo_ext.materialize.prices import (
    BYTES_PER_WRITE_UNIT,
    import_dollars,
    s3_dollars,
    write_dollars,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

    Counts = np.ndarray[Any, np.dtype[np.int64]]

Way = Literal["materialize", "import", "bulk-put"]

LINE_OVERHEAD_BYTES = 97
"""What a line of a row has besides its item's bytes in base64; 16 less without created time."""

SMALL_USD = 1.0
"""Below this the minutes that DynamoDB's own ways take to start are worth more than the money."""


@dataclass(frozen=True)
class Sizes:
    """What is to be loaded.

    Attributes:
        items: how many.
        item_bytes: their bytes as DynamoDB counts them.
        write_units: 1 KB each, every item rounded up.
    """

    items: int = 0
    item_bytes: int = 0
    write_units: int = 0

    @classmethod
    def of(cls, batches: Iterable[Counts]) -> Sizes:
        """Add up the sizes of items, bytes each as DynamoDB counts them, batch by batch."""
        total = cls()
        for sizes in batches:
            units = -(-sizes // BYTES_PER_WRITE_UNIT)
            total = cls(
                total.items + len(sizes),
                total.item_bytes + int(sizes.sum()),
                total.write_units + int(units.sum()),
            )
        return total

    @property
    def raw_bytes(self) -> int:
        """About the bytes of the files before compression: base64 is a third more."""
        return self.item_bytes * 4 // 3 + self.items * LINE_OVERHEAD_BYTES


@dataclass(frozen=True)
class Cost:
    """What one way costs.

    Attributes:
        way: which.
        dollars: in all.
        how: what is charged, for people.
    """

    way: Way
    dollars: float
    how: str


def costs(sizes: Sizes, *, newest_wins: bool) -> tuple[Cost, Cost, Cost]:
    """What the ways cost for rows that the table does not hold yet.

    Args:
        sizes: what is to be loaded.
        newest_wins: whether a row may replace only older ones.
    """
    units = sizes.write_units
    # A row whose first statement fails takes a second one: see `estimate.TRIES_A_ROW`.
    twice = ", twice that at most" if newest_wins else ""
    s3 = s3_dollars(sizes.raw_bytes, -(-sizes.raw_bytes // PART_BYTES))
    return (
        Cost("materialize", write_dollars(units), f"{units:,} write units{twice}"),
        Cost(
            "import",
            import_dollars(sizes.raw_bytes) + s3,
            f"{sizes.raw_bytes / 1e9:,.2f} GB read, and S3",
        ),
        Cost(
            "bulk-put",
            write_dollars(units) + s3,
            f"{units:,} write units (AWS bills bytes put: see its price list), and S3",
        ),
    )


@dataclass(frozen=True)
class Recommendation:
    """Which way to take.

    Attributes:
        way: which.
        why: one sentence.
    """

    way: Way
    why: str


def recommend(
    found: Iterable[Cost], *, table_exists: bool, bulk_put_supported: bool
) -> Recommendation:
    """Pick a way.

    Args:
        found: what `costs` gave.
        table_exists: whether the table is there, and so cannot be imported.
        bulk_put_supported: whether the installed botocore knows bulk puts.
    """
    by_way = {cost.way: cost.dollars for cost in found}
    written = by_way["materialize"]
    if written < SMALL_USD:
        return Recommendation(
            "materialize",
            f"It is small: writing the rows costs {dollars(written)} and needs no files.",
        )
    if not table_exists:
        return Recommendation(
            "import",
            f"The table is new: an import costs {dollars(by_way['import'])}, writing the rows "
            f"{dollars(written)}.",
        )
    if not bulk_put_supported:
        return Recommendation(
            "materialize",
            "The table exists, and the installed botocore knows no bulk puts (1.44.5 does).",
        )
    return Recommendation(
        "bulk-put",
        "The table exists: DynamoDB paces the writes itself, and no machine of yours is busy "
        "with them.",
    )
