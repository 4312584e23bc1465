"""What `make bench` measures: the parts, their tables and cases."""

from __future__ import annotations

from dataclasses import dataclass

from bars import BASE, FLOOR, OURS
from harness import Case
from workload import Workload

FIVE = Workload("five")
TWENTY_FIVE = Workload("twenty_five", views=25, entities=200)
SERVICE = Workload("service")

BOTH, ALL = (BASE, OURS), (BASE, OURS, FLOOR)


@dataclass(frozen=True)
class Part:
    """Cases whose clients take turns.

    Attributes:
        title: what is measured.
        workloads: their tables.
        cases: the cases; none where items are sized.
        rounds: turns of each client in each case.
    """

    title: str
    workloads: tuple[Workload, ...]
    cases: tuple[Case, ...] = ()
    rounds: int = 0

    @property
    def sizes(self) -> dict[str, int]:
        """Entities or rows a call, by name of the case."""
        return {case.name: case.size for case in self.cases}


def _sized(features: int, kind: str) -> Workload:
    return Workload(
        f"{features} {kind}".replace(" ", "_"),
        views=1,
        features=features,
        entities=20,
        kind=kind,
        least_letters=20,
        most_letters=20,
    )


# A write's workload is named for its mode (see `projects.py`).
_WRITES = {
    "overwrite": ("overwrite", BOTH),
    "newest wins": ("newest_wins", (OURS,)),
    "newest wins, new keys": ("newest_wins_new", (OURS,)),
}

PARTS = {
    "reads": Part(
        "get_online_features, entities x views of 10 float64 features",
        (FIVE, TWENTY_FIVE),
        (
            Case("1 x 5", "read", "five", 1, 16, ALL),
            Case("10 x 5", "read", "five", 10, 10, ALL),
            Case("100 x 5", "read", "five", 100, 6, ALL),
            Case("1 x 25", "read", "twenty_five", 1, 8, ALL),
        ),
        rounds=16,
    ),
    "async": Part(
        "get_online_features_async, the same, one call at a time",
        (FIVE,),
        (
            Case("async 1 x 5", "read async", "five", 1, 16, BOTH),
            Case("async 100 x 5", "read async", "five", 100, 6, BOTH),
        ),
        rounds=10,
    ),
    "precompute": Part(
        "get_online_features of a precompute_online service; of Feast's store, its plain read",
        (SERVICE,),
        (Case("precomputed, 100 x 5", "service", "service", 100, 6, BOTH),),
        rounds=16,
    ),
    "bytes": Part(
        "stored bytes an item, names of 20 letters",
        tuple(
            _sized(features, kind) for kind in ("float64", "float32") for features in (10, 50, 200)
        ),
    ),
    "writes": Part(
        "online_write_batch of 3,000 rows of 10 float64 features; rows made beforehand",
        tuple(Workload(name, views=1, entities=100) for name, _ in _WRITES.values()),
        tuple(
            Case(case, "write", name, 3_000, 1, clients)
            for case, (name, clients) in _WRITES.items()
        ),
        rounds=7,
    ),
    # Its cases are processes that end, not clients that take turns: see `materialize.py`.
    "materialize": Part(
        "FeatureStore.materialize of 10 float64 features, with event and created time",
        (),
        rounds=1,
    ),
    # As above: see `offline.py`.
    "offline": Part(
        "FeatureStore.get_historical_features, from Parquet files to an Arrow table",
        (),
        rounds=3,
    ),
    # As above: see `endpoints.py`; it makes its own tables.
    "serving": Part("a served model, 2 views, 1 entity a request", (), rounds=5),
    # As above: see `tables.py`.
    # See `training_sets.py`.
    "sets": Part("training sets, on local files", (), rounds=3),
    # See `capture_files.py`.
    "capture": Part("exports of DynamoDB tables, on local files", (), rounds=3),
    # See `series_reads.py` and `series_windows.py`; they make their own tables and files.
    "series": Part("every event: lists and windows at the request, and in training", (), rounds=5),
    # See `stream_changes.py`; it makes its own tables.
    "stream": Part("the stream of a table, 200 changes a second", (), rounds=3),
    # See `spark_joins.py`.
    "spark": Part("3 views of 10 M rows on Spark, 1 M entity rows, on local files", (), rounds=1),
    "tables": Part("history tables of an SQL catalog, on local files", (), rounds=3),
}
