from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, datetime, timezone
from types import MappingProxyType

import pyarrow as pa
import pytest

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import ConfigError, TrainingSetError
from feast_dynamo_ext.sagemaker import (
    ColumnSummary,
    EntityRowsOrigin,
    FittedEncoding,
    LabelStatistics,
    Manifest,
    OutputFile,
    Provenance,
    SourceFile,
    SplitSummary,
    TimeSplit,
    VerifyReport,
    load_manifest,
    verify,
)

AWS = AwsSettings()
# SHA-256 of the texts "1,2\n" and "3,4\n", from `printf '1,2\n' | sha256sum`.
HASH_12 = "52186c933993da4082b3cdc7c40bb4bf735b391ff54a2ef78c037dda6c38a680"
HASH_34 = "35aa7c730f02c510f18ee96342a374749b80cf1c9f4c4ff57c159be4620b61d3"


def summary(rows: int, values) -> SplitSummary:
    label = LabelStatistics(rows, 0.5, 0, 1, values)
    return SplitSummary(rows, "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00", label)


CHURNED = FittedEncoding("churned", "boolean", ("churned",), ("int64",), "bool", {})
SPEND = FittedEncoding("spend", "number", ("spend",), ("double",), "double", {"missing": None})
MANIFEST = Manifest(
    label="churned",
    event_timestamp="event_timestamp",
    entity_columns=("customer_id",),
    features=("spend",),
    columns=(
        ColumnSummary("churned", "label", "bool", CHURNED, {"train": 0}, "entity_rows"),
        ColumnSummary("spend", "feature", "double", SPEND, {"train": 1}),
    ),
    split=TimeSplit(
        datetime(2026, 3, 1, tzinfo=timezone.utc), datetime(2026, 4, 1, tzinfo=timezone.utc)
    ),
    splits={
        "train": summary(2, {"0": 1, "1": 1}),
        "validation": summary(2, None),
        "test": summary(2, None),
    },
    files=(
        OutputFile("train/csv/part-00000.csv", 4, 1, HASH_12),
        OutputFile("test/csv/part-00000.csv", 4, 1, HASH_34),
    ),
    provenance=Provenance(
        "shop",
        ("sales:spend",),
        {"sales": "ab"},
        (SourceFile("s3://lake/a.parquet", 10, "e1"), SourceFile("b.parquet", 20)),
        "cd",
        feature_service="churn",
        entity_rows=EntityRowsOrigin("path", "rows.csv", (SourceFile("rows.csv", 3),)),
    ),
    libraries={"feast": "0.67.0"},
    content={"train": {"spend": "ef"}},
    definition={"label": "churned"},
)


