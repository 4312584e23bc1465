"""Sets of every format and encoding are read again: rows, reports, differences."""

from __future__ import annotations

import dataclasses
import re
import struct
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.duckdb_connection import Limits
from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker import Encoding, Provenance, TimeFractions, write_training_set
from feast_dynamo_ext.sagemaker.report_page import html
from feast_dynamo_ext.sagemaker.set_difference import difference
from feast_dynamo_ext.sagemaker.set_inspection import inspect
from feast_dynamo_ext.sagemaker.set_rows import opened_rows

AWS, LIMITS = AwsSettings(), Limits(memory_limit="200MB", threads=2)
START = datetime(2026, 1, 1, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
ROWS = 3_000

ENCODINGS = {
    "plan": Encoding(encoding="ordinal", unknown="missing", max_categories=2),
    "city": Encoding(encoding="one_hot", unknown="column"),
    "user_agent": Encoding(encoding="hash", buckets=64),
    "joined": Encoding(encoding="epoch", unit="day"),
    "last_visit": Encoding(encoding="age", unit="h"),
    "scores": Encoding(encoding="list", length=3),
    "spend": Encoding(missing="median"),
}


def rows(seed=3):
    random = np.random.default_rng(seed)
    at = range(ROWS)
    label = random.integers(0, 2, ROWS)
    times = [START + place * HOUR for place in at]
    missing = random.random(ROWS) < 0.1
    return pa.table(
        {
            "cid": pa.array(at),
            "event_timestamp": pa.array(times, pa.timestamp("us", "UTC")),
            "bought": label,
            "w": random.uniform(0.5, 2, ROWS).astype(np.float32).astype(np.float64),
            "plan": random.choice(["free", "pro", "team"], ROWS, p=[0.5, 0.4, 0.1]),
            "city": random.choice(["Ulm", "Bonn", "Rom"], ROWS),
            "user_agent": [f"agent {number}" for number in random.integers(0, 500, ROWS)],
            "joined": pa.array(
                [START - int(days) * 24 * HOUR for days in random.integers(0, 900, ROWS)],
                pa.timestamp("s", "UTC"),
                mask=missing,
            ),
            "last_visit": pa.array(
                [
                    time - float(h) * HOUR
                    for time, h in zip(times, random.uniform(0, 90, ROWS), strict=True)
                ],
                pa.timestamp("us", "UTC"),
            ),
            "scores": [
                [*map(float, random.uniform(0, 1, length) + label[place])]
                for place, length in enumerate(random.integers(0, 4, ROWS))
            ],
            "spend": pa.array(random.lognormal(3, 1, ROWS) * 10.0 ** (label * 3), mask=missing),
            "visits": pa.array(random.integers(-(2**53), 2**53, ROWS)),
        }
    )


FEATURES = [*ENCODINGS, "visits"]


def build(output, table=None, **changes):
    features = changes.get("features", FEATURES)
    options = {
        "label": "bought",
        "event_timestamp": "event_timestamp",
        "entity_columns": ["cid"],
        "features": FEATURES,
        "encodings": {name: ENCODINGS[name] for name in features if name in ENCODINGS},
        "split": TimeFractions({"train": 0.6, "validation": 0.2, "test": 0.2}),
        "aws": AWS,
        "provenance": Provenance("p", ("v:spend",), {}, (), "0" * 64),
        "parts": 2,
    }
    return write_training_set(
        rows() if table is None else table, output=str(output), **options | changes
    )


def read(made, split):
    with opened_rows(made.output, made.manifest, AWS) as found:
        names = [*made.manifest.written, "cid"]
        return pa.Table.from_batches(found.batches(split, names)).combine_chunks()


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    return build(tmp_path_factory.mktemp("parquet"), formats=["parquet"])


@pytest.mark.parametrize(
    ("kind", "weight"),
    [("csv", None), ("csv", "w"), ("recordio", None), ("libsvm", None), ("libsvm", "w")],
)
def test_rows_of_a_set_of_one_format_are_those_of_parquet(tmp_path, kind, weight):
    made = build(tmp_path / "one", formats=[kind], weight=weight)
    other = build(tmp_path / "other", formats=["parquet"], weight=weight)
    for split in ("train", "validation", "test"):
        found = read(made, split)
        files = [tmp_path / f"other/{split}/parquet/part-0000{part}.parquet" for part in (0, 1)]
        expected = pa.concat_tables(map(pq.read_table, files))
        assert found.drop(["cid"]).equals(expected)
        assert found["cid"].to_pylist() == read(other, split)["cid"].to_pylist()


@pytest.mark.parametrize("kind", ["recordio", "libsvm", "csv"])
def test_floats_of_a_target_that_keeps_float32_are_as_in_its_files(tmp_path, kind, parquet):
    features = [name for name in FEATURES if name != "visits"]
    made = build(tmp_path, formats=[kind], target="xgboost", features=features)
    found, expected = read(made, "test"), read(parquet, "test")
    for name in made.manifest.outputs:
        given = expected[name].to_numpy(zero_copy_only=False).astype(np.float32)
        np.testing.assert_array_equal(
            found[name].to_numpy(zero_copy_only=False).astype(np.float32), given, err_msg=name
        )


def test_recordio_of_wide_integers_is_read_by_its_own_frames(tmp_path):
    made = build(tmp_path, formats=["recordio"], features=["spend", "visits"])
    data = (tmp_path / "train/recordio/part-00000.recordio").read_bytes()
    length = int.from_bytes(data[4:8], "little")
    # The last 8 bytes of a record are the label's only number.
    (label,) = struct.unpack("<d", data[8 + length - 8 : 8 + length])
    assert read(made, "train")["bought"][0].as_py() == label
    assert pa.types.is_integer(read(made, "train").schema.field("visits").type)


SPOILT = {
    "a record that is cut": ("recordio", lambda data: data[:-3], "last record has"),
    "a record of other features": (
        "recordio",
        lambda data: data[:4] + (9).to_bytes(4, "little") + data[8:],
        "its first record has 9 bytes",
    ),
    "a later record of others": (
        "recordio",
        lambda data: data[: len(data) // 2] + data[len(data) // 2 + 4 :] + b"0000",
        "a record is no label with",
    ),
    "a word without an index": ("libsvm", lambda data: data + b"1 7\n", "is not of 2 parts"),
    "an index beyond": ("libsvm", lambda data: data + b"1 99:7\n", "an index is none of its"),
    "no number": ("libsvm", lambda data: data + b"1 0:x\n", "Failed to parse|not valid|invalid"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_not_as_it_was_written_is_named(tmp_path, name):
    kind, spoil, words = SPOILT[name]
    made = build(tmp_path, formats=[kind], features=["spend", "joined"], parts=1)
    path = tmp_path / f"test/{kind}/part-00000.{kind}"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(TrainingSetError, match=rf"part-00000\.{kind} cannot be read: .*{words}"):
        read(made, "test")


@pytest.mark.parametrize("kind", ["csv", "recordio", "libsvm"])
def test_reports_of_all_formats_have_the_same_figures(tmp_path, kind, parquet):
    made = build(tmp_path, formats=[kind])
    found, expected = (inspect(each, AWS, LIMITS) for each in (made, parquet))
    for one in (found, expected):
        assert len(one.features) == len(FEATURES)
    # Sums of floats depend on where batches end, in their last digits.
    assert rounded(found.features) == rounded(expected.features)
    assert rounded(found.over_time) == rounded(expected.over_time)
    assert found.label == expected.label
    assert found.findings == expected.findings


def rounded(value):
    """Plain values, with floats of 9 digits."""
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def test_each_encoding_has_a_card_whose_figures_are_those_of_the_rows(parquet):
    report = inspect(parquet, AWS, LIMITS)
    cards = {feature.name: feature for feature in report.features}
    words = {name: feature.words for name, feature in cards.items()}
    # A unit makes a figure readable.
    assert words["user_agent"] == "string as hashes modulo 64"
    assert words["joined"] == "timestamp[s, tz=UTC] as time since 1970 in days"
    assert words["last_visit"] == "timestamp[us, tz=UTC] as age in hours"
    assert words["scores"].endswith("as columns")
    train = read(parquet, "train")
    for name in parquet.manifest.outputs:
        (column,) = (
            column for card in cards.values() for column in card.columns if column.name == name
        )
        values = train[name].drop_null().to_numpy().astype(np.float64)
        split = column.splits["train"]
        assert split.missing == train[name].null_count
        assert split.mean == pytest.approx(values.mean())
        assert (split.least, split.greatest) == (values.min(), values.max())
        assert column.distinct == len({*values.tolist()} | {*_values(parquet, name)})
    assert [column.name for column in cards["scores"].columns] == [
        "scores[0]",
        "scores[1]",
        "scores[2]",
    ]
    page = html(report)
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    for name in FEATURES:
        assert name in text
    assert "the strongest of 3" in text


def _values(made, name):
    for split in ("validation", "test"):
        yield from read(made, split)[name].drop_null().to_numpy().astype(np.float64).tolist()


def test_differences_are_those_of_the_rows_whatever_the_formats_are(tmp_path, parquet):
    same = build(tmp_path / "same", formats=["libsvm"])
    found = difference(parquet, same, AWS, LIMITS)
    assert found.same_content
    assert [name for name, _, _ in found.inputs] == ["formats"]
    assert all(change.psi == 0 for change in found.columns)
    assert {change.column for change in found.columns} == {*parquet.manifest.written}

    encodings = ENCODINGS | {"user_agent": Encoding(encoding="hash", buckets=8)}
    other = build(tmp_path / "other", rows(4), formats=["recordio"], encodings=encodings)
    found = difference(same, other, AWS, LIMITS)
    assert not found.same_content
    changed = {name: (was, now) for name, was, now in found.features_changed}
    assert changed["user_agent"] == (
        "string as hash int32, buckets 64",
        "string as hash int32, buckets 8",
    )
    assert changed["spend"] == (
        "double as number double",
        "double as number double, fitted to other values",
    )
    hashed = next(change for change in found.columns if change.column == "user_agent")
    assert hashed.mean_old == pytest.approx(read(same, "train")["user_agent"].to_numpy().mean())
    assert hashed.mean_new == pytest.approx(read(other, "train")["user_agent"].to_numpy().mean())
