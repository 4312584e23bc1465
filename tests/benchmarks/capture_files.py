"""Data files of an export as typed Parquet, beside json with boto3's TypeDeserializer.

Each step is a process of its own, which this file is too: `capture_files.py STEP ROWS FOLDER`
prints what it took as JSON. Making the files is not counted; reading, unpacking, checksums, exact
values, conflicts, the quarantine and the written Parquet are. The others keep what they read in
memory; they check nothing and write nothing.
"""

from __future__ import annotations

import concurrent.futures
import gzip
import hashlib
import importlib.util
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROWS = 1_000_000
SAMPLE = 50_000
"""Of rows that the others read: they take as long for each."""

OURS, OURS_GZ, BOTO3, DYNAMODB_JSON, PAIR = "plain", "gz", "boto3", "dynamodb_json", "pair"


@dataclass(frozen=True)
class Step:
    """What one process took.

    Attributes:
        rows: items that were read.
        cpu_s: CPU time, all threads.
        seconds: wall clock.
        peak_mb: peak memory of the process.
    """

    rows: int
    cpu_s: float
    seconds: float
    peak_mb: float

    @property
    def rows_s(self) -> float:
        """Rows a second of CPU."""
        return self.rows / self.cpu_s


@dataclass(frozen=True)
class Round:
    """One turn of each; `dynamodb_json` is None where it is not installed.

    Attributes:
        pair: two files at once, in two threads.
    """

    plain: Step
    gz: Step
    boto3: Step
    dynamodb_json: Step | None
    pair: Step

    @property
    def scaling(self) -> float:
        """How many times as many rows a second of wall clock two files make of one."""
        return (self.pair.rows / self.pair.seconds) / (self.plain.rows / self.plain.seconds)


def run(rounds: int, scale: float) -> list[Round]:
    """So many rounds, on local files in the folder for temporary files."""
    rows, found = rows_of(scale), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _step("make", rows, folder)
        for _ in range(rounds):
            steps = {step: _step(step, rows, folder) for step in STEPS if step != "make"}
            made = {step: Step(**taken) if taken else None for step, taken in steps.items()}
            found.append(Round(**made))  # type: ignore[arg-type]
    return found


def rows_of(scale: float) -> int:
    return max(2_000, round(ROWS * scale))


def as_json(rounds: list[Round]) -> list[dict[str, Any]]:
    return [asdict(each) | {"scaling": each.scaling} for each in rounds]


def report(rounds: list[Round], scale: float) -> str:
    lines = [f"{rows_of(scale):,} items x 12 attributes; rows a second of CPU"]
    for each in rounds:
        theirs = each.dynamodb_json
        lines.append(
            f"plain {each.plain.rows_s:,.0f}, gz {each.gz.rows_s:,.0f}, json + boto3 "
            f"{each.boto3.rows_s:,.0f}, dynamodb-json "
            f"{f'{theirs.rows_s:,.0f}' if theirs else 'not installed'}; two files at once "
            f"x {each.scaling:.2f}; peak {each.plain.peak_mb:,.0f} MB"
        )
    return "\n".join(lines)


