"""What a run or a bulk load would write and cost: counted from the rows, nothing is guessed."""

from __future__ import annotations

import heapq
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from feast_dynamo_ext.cost.prices import (
    BYTES_PER_WRITE_UNIT,
    IMPORT_BYTES,
    REGION,
    S3_MONTH_BYTES,
    S3_PUTS,
    WRITE_UNITS,
    as_of,
)
from feast_dynamo_ext.dynamo.layouts.packed import MAX_ITEM_BYTES
from feast_dynamo_ext.figures import count, dollars, duration
from feast_dynamo_ext.figures import table as text_table
from feast_dynamo_ext.storage import UPLOAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    Counts = np.ndarray[Any, np.dtype[np.int64]]


Method = Literal["materialize", "import"]

LINE_OVERHEAD_BYTES = 97
"""What a line of a row has besides its item's bytes in base64; 16 less without created time."""

SMALL_USD = 1.0
"""Below this the minutes that an import takes to start are worth more than the money."""


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
    def from_batches(cls, batches: Iterable[Counts]) -> Sizes:
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
    """What one method of loading costs.

    Attributes:
        method: which.
        dollars: in all.
        basis: what is charged, for people.
    """

    method: Method
    dollars: float
    basis: str


LOAD_PRICES_AS_OF = as_of(WRITE_UNITS, IMPORT_BYTES, S3_PUTS, S3_MONTH_BYTES)


