"""Makes one training set, in a process of its own: our offline store, one of Feast's, or DuckDB.

Runs in either environment, as `client.py` does, so it imports nothing of feast_dynamo_ext.
`offline_client.py SETTINGS` does the same with a few rows first, so that what is loaded at first
use is there, then the measured one, compares rows of it with those found the plainest way, and
prints the figures as JSON.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline_data import ENTITIES, EXPECTED, LABEL, Dataset
from usage import peak_mb, used_cpu_s

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    Run = Callable[[], pa.Table | None]
    """Gives an Arrow table, or writes Parquet files and gives None."""


REGION = "us-east-1"


@dataclass(frozen=True)
class Task:
    """What is joined.

    Attributes:
        dataset: what is in the folder.
        folder: of the files.
        views: how many of the dataset's views are joined.
        history: the same on S3, `bucket/prefix`; None where it is read from the disk.
        endpoint: S3's URL.
        tables: folder of the views as history tables; None where they are plain files.
        out: folder for Parquet files, or None for an Arrow table.
        scratch: folder for what else a contender writes; empty.
    """

    dataset: Dataset
    folder: Path
    views: int
    out: Path | None
    scratch: Path
    history: str | None = None
    endpoint: str | None = None
    tables: Path | None = None

    @property
    def entities(self) -> Path:
        return self.folder / ENTITIES

    @property
    def joined(self) -> list[str]:
        return self.dataset.view_names()[: self.views]

    def files_of(self, view: str, pattern: str = "") -> str:
        """A view's folder, or the files in it that a pattern means."""
        root = str(self.folder) if self.history is None else f"s3://{self.history}"
        return f"{root}/{view}{pattern}"

    @property
    def references(self) -> list[str]:
        return [
            f"{view}:{name}" for view in self.joined for name in self.dataset.features_of(view)
        ]

    @property
    def compared(self) -> list[str]:
        """Columns of the training set by which answers are compared, the label first."""
        return [LABEL, *(reference.partition(":")[2] for reference in self.references)]


def main() -> None:
    settings = json.loads(sys.argv[1])
    # Whatever spills does it where it is watched and removed.
    tempfile.tempdir = settings["scratch"]
    if settings["endpoint"]:
        use_test_credentials()
    prepare = load(settings["contender"])
    given = task(settings, "measured")
    with quiet():
        prepare(task(settings, "warm"))()
        run = prepare(given)
    measured, table = measure(run)
    answer = check(table, given) if settings["is_join"] else ""
    digest = digest_of(table, given.compared) if settings["is_digested"] else ""
    print(json.dumps({**measured, "answer": answer, "digest": digest}))


def load(contender: str) -> Callable[[Task], Run]:
    """What prepares a task, declares views for example, and gives what is to be measured.

    Imports what the contender needs and nothing else: its memory is measured.
    """
    kind, _, name = contender.partition(" ")
    if kind == "store":
        import offline_stores

        return functools.partial(offline_stores.retrieval, name)
    import offline_plain

    return functools.partial(functools.partial, offline_plain.CONTENDERS[contender])


def task(settings: dict[str, Any], which: str) -> Task:
    """The measured task, or the same with few rows."""
    made = settings[which]
    scratch = Path(settings["scratch"]) / which
    scratch.mkdir(exist_ok=True)
    endpoint = settings["endpoint"]
    return Task(
        dataset=Dataset(**made["dataset"]),
        folder=Path(made["folder"]),
        views=settings["views"],
        out=scratch / "out" if settings["to_parquet"] else None,
        scratch=scratch,
        history=f"{settings['bucket']}/{Path(made['folder']).name}" if endpoint else None,
        endpoint=endpoint,
        tables=Path(settings["tables"], Path(made["folder"]).name) if settings["tables"] else None,
    )


def use_test_credentials() -> None:
    """Of the servers that the benchmark starts; nothing of the developer's own set-up."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def measure(run: Run) -> tuple[dict[str, float], pa.Table | None]:
    start_mb, cpu_s, started = peak_mb(), used_cpu_s(), time.perf_counter()
    with quiet():
        table = run()
    seconds = time.perf_counter() - started
    measured = {"seconds": seconds, "cpu_s": used_cpu_s() - cpu_s}
    return {**measured, "start_mb": start_mb, "peak_mb": peak_mb()}, table


@contextlib.contextmanager
def quiet() -> Any:
    """What contenders print stays out of the figures' way."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def check(table: pa.Table | None, given: Task) -> str:
    """What is wrong with a training set; nothing if it is right."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    names = given.compared
    expected = json.loads((given.folder / EXPECTED).read_text())
    made = ds.dataset(given.out if table is None else table)
    rows, wanted = made.count_rows(), given.dataset.entities
    if rows != wanted:
        return f"{rows:,} rows of {wanted:,}"
    sampled = pc.field(LABEL).isin(pa.array([row[LABEL] for row in expected]))
    by_label = {row[LABEL]: row for row in made.to_table(names, filter=sampled).to_pylist()}
    # Where pandas has been at it, a null is NaN.
    wrong = [
        row
        for row in expected
        if [_null(by_label.get(row[LABEL], {}).get(name)) for name in names]
        != [row[name] for name in names]
    ]
    return f"{len(wrong)} of {len(expected)} rows wrong" if wrong else ""


def digest_of(table: pa.Table, columns: list[str]) -> str:
    """A hash of all rows in the order of their labels, the same of whichever contender."""
    import numpy as np
    import pyarrow.compute as pc

    # Labels are random, and as good as different.
    order, digest = pc.sort_indices(table[LABEL]), hashlib.sha256()
    for name in columns:
        # Where pandas has been at it, a null is NaN.
        column = table[name].cast("float64").fill_null(float("nan")).take(order).to_numpy()
        digest.update(np.where(np.isnan(column), np.nan, column).tobytes())
    return digest.hexdigest()


def _null(value: float | None) -> float | None:
    return None if value != value else value  # noqa: PLR0124 - that is what NaN is


if __name__ == "__main__":
    main()
