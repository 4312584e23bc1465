"""Area `cli`: what `feast-dynamo` prints, and the exit codes of its commands."""

from __future__ import annotations

import datetime as dt
import gzip
import json
from importlib import metadata
from typing import TYPE_CHECKING, Any

import boto3
import pyarrow as pa
from click.testing import CliRunner
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64, String
from golden_history import CENTURY, hours, put
from golden_record import replaced

if TYPE_CHECKING:
    from pathlib import Path

    import click

YAML = """\
project: golden_cli
provider: feast_dynamo_ext.DynamoProvider
registry: registry.db
online_store:
  type: feast_dynamo_ext.DynamoOnlineStore
  region: us-east-1
  endpoint_url: {endpoint}
  newest_wins_with: put_item
offline_store:
  type: feast_dynamo_ext.S3ParquetOfflineStore
  region: us-east-1
  endpoint_url: {endpoint}
  memory_limit: 256MB
entity_key_serialization_version: 3
"""
BUCKET = "golden-cli"
JANUARY = ("2025-01-01", "2025-02-01")
# Durations and ids.
RULES: dict[str, Any] = {
    r"\b\d+\.\d+ s\b": "<time> s",
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\b[0-9a-f]{32}\b": "<id>",
    r"\b20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:\+\d\d:\d\d)?": lambda found: _unless_now(
        found[0]
    ),
    r"\b20\d{6}T\d{6}Z-[0-9a-f]{8}\b": "<generation>",
}


def _unless_now(text: str) -> str:
    """A moment as it is, but one of today by a name."""
    moment = dt.datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.timezone.utc)
    is_now = abs(dt.datetime.now(tz=dt.timezone.utc) - moment) < dt.timedelta(days=1)
    return "<now>" if is_now else text


