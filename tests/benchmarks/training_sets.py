"""Builds of training sets, beside pyarrow writing the same encoded columns to the same disk.

Each step is a process of its own, which this file is too: `training_sets.py STEP ROWS FOLDER`
prints what it took as JSON. The rows lie in a file of Arrow's IPC stream, as the join would hand
them over; making them is not counted.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS, FEATURES, CATEGORIES = 5_000_000, 50, 10
BATCH = 65_536
NUMBERS = [f"n{at:02d}" for at in range(FEATURES - CATEGORIES)]
TEXTS = [f"c{at:02d}" for at in range(CATEGORIES)]


@dataclass(frozen=True)
class Step:
    """What one process took.

    Attributes:
        seconds: wall clock of what is measured.
        cpu_s: CPU time of it, all threads.
        peak_mb: peak memory of the process.
        bytes: of the Parquet files that were written.
    """

    seconds: float
    cpu_s: float
    peak_mb: float
    bytes: int


@dataclass(frozen=True)
class Round:
    """A build, and pyarrow writing what came out of it."""

    build: Step
    write: Step

    @property
    def percent(self) -> float:
        """Of pyarrow's speed that the build reaches."""
        return 100 * self.write.seconds / self.build.seconds


def run(rounds: int, scale: float) -> list[Round]:
    """So many rounds, on local files in the folder for temporary files."""
    rows, found = rows_of(scale), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _step("make", rows, folder)
        for _ in range(rounds):
            build, write = (_step(step, rows, folder) for step in ("build", "write"))
            found.append(Round(Step(**build), Step(**write)))
    return found


def rows_of(scale: float) -> int:
    return max(1_000, round(ROWS * scale))


def as_json(rounds: list[Round]) -> list[dict[str, Any]]:
    return [asdict(each) | {"percent": each.percent} for each in rounds]


def report(rounds: list[Round], scale: float) -> str:
    lines = [f"{rows_of(scale):,} rows x {FEATURES} features, {CATEGORIES} of them categories"]
    lines += [
        f"build {each.build.seconds:.1f} s ({each.build.cpu_s:.1f} s of CPU, peak "
        f"{each.build.peak_mb:,.0f} MB), pyarrow {each.write.seconds:.1f} s: "
        f"{each.percent:.0f}% of its speed, {each.write.bytes / 1e6:,.0f} MB"
        for each in rounds
    ]
    return "\n".join(lines)


def _step(step: str, rows: int, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, step, str(rows), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


# In the processes


def batches(rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in every process."""
    random = np.random.default_rng(14)
    cities = pa.array([f"category-{at:04d}" for at in range(1_000)])
    for start in range(0, rows, BATCH):
        size = min(BATCH, rows - start)
        columns = {
            "cid": random.integers(0, 100_000, size),
            "event_timestamp": pa.array(
                1_700_000_000_000_000 + (start + np.arange(size)) * 1_000_000,
                pa.timestamp("us", "UTC"),
            ),
            "label": (random.random(size) < 0.1).astype(np.int64),
        }
        for at, name in enumerate(NUMBERS):
            values = random.normal(size=size)
            # As measured values are: some of few decimals, some missing.
            columns[name] = pa.array(
                np.round(values, 3) if at % 2 else values, mask=random.random(size) < 0.02
            )
        for name in TEXTS:
            columns[name] = cities.take(pa.array(random.zipf(1.3, size) % 1_000))
        yield pa.record_batch(columns)


def make(rows: int, folder: Path) -> dict[str, Any]:
    source = batches(rows)
    first = next(source)
    with pa.ipc.new_stream(str(folder / "rows.arrow"), first.schema) as writer:
        writer.write_batch(first)
        for batch in source:
            writer.write_batch(batch)
    return {}


def build(rows: int, folder: Path) -> dict[str, Any]:
    from datetime import datetime, timezone

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.sagemaker import Encoding, Provenance, TimeSplit, write_training_set

    output = folder / "set"
    shutil.rmtree(output, ignore_errors=True)
    encodings = {
        name: Encoding(encoding="ordinal") if at % 2 else Encoding(encoding="hash", buckets=512)
        for at, name in enumerate(TEXTS)
    }
    instants = [
        datetime.fromtimestamp(1_700_000_000 + rows * part // 10, tz=timezone.utc)
        for part in (7, 8)
    ]
    started, cpu = time.perf_counter(), time.process_time()
    with pa.OSFile(str(folder / "rows.arrow")) as file, pa.ipc.open_stream(file) as reader:
        made = write_training_set(
            reader,
            label="label",
            event_timestamp="event_timestamp",
            entity_columns=["cid"],
            features=[*NUMBERS, *TEXTS],
            output=str(output),
            split=TimeSplit(*instants),
            aws=AwsSettings(),
            provenance=Provenance("bench", (), {}, (), ""),
            encodings=encodings,
            formats=["parquet"],
        )
    written = sum(file.bytes for file in made.manifest.files)
    return _taken(started, cpu, written)


def write(rows: int, folder: Path) -> dict[str, Any]:
    """pyarrow's own writing of the encoded columns, with the same choices; reading is left out."""
    files = sorted((folder / "set").glob("*/parquet/*.parquet"))
    copy, seconds, cpu_s = folder / "copy.parquet", 0.0, 0.0
    seen = 0
    with pq.ParquetWriter(
        copy,
        pq.read_schema(files[0]),
        version="2.6",
        data_page_version="1.0",
        compression="snappy",
    ) as writer:
        for file in files:
            for batch in pq.ParquetFile(file).iter_batches(BATCH):
                started, cpu = time.perf_counter(), time.process_time()
                writer.write_batch(batch)
                seconds += time.perf_counter() - started
                cpu_s += time.process_time() - cpu
                seen += batch.num_rows
        started, cpu = time.perf_counter(), time.process_time()
    seconds += time.perf_counter() - started
    if seen != rows:
        raise RuntimeError(f"The training set has {seen} rows in place of {rows}.")
    taken = _taken(started, cpu, copy.stat().st_size)
    copy.unlink()
    return taken | {"seconds": seconds, "cpu_s": cpu_s}


def _taken(started: float, cpu: float, size: int) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_000
    return asdict(Step(time.perf_counter() - started, time.process_time() - cpu, peak, size))


if __name__ == "__main__":
    step_, rows_, folder_ = sys.argv[1:]
    steps = {"make": make, "build": build, "write": write}
    print(json.dumps(steps[step_](int(rows_), Path(folder_))))