@pytest.fixture
def output(tmp_path):
    for path, text in {
        "train/csv/part-00000.csv": "1,2\n",
        "test/csv/part-00000.csv": "3,4\n",
        "manifest.json": MANIFEST.to_json(),
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def test_json_has_sorted_keys_and_reads_back_as_the_same_manifest():
    text = MANIFEST.to_json()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    assert Manifest.from_json(text, source="m") == MANIFEST


VERSION_1 = {
    "entity_columns": ["customer_id"],
    "event_timestamp": "event_timestamp",
    "features": ["spend", "visits"],
    "files": [{"path": "rows/train.parquet", "bytes": 4, "rows": 1, "sha256": HASH_12}],
    "format_version": 1,
    "label": "churned",
    "libraries": {"feast": "0.67.0"},
    "provenance": {
        "entity_rows_sha256": "cd",
        "feature_refs": ["sales:spend", "sales:visits"],
        "project": "shop",
        "snapshots": {"sales": {"snapshot": "7", "table": "shop.sales"}},
        "source_files": [{"etag": "e1", "path": "s3://lake/a.parquet", "size": 10}],
        "view_definitions": {"sales": "ab"},
    },
    "split": {
        "rule": "event_time",
        "test_from": "2026-04-01T00:00:00+00:00",
        "validation_from": "2026-03-01T00:00:00+00:00",
    },
    "splits": {
        "train": {
            "first_event": "2026-01-01T00:00:00+00:00",
            "label": {"count": 1, "max": 1, "mean": 1.0, "min": 1, "values": {"1": 1}},
            "last_event": "2026-01-01T00:00:00+00:00",
            "rows": 1,
        }
    },
    "types": {"churned": "int64", "spend": "double", "visits": "int32"},
}


def test_a_manifest_of_version_1_still_reads_and_encodes():
    text = json.dumps(VERSION_1, indent=2, sort_keys=True) + "\n"
    manifest = Manifest.from_json(text, source="m")
    assert manifest.to_json() == text
    assert (manifest.outputs, manifest.types) == (("spend", "visits"), VERSION_1["types"])
    assert manifest.splits["train"].label.values == {"1": 1}
    # An online answer has its own types.
    rows = pa.table({"visits": [3.0, None], "spend": [1, 2], "other": ["a", "b"]})
    assert manifest.encode(rows).equals(
        pa.table({"spend": [1.0, 2.0], "visits": pa.array([3, None], pa.int32())})
    )


def test_a_manifest_encodes_features_in_the_order_of_its_files():
    city = FittedEncoding(
        "city", "one_hot", ("city=Ulm", "city=Bonn"), ("int8", "int8"), "string",
        {"categories": ["Ulm", "Bonn"], "unknown": 0, "missing": None},
    )  # fmt: skip
    age = FittedEncoding("since", "age", ("since",), ("double",), "date32[day]", {"unit": "day"})
    plan = FittedEncoding(
        "plan", "ordinal", ("plan",), ("int32",), "string", {"categories": ["a"], "unknown": -1}
    )
    found = replace(
        MANIFEST,
        features=("since", "city", "plan", "spend"),
        columns=(
            *MANIFEST.columns,
            ColumnSummary("city", "feature", "string", city),
            ColumnSummary("since", "feature", "date32[day]", age),
            ColumnSummary("plan", "feature", "string", plan),
        ),
    )
    found = Manifest.from_json(found.to_json(), source="m")
    rows = pa.table(
        {
            "city": ["Bonn", "Rom"],
            "plan": ["a", "b"],
            "spend": [0.5, None],
            "since": [date(2026, 1, 1), date(2026, 1, 2)],
        }
    )
    times = pa.array([datetime(2026, 1, 3)] * 2, pa.timestamp("us"))  # noqa: DTZ001 - is UTC
    encoded = found.encode(rows, times)
    assert encoded.column_names == list(found.outputs)
    assert encoded.to_pydict() == {
        "since": [2.0, 1.0],
        "city=Ulm": [0, 0],
        "city=Bonn": [1, 0],
        "plan": [0, -1],
        "spend": [0.5, None],
    }
    assert found.categorical == ("plan",)
    assert found.written == ("churned", *encoded.column_names)
    with pytest.raises(TrainingSetError, match=r"lack the features \['plan'\]"):
        found.encode(rows.drop_columns("plan"), times)


def test_any_mapping_will_do():
    frozen = Provenance("shop", (), MappingProxyType({"sales": "ab"}), (), "cd")
    values = json.loads(replace(MANIFEST, provenance=frozen).to_json())
    assert values["provenance"]["view_definitions"] == {"sales": "ab"}


def test_load_manifest_reads_what_is_there(output):
    assert load_manifest(str(output), AWS) == MANIFEST
    assert load_manifest(output.as_uri(), AWS) == MANIFEST


def test_an_untouched_training_set_verifies(output):
    assert verify(str(output), AWS) == VerifyReport(2, (), (), ())
    assert verify(str(output), AWS).ok


def test_verify_names_missing_changed_and_unexpected_files(output):
    (output / "train/csv/part-00000.csv").write_text("1,3\n")  # as long as before
    (output / "test/csv/part-00000.csv").unlink()
    (output / "train/csv/part-00001.csv").write_text("9,9\n")
    (output / "notes.txt").write_text("in nobody's way")
    report = verify(str(output), AWS)
    assert report == VerifyReport(
        checked=2,
        missing=("test/csv/part-00000.csv",),
        changed=("train/csv/part-00000.csv",),
        unexpected=("train/csv/part-00001.csv",),
    )
    assert not report.ok


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a training set's manifest: JSONDecodeError"),
        ("[]", "is not a training set's manifest"),
        ("{}", "is not a training set's manifest: KeyError: 'format_version'"),
        ('{"format_version": 1}', "is not a training set's manifest: KeyError: 'provenance'"),
        ('{"format_version": 3}', "has format_version 3; this version reads 1 and 2. Upgrade"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(TrainingSetError) as error:
        load_manifest(str(tmp_path), AWS)
    assert str(error.value).startswith(f"{tmp_path}/manifest.json")
    assert message in str(error.value)


def test_without_a_manifest_there_is_no_training_set(tmp_path):
    with pytest.raises(TrainingSetError, match=r"has no manifest\.json"):
        verify(str(tmp_path / "nothing"), AWS)


def test_other_schemes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="gs://"):
        load_manifest("gs://bucket/set", AWS)