def _timeless(value: Any) -> Any:
    """JSON without durations."""
    if isinstance(value, list):
        return [_timeless(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {name: "<time>" if name == "seconds" else _timeless(one) for name, one in value.items()}


def command() -> Any:
    """The command, as the installed script finds it."""
    (found,) = metadata.entry_points(group="console_scripts", name="feast-dynamo")
    return found.load()


def run(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(command(), list(arguments), terminal_width=100)
    found: dict[str, Any] = {"exit code": result.exit_code}
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        found["exception"] = f"{type(result.exception).__name__}: {result.exception}"
    for name, text in (("stdout", result.stdout), ("stderr", result.stderr)):
        if not text:
            continue
        try:
            found[name] = _timeless(json.loads(text))
        except ValueError:
            # How often a slow machine is asked for its progress is no part of the answer.
            lines = [line.rstrip() for line in text.split("\n")]
            found[name] = [line for line in lines if "IN_PROGRESS" not in line]
    return found


def helps(group: click.Command, *path: str) -> dict[str, Any]:
    """`--help` of a command and all below it."""
    found = {" ".join(["feast-dynamo", *path, "--help"]): run(*path, "--help")}
    for name in sorted(getattr(group, "commands", {})):
        found |= helps(group.commands[name], *path, name)
    return found


def shop(folder: Path, endpoint: str) -> None:
    """A repo of three views, one of which has no files."""
    folder.mkdir()
    (folder / "feature_store.yaml").write_text(YAML.format(endpoint=endpoint))
    for part in range(3):
        put(
            folder / "history" / f"part-{part}.parquet",
            cid=pa.array([1, 2, 3, 4], pa.int64()),
            t=hours(*[part + 0.5] * 4),
            amount=[part + 0.5, None, -1.0, 4.0],
            number=[part, 2, 3, 4],
        )
    for day in ("2025-01-10", "2025-01-11"):
        for part in "ab":
            put(
                folder / "daily" / f"dt={day}" / f"{part}.parquet",
                cid=pa.array([1, 2], pa.int64()),
                t=hours(1, 2) if day.endswith("10") else hours(25, 26),
                note=[part, None],
            )
    customer = Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)
    features = {
        "orders": ("history", Field(name="amount", dtype=Float64)),
        "baskets": ("history", Field(name="number", dtype=Int64)),
        "visits": ("daily", Field(name="note", dtype=String)),
        "lost": ("gone", Field(name="number", dtype=Int64)),
    }
    put(folder / "gone" / "a.parquet", cid=[1], t=hours(1), number=[1])
    views = [
        FeatureView(
            name=name,
            entities=[customer],
            ttl=CENTURY,
            schema=[Field(name="cid", dtype=Int64), field],
            source=FileSource(name=f"{name}_source", path=path, timestamp_field="t"),
        )
        for name, (path, field) in features.items()
    ]
    FeatureStore(repo_path=str(folder)).apply([customer, *views])
    (folder / "gone" / "a.parquet").unlink()
    (folder / "gone").rmdir()


def cli_record(folder: Path, endpoint: str) -> dict[str, Any]:
    s3 = boto3.client("s3", region_name="us-east-1", endpoint_url=endpoint)
    s3.create_bucket(Bucket=BUCKET)
    dynamodb = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=endpoint)
    repo, empty = folder / "shop", folder / "empty"
    shop(repo, endpoint)
    empty.mkdir()
    at, month = ("-c", str(repo)), list(JANUARY)
    lines: list[tuple[str, ...]] = [
        ("--version",),
        (),
        ("nothing",),
        ("local", "status", "--folder", str(empty)),
        ("local", "status", "--folder", str(empty), "--json"),
        ("local", "env", "--folder", str(empty)),
        ("local", "down", "--folder", str(empty)),
        ("local", "down", "--folder", str(empty), "--json"),
        ("materialize",),
        ("materialize", *month, "-c", str(empty)),
        ("materialize", "nonsense", "2025-02-01", *at),
        ("materialize", "--all", "2025-01-01", *at),
        ("materialize", "2025-02-01", "2025-01-01", *at),
        ("materialize", *month, *at, "-v", "order"),
        ("materialize", *month, *at, "--max-write-units", "0"),
        ("materialize", *month, *at, "-v", "orders,visits", "--dry-run"),
        ("materialize", *month, *at, "-v", "orders,visits", "--dry-run", "--json"),
        ("materialize", "2025-01-01", "2025-01-10T01:00:00", *at, "-v", "orders", "-v", "visits"),
        ("materialize", *month, *at, "-v", "orders,baskets", "--json"),
        ("materialize", *month, *at),
        ("materialize", "--incremental", "2025-02-02", *at, "-v", "orders", "--json"),
        ("materialize", *month, *at, "-v", "orders", "--write-mode", "overwrite", "--restart"),
        ("bulk-load", *month, *at),
        ("bulk-load", *month, *at, "-v", "orders,visits", "--dry-run"),
        ("bulk-load", *month, *at, "-v", "orders", "--dry-run", "--json"),
        ("bulk-load", *month, *at, "-v", "orders", "--output", "nowhere"),
        ("bulk-load", *month, *at, "-v", "orders", "--output", f"s3://{BUCKET}/a",
         "--way", "import"),
    ]  # fmt: skip
    found = helps(command())
    for line in lines:
        found[" ".join(["feast-dynamo", *line])] = run(*line)
    rows = dynamodb.scan(TableName="golden_cli.baskets")["Items"]
    found["keys of baskets"] = sorted(row["k"]["B"].hex() for row in rows)
    dynamodb.delete_table(TableName="golden_cli.orders")
    load = (
        "bulk-load",
        *month,
        *at,
        "-v",
        "orders",
        "--output",
        f"s3://{BUCKET}/b",
        "--keep-files",
    )
    found["bulk-load into a new table"] = run(*load, "--json")
    found["its files"] = _objects(s3)
    found["its items"] = sorted(
        (
            {
                name: {kind: cell.hex() if kind == "B" else cell for kind, cell in one.items()}
                for name, one in item.items()
            }
            for item in dynamodb.scan(TableName="golden_cli.orders")["Items"]
        ),
        key=lambda item: item["k"]["B"],
    )
    FeatureStore(repo_path=str(repo)).teardown()
    s3.close()
    dynamodb.close()
    names = {str(repo): "<repo>", str(folder): "<folder>", endpoint: "<aws>"}
    answer: dict[str, Any] = replaced(found, names, RULES)
    return answer


def _objects(s3: Any) -> dict[str, Any]:
    found = {}
    for one in s3.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        body = s3.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read()
        text = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
        found[one["Key"]] = sorted(text.decode().split("\n"))
    return found
