"""Two repos with the same definitions and history: one on our parts, one on Feast's own.

Feast's local engine with its sqlite and file stores is the independent oracle of what a kind of
view does. Each repo has files of its own, since writing to offline changes them: ours a folder a
source, as it appends files; Feast's a single file, as it rewrites one.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureStore, FileSource

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

START = dt.datetime(2025, 1, 1, tzinfo=dt.timezone.utc)
END = START + dt.timedelta(hours=10)

# customer 1 has an older row, and customer 2 one that was corrected; 4 is after the end
ORDERS = {
    "cid": pa.array([1, 1, 2, 2, 3, 4], pa.int64()),
    "hour": [0, 1, 0, 0, 5, 11],
    "made": [0, 1, 0, 2, 5, 11],
    "total": [1.0, 2.0, 3.0, 3.5, 4.0, 5.0],
    "items": pa.array([1, 2**53 + 1, 3, 3, None, 5], pa.int64()),
}
CUSTOMERS = [{"cid": cid} for cid in (1, 2, 3, 4)]


def at(hours: float) -> int:
    """Seconds since 1970 of an hour after START, as responses have event times."""
    return int((START + dt.timedelta(hours=hours)).timestamp())


def history(columns: dict[str, Any]) -> pa.Table:
    """Columns as a table; `hour` (and `made`), hours after START, become times."""
    times = {name: _times(columns[name]) for name in ("hour", "made") if name in columns}
    return pa.table({**columns, **times})


def _times(hours: list[float]) -> pa.Array:
    moments = [START + dt.timedelta(hours=hour) for hour in hours]
    return pa.array(moments, pa.timestamp("us", tz="UTC"))


@dataclass(frozen=True)
class Repo:
    """A store and its files.

    Attributes:
        store: the feature store.
        folder: where its history is.
        in_folders: whether a source is a folder of files, or one file.
    """

    store: FeatureStore
    folder: Path
    in_folders: bool

    def source(self, name: str = "orders", **options: Any) -> FileSource:
        """The source of that name."""
        path = self.folder / (name if self.in_folders else f"{name}.parquet")
        made = None if options.pop("without_made", False) else "made"
        given = {"timestamp_field": "hour", "created_timestamp_column": made, **options}
        return FileSource(name=name, path=str(path), **given)

    def keep(self, name: str, table: pa.Table) -> None:
        """Write a source's history."""
        path = self.folder / (f"{name}/part-0.parquet" if self.in_folders else f"{name}.parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)

    def rows(self, name: str = "orders") -> list[dict[str, Any]]:
        """The rows of a source's history, in no order."""
        return pq.read_table(self.source(name).path).to_pylist()

    def answer(
        self, features: list[str], rows: list[dict[str, Any]] | None = None, **options: Any
    ) -> dict[str, list[Any]]:
        """Online features and their event times, for CUSTOMERS unless told."""
        response = self.store.get_online_features(
            features=features, entity_rows=rows or CUSTOMERS, **options
        )
        found = response.to_dict(include_event_timestamps=True)
        keys = (rows or CUSTOMERS)[0]
        return {
            name: cells for name, cells in found.items() if name.removesuffix("__ts") not in keys
        }


@dataclass(frozen=True)
class TwoRepos:
    """Ours and Feast's."""

    ours: Repo
    feasts: Repo

    @property
    def both(self) -> tuple[Repo, Repo]:
        """To do the same with each."""
        return self.ours, self.feasts

    def keep(self, name: str, columns: dict[str, Any]) -> None:
        """Write a source's history in both."""
        for repo in self.both:
            repo.keep(name, history(columns))

    def apply(self, define: Callable[[Repo], list[Any]]) -> None:
        """Apply definitions to both, made for each: Feast changes the objects it is given."""
        for repo in self.both:
            repo.store.apply(define(repo))

    def materialize(self, *views: str) -> None:
        """Materialize from START to END in both."""
        for repo in self.both:
            repo.store.materialize(START, END, feature_views=list(views) or None)

    def assert_answer(
        self, expected: dict[str, list[Any]], rows: list[dict[str, Any]] | None = None
    ) -> None:
        """Both answer so to references `view:feature`, which are the keys of `expected`.

        Each is a list of (value, event time in hours after START), or None where none is found.
        """
        for repo in self.both:
            found = repo.answer(list(expected), rows, full_feature_names=True)
            for reference, cells in expected.items():
                name = reference.replace(":", "__")
                values = [None if cell is None else cell[0] for cell in cells]
                times = [0 if cell is None else at(cell[1]) for cell in cells]
                assert (repo.folder.name, found[name]) == (repo.folder.name, values)
                assert (repo.folder.name, found[f"{name}__ts"]) == (repo.folder.name, times)