def _step(step: str, rows: int, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, step, str(rows), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


# In the processes


def items(rows: int) -> Any:
    """The same items in every process: 5% of what may be missing is, 1% do not fit."""
    chance = random.Random(16)  # noqa: S311 - the same items each time
    words = ("shoes", "books", "garden", "toys", "food", "music")
    may_miss = (
        *("amount", "quantity", "score", "category", "is_gift", "note", "tags", "address"),
        "updated_at",
    )
    for at in range(rows):
        item: dict[str, Any] = {
            "address": {
                "M": {"city": {"S": chance.choice(words)}, "zip": {"S": f"{at % 99999:05d}"}}
            },
            "amount": {"N": f"{chance.randrange(100, 10**6) / 100:.2f}"},
            "category": {"S": chance.choice(words)},
            "customer_id": {"S": f"C{at % 50_000:08d}"},
            "is_gift": {"BOOL": at % 3 == 0},
            "note": {"S": "the quick brown fox"[: chance.randrange(5, 19)]},
            "order_id": {"S": f"{chance.getrandbits(64):016x}"},
            "purchased_at": {"N": str(1_700_000_000_000 + at * 37)},
            "quantity": {"N": str(chance.randrange(1, 9))},
            "score": {"N": str(round(chance.random(), 6))},
            "tags": {"SS": [chance.choice(words), "sale"]},
            "updated_at": {"S": f"2026-01-{1 + at % 28:02d}T10:00:{at % 60:02d}.{at % 1000:03d}Z"},
        }  # fmt: skip
        for name in may_miss:
            if chance.random() < 0.05:
                del item[name]
        if at % 100 == 7:
            item["quantity"] = {"S": "many"}
        yield item


def columns() -> Any:
    from feast import Field
    from feast.types import (
        Bool,
        Decimal,
        Float64,
        Int64,
        Set,
        String,
        Struct,
        UnixTimestamp,
    )

    from feast_dynamo_ext.capture.values.attribute_types import CapturedColumns

    fields = [
        Field(name="address", dtype=Struct({"city": String, "zip": String})),
        Field(name="amount", dtype=Decimal, tags={"precision": "18", "scale": "2"}),
        Field(name="category", dtype=String),
        Field(name="is_gift", dtype=Bool),
        Field(name="note", dtype=String),
        Field(name="order_id", dtype=String),
        Field(name="quantity", dtype=Int64),
        Field(name="score", dtype=Float64),
        Field(name="tags", dtype=Set(String)),
        Field(name="updated_at", dtype=UnixTimestamp, tags={"unit": "iso8601"}),
    ]
    return CapturedColumns.from_fields(
        fields,
        keys={"customer_id": "S", "purchased_at": "N"},
        event_time="purchased_at",
        event_time_unit="ms",
    )


def make(rows: int, folder: Path) -> dict[str, Any]:
    """Two data files, plain and compressed, and what a manifest says of them."""
    counts = {}
    for name, size in (("one", rows - rows // 2), ("two", rows // 2)):
        lines = (
            json.dumps({"Item": item}, separators=(",", ":")).encode() + b"\n"
            for item in items(size)
        )
        path = folder / f"{name}.json"
        with path.open("wb") as plain:
            plain.writelines(lines)
        data = path.read_bytes()
        packed = gzip.compress(data, 6)
        (folder / f"{name}.json.gz").write_bytes(packed)
        for suffix, content in (("json", data), ("json.gz", packed)):
            digest = hashlib.md5(content, usedforsecurity=False).digest()
            counts[f"{name}.{suffix}"] = [size, b64encode(digest).decode()]
    (folder / "manifest.json").write_text(json.dumps(counts))
    return {}


def convert(folder: Path, name: str, declared: Any) -> int:
    """One data file into one Parquet file and the quarantine's."""
    import pyarrow.parquet as pq

    from feast_dynamo_ext.capture.exports.export_rows import DataFile
    from feast_dynamo_ext.capture.values.change_rows import QUARANTINE

    records, md5 = json.loads((folder / "manifest.json").read_text())[name]
    schema = declared.history_schema
    with (
        (folder / name).open("rb") as stream,
        pq.ParquetWriter(folder / f"{name}.parquet", schema, compression="zstd") as rows,
        pq.ParquetWriter(folder / f"{name}.quarantine", QUARANTINE, compression="zstd") as bad,
    ):
        file = DataFile(stream, declared, name, exported_at=1, md5=md5, records=records)
        for converted in file.batches():
            rows.write_batch(converted.rows)
            bad.write_batch(converted.quarantine)
    if file.totals.quarantined != len(range(7, records, 100)) or file.totals.undeclared:
        raise RuntimeError(f"{file.totals} is not what the file holds.")
    return records


def plain(rows: int, folder: Path) -> dict[str, Any]:
    return _ours(folder, ".json")


def gz(rows: int, folder: Path) -> dict[str, Any]:
    return _ours(folder, ".json.gz")


def _ours(folder: Path, suffix: str) -> dict[str, Any]:
    import pyarrow as pa

    pa.set_cpu_count(1)
    declared = columns()
    started = _now()
    count = sum(convert(folder, name + suffix, declared) for name in ("one", "two"))
    return _taken(count, started)


def pair(rows: int, folder: Path) -> dict[str, Any]:
    """Both files at once."""
    declared = columns()
    started = _now()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        counts = pool.map(lambda name: convert(folder, name, declared), ("one.json", "two.json"))
        count = sum(counts)
    return _taken(count, started)


def boto3(rows: int, folder: Path) -> dict[str, Any]:
    from boto3.dynamodb.types import TypeDeserializer

    read = TypeDeserializer().deserialize
    lines = _sample(folder)
    started = _now()
    kept = []
    for line in lines:
        item = json.loads(line)["Item"]
        kept.append({name: read(value) for name, value in item.items()})
    return _taken(len(kept), started)


def dynamodb_json(rows: int, folder: Path) -> dict[str, Any]:
    if importlib.util.find_spec("dynamodb_json") is None:
        return {}
    from dynamodb_json import json_util

    lines = [line.replace(b'"Item":', b"", 1)[1:-2] for line in _sample(folder)]
    started = _now()
    kept = [json_util.loads(line.decode()) for line in lines]
    return _taken(len(kept), started)


def _sample(folder: Path) -> list[bytes]:
    with (folder / "one.json").open("rb") as file:
        return [line for line, _ in zip(file, range(SAMPLE), strict=False)]


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _taken(rows: int, started: tuple[float, float]) -> dict[str, Any]:
    seconds, cpu_s = (now - then for now, then in zip(_now(), started, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_000
    return asdict(Step(rows, cpu_s, seconds, peak))


STEPS = {
    "make": make, "boto3": boto3, "plain": plain, "gz": gz, "pair": pair,
    "dynamodb_json": dynamodb_json,
}  # fmt: skip

if __name__ == "__main__":
    step_, rows_, folder_ = sys.argv[1:]
    print(json.dumps(STEPS[step_](int(rows_), Path(folder_))))
