from __future__ import annotations

import json
from datetime import datetime, timezone
from types import MappingProxyType

import pytest

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import ConfigError, TrainingSetError
from feast_dynamo_ext.sagemaker import (
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


MANIFEST = Manifest(
    label="churned",
    event_timestamp="event_timestamp",
    entity_columns=("customer_id",),
    features=("spend",),
    types={"churned": "int64", "spend": "double"},
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
    ),
    libraries={"feast": "0.67.0"},
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


def test_any_mapping_will_do():
    frozen = Provenance("shop", (), MappingProxyType({"sales": "ab"}), (), "cd")
    values = json.loads(Manifest(**vars(MANIFEST) | {"provenance": frozen}).to_json())
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
        ('{"format_version": 2}', "has format_version 2; this version reads 1. Upgrade"),
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