def load_costs(sizes: Sizes, *, newest_wins: bool) -> tuple[Cost, Cost]:
    """What the methods cost for rows that the table does not hold yet.

    Args:
        sizes: what is to be loaded.
        newest_wins: whether a row may replace only older rows.
    """
    units, raw_bytes = sizes.write_units, sizes.raw_bytes
    # A row whose first statement fails takes a second one, see `TRIES_A_ROW`.
    twice = ", twice that at most" if newest_wins else ""
    # Each part of an upload is a PUT request.
    s3 = S3_MONTH_BYTES.cost(raw_bytes) + S3_PUTS.cost(-(-raw_bytes // UPLOAD_BYTES))
    return (
        Cost("materialize", WRITE_UNITS.cost(units), f"{units:,} write units{twice}"),
        Cost(
            "import", IMPORT_BYTES.cost(raw_bytes) + s3, f"{raw_bytes / 1e9:,.2f} GB read, and S3"
        ),
    )


@dataclass(frozen=True)
class Recommendation:
    """Which method to take.

    Attributes:
        method: which.
        why: one sentence.
    """

    method: Method
    why: str


def recommend(costs: Iterable[Cost], *, table_exists: bool) -> Recommendation:
    """Pick a method.

    Args:
        costs: what `load_costs` gave.
        table_exists: whether the table is there, and so cannot be imported.
    """
    by_method = {cost.method: cost.dollars for cost in costs}
    written, imported = dollars(by_method["materialize"]), dollars(by_method["import"])
    if by_method["materialize"] < SMALL_USD:
        return Recommendation(
            "materialize", f"It is small: writing the rows costs {written} and needs no files."
        )
    if table_exists:
        return Recommendation(
            "materialize",
            "The table exists, and an import makes a new one. If it holds no rows, "
            f"--replace-empty imports it for {imported}.",
        )
    return Recommendation(
        "import", f"The table is new: an import costs {imported}, writing the rows {written}."
    )


NEW_TABLE_UNITS_PER_S = 4_000
"""Write units a second that a new on-demand table takes; it doubles from its peak. Source:
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/on-demand-capacity-mode.html"""

TRIES_A_ROW = {"overwrite": 1, "newest_wins": 2}
"""Statements that a row may take: with `newest_wins` an UPDATE whose condition fails, which is
billed as a write, and an INSERT. Which of the two goes first follows from the rows before."""

SUMMED = ("read", "expired", "resumed", "rows", "too_large", "units", "max_units")

WriteMode = Literal["newest_wins", "overwrite"]


@dataclass(frozen=True)
class ViewEstimate:
    """What one view would write.

    Attributes:
        view: name of the feature view.
        table: its DynamoDB table.
        write_mode: how its rows would be written.
        read: rows of history in the window.
        expired: newest rows of their keys that are past their ttl, and so not written.
        resumed: rows that an earlier, killed run has written.
        rows: rows that would be written.
        too_large: rows over DynamoDB's 400 KB an item, which would fail.
        mean_bytes: size of an item, by DynamoDB's rule; 0 without rows, as those below.
        p50_bytes: half of the items are not larger.
        p99_bytes: 99 in 100 are not larger.
        max_bytes: the largest.
        units: write units if each row is written by its first statement.
    """

    view: str
    table: str
    write_mode: WriteMode
    read: int
    expired: int
    resumed: int
    rows: int
    too_large: int
    mean_bytes: float
    p50_bytes: int
    p99_bytes: int
    max_bytes: int
    units: int

    @property
    def max_units(self) -> int:
        """Write units if each row takes as many statements as it can."""
        return self.units * TRIES_A_ROW[self.write_mode]

    @property
    def units_per_item(self) -> float:
        """Write units of one item, on average."""
        return self.units / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class Rate:
    """How fast units are written.

    Attributes:
        ceiling: units a second of all views together; None where the tables decide.
        views_at_once: views that are written at once.
    """

    ceiling: int | None = None
    views_at_once: int = 4

    @property
    def units_per_s(self) -> int:
        """Units a second of one view alone."""
        return self.ceiling or NEW_TABLE_UNITS_PER_S

    @property
    def text(self) -> str:
        """The rate in words, and where it comes from."""
        if self.ceiling:
            return f"{count(self.ceiling)} write units a second, all views together"
        return (
            f"{count(NEW_TABLE_UNITS_PER_S)} write units a second and table, "
            "with which a new on-demand table starts"
        )

    def seconds(self, units: Sequence[int]) -> float:
        """How long views of these units take, begun in this order."""
        if self.ceiling:
            return sum(units) / self.ceiling
        lanes = [0.0] * self.views_at_once
        for of_view in units:
            heapq.heapreplace(lanes, lanes[0] + of_view / NEW_TABLE_UNITS_PER_S)
        return max(lanes)


def estimate_view(
    view: str,
    table: str,
    sizes: Iterable[NDArray[np.integer[Any]]],
    write_mode: WriteMode,
    *,
    read: int,
    expired: int = 0,
    resumed: int = 0,
) -> ViewEstimate:
    """Count what a view would write.

    Args:
        view: name of the feature view.
        table: its DynamoDB table.
        sizes: bytes of each item that would be written, in batches; by DynamoDB's rule.
        write_mode: how the rows would be written.
        read: rows of history in the window.
        expired: newest rows that are past their ttl; not in `sizes`.
        resumed: rows that an earlier, killed run has written; not in `sizes`.
    """
    by_size = _by_size(sizes)
    fitting = by_size[: MAX_ITEM_BYTES + 1]
    bytes_each = np.arange(len(fitting))
    rows = int(fitting.sum())
    return ViewEstimate(
        view=view,
        table=table,
        write_mode=write_mode,
        read=read,
        expired=expired,
        resumed=resumed,
        rows=rows,
        too_large=int(by_size[MAX_ITEM_BYTES + 1 :].sum()),
        mean_bytes=float(fitting @ bytes_each) / rows if rows else 0.0,
        p50_bytes=_quantile(fitting, rows, 0.5),
        p99_bytes=_quantile(fitting, rows, 0.99),
        max_bytes=_quantile(fitting, rows, 1.0),
        units=int(fitting @ -(-bytes_each // BYTES_PER_WRITE_UNIT)),
    )


def _by_size(sizes: Iterable[NDArray[np.integer[Any]]]) -> NDArray[np.int64]:
    """How many items there are of each size; those that are too large count as one byte over.

    Exact, and a few megabytes however many rows there are.
    """
    counts = np.zeros(MAX_ITEM_BYTES + 2, dtype=np.int64)
    for batch in sizes:
        found = np.bincount(np.minimum(batch, MAX_ITEM_BYTES + 1))
        counts[: len(found)] += found
    return counts


def _quantile(by_size: NDArray[np.int64], rows: int, share: float) -> int:
    """The least size such that this share of the items is not larger."""
    return int(np.searchsorted(by_size.cumsum(), np.ceil(rows * share))) if rows else 0


def as_text(estimates: Sequence[ViewEstimate], rate: Rate) -> str:
    """The estimates as a table, and below it what they rest on."""
    if not estimates:
        return "There is no feature view to estimate."
    headers = [
        *("feature view", "read", "expired", "to write", "bytes/item", "p99", "max"),
        *("units/item", "units", "dollars", "time"),
    ]
    total = _total_row(estimates, rate) if len(estimates) > 1 else None
    rows = [_row(estimate, rate) for estimate in estimates]
    text = text_table(headers, rows, total, words=("feature view",))
    return "\n".join([text, "", *_notes(estimates, rate)])


def as_json(estimates: Sequence[ViewEstimate], rate: Rate) -> dict[str, Any]:
    """The same of JSON's own types.

    Returns:
        ``{"views": [...], "total": {...}, "rate": {...}}``. A view has the attributes of a
        ViewEstimate, and as the total has: ``read``, ``expired``, ``resumed``, ``rows``,
        ``too_large``, ``units``, ``max_units``, ``dollars``, ``max_dollars``, ``seconds``,
        ``max_seconds``. ``rate`` has ``units_per_s`` and ``per``: what that is the rate of,
        ``"run"`` where it was given and ``"table"`` where it is an assumption.
    """
    return {
        "views": [{**asdict(view), **_figures([view], rate)} for view in estimates],
        "total": _figures(estimates, rate),
        "rate": {"units_per_s": rate.units_per_s, "per": "run" if rate.ceiling else "table"},
    }


def _figures(estimates: Sequence[ViewEstimate], rate: Rate) -> dict[str, Any]:
    counts = {name: sum(getattr(view, name) for view in estimates) for name in SUMMED}
    return {
        **counts,
        "dollars": round(WRITE_UNITS.cost(counts["units"]), 9),
        "max_dollars": round(WRITE_UNITS.cost(counts["max_units"]), 9),
        "seconds": round(rate.seconds([view.units for view in estimates]), 3),
        "max_seconds": round(rate.seconds([view.max_units for view in estimates]), 3),
    }


def _row(estimate: ViewEstimate, rate: Rate) -> list[str]:
    return [
        estimate.view,
        *map(count, (estimate.read, estimate.expired, estimate.rows)),
        *map(count, (estimate.mean_bytes, estimate.p99_bytes, estimate.max_bytes)),
        f"{estimate.units_per_item:.2f}",
        *_price(_figures([estimate], rate)),
    ]


def _total_row(estimates: Sequence[ViewEstimate], rate: Rate) -> list[str]:
    found = _figures(estimates, rate)
    counts = [count(found[name]) for name in ("read", "expired", "rows")]
    return ["total", *counts, "", "", "", "", *_price(found)]


def _price(found: dict[str, Any]) -> list[str]:
    return [count(found["units"]), dollars(found["dollars"]), duration(found["seconds"])]


def _notes(estimates: Sequence[ViewEstimate], rate: Rate) -> Iterator[str]:
    found = _figures(estimates, rate)
    yield f"Time: writing alone, at {rate.text}."
    yield f"Dollars: on demand, {REGION}, prices of {as_of(WRITE_UNITS)}."
    if found["max_units"] > found["units"]:
        yield (
            "newest_wins: a row whose first statement fails takes a second one, which is billed "
            f"too. At most {count(found['max_units'])} units, {dollars(found['max_dollars'])}, "
            f"{duration(found['max_seconds'])}."
        )
    if found["resumed"]:
        yield (
            f"{count(found['resumed'])} rows more are there already, from a run that was killed; "
            "--restart writes them again."
        )
    if found["too_large"]:
        yield (
            f"{count(found['too_large'])} rows more are over DynamoDB's 400 KB an item, and would "
            "fail. Split the view, or shorten its largest feature."
        )
