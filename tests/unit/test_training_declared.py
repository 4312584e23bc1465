"""What is declared of columns and cannot apply: refused before anything is written."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pytest

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import ConfigError, TrainingSetError
from feast_dynamo_ext.sagemaker import (
    Encoding,
    NoSplit,
    Provenance,
    TimeSplit,
    write_training_set,
)
from feast_dynamo_ext.sagemaker.fitting import Fitting

AWS = AwsSettings()
PROVENANCE = Provenance("shop", ("sales:spend",), {"sales": "ab" * 32}, (), "cd" * 32)
START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
TIMES = pa.array([START + dt.timedelta(hours=n) for n in range(6)], pa.timestamp("us", "UTC"))


def write(output, encodings=None, split=None, **columns):
    """A set of six rows; columns but `label`, `w` and `h_...` are features."""
    given = {"cid": range(6), "event_timestamp": TIMES, "label": [0, 1] * 3} | columns
    options = {key: given.pop(key) for key in ("target", "formats") if key in given}
    table = pa.table({name: pa.array(values) for name, values in given.items()})
    known = {"cid", "event_timestamp", "label", "w"}
    features = [name for name in given if name not in known and not name.startswith("h_")]
    return write_training_set(
        table,
        label="label",
        event_timestamp="event_timestamp",
        entity_columns=["cid"],
        features=features,
        output=str(output),
        split=split or NoSplit(),
        aws=AWS,
        provenance=PROVENANCE,
        weight="w" if "w" in given else None,
        helpers=[name for name in given if name.startswith("h_")],
        encodings={name: Encoding(**each) for name, each in (encodings or {}).items()},
        **options,
    )


def refusal(output: Path, *args, **columns) -> str:
    """The error of a set that cannot be, which leaves no file."""
    with pytest.raises(TrainingSetError) as caught:
        write(output, *args, **columns)
    assert [path for path in output.rglob("*") if path.is_file()] == []
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("aa", "`aa` is no column. Did you mean `a`?"),
        ("lable", "`lable` is no column. Did you mean `label`"),
        ("cid", "`cid` has an encoding, and is kept as it is"),
        ("h_x", "`h_x` has an encoding, and is kept as it is"),
        ("event_timestamp", "`event_timestamp` is the event time, and kept as it is"),
    ],
)
def test_an_encoding_of_nothing_is_an_error(tmp_path, name, words):
    found = refusal(tmp_path, {name: {"missing": 0}}, a=range(6), h_x=range(6))
    assert found.startswith("Declarations that apply to no column: 1: ")
    assert words in found


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"buckets": 2}, "`buckets` is an option of `hash`: name the `encoding`"),
        ({"unit": "day"}, "`unit` is an option of `epoch` and `age`: name the `encoding`"),
        ({"pad": 0}, "`pad` is an option of `list`: name the `encoding`"),
        ({"longer": "cut"}, "`longer` is an option of `list`: name the `encoding`"),
        ({"length": 2}, "`length` is an option of `list`: name the `encoding`"),
        ({"categories": ["a"]}, "`categories` is an option of `ordinal` and `one_hot`: name"),
        ({"unknown": 3}, "`unknown` is an option of `ordinal` and `one_hot`: name"),
        ({"min_count": 2}, "`min_count` is an option of `ordinal` and `one_hot`: name"),
        ({"encoding": "ordinal", "categories": []}, "`categories` is empty: name them, or"),
        ({"encoding": "one_hot", "categories": []}, "`categories` is empty: name them, or"),
        (
            {"encoding": "ordinal", "categories": ["a"], "min_count": 3},
            "all `categories` are named: `min_count` cuts none off",
        ),
        (
            {"encoding": "one_hot", "categories": ["a"], "max_categories": 1},
            "all `categories` are named: `max_categories` cuts none off",
        ),
        ({"missing": float("inf")}, "`missing` is `inf`: input should be a finite number"),
        ({"missing": float("nan")}, "`missing` is `nan`: input should be a finite number"),
        (
            {"encoding": "list", "length": 2, "pad": float("-inf")},
            "`pad` is `-inf`: input should be a finite number",
        ),
    ],
)
def test_an_option_that_applies_to_nothing_is_an_error(declared, words):
    with pytest.raises(ConfigError) as caught:
        Encoding(**declared)
    assert words in str(caught.value)


LABEL_WORDS = "and nothing stands for a label or a weight: a row without one, or with a class"


@pytest.mark.parametrize(
    ("encodings", "columns", "words"),
    [
        (
            {"label": {"encoding": "ordinal", "missing": 0}},
            {"label": list("ababac")},
            f"The label `label` has the option `missing`, {LABEL_WORDS}",
        ),
        (
            {"label": {"encoding": "ordinal", "unknown": -1}},
            {"label": list("ababac")},
            f"The label `label` has the option `unknown`, {LABEL_WORDS}",
        ),
        (
            {"label": {"missing": "mean"}},
            {},
            f"The label `label` has the option `missing`, {LABEL_WORDS}",
        ),
        (
            {"w": {"missing": 1}},
            {"w": [1.0] * 6},
            f"The weight `w` has the option `missing`, {LABEL_WORDS}",
        ),
        (
            {"w": {"encoding": "ordinal"}},
            {"w": ["1"] * 6},
            "The weight `w` cannot be encoded by `ordinal`: use one of number, boolean.",
        ),
        (
            {"w": {"encoding": "one_hot"}},
            {"w": ["1"] * 6},
            "The weight `w` cannot be encoded by `one_hot`: use one of number, boolean.",
        ),
        (
            {"w": {"encoding": "hash", "buckets": 4}},
            {"w": [1] * 6},
            "The weight `w` cannot be encoded by `hash`: use one of number, boolean.",
        ),
        (
            {"w": {"encoding": "list", "length": 2}},
            {"w": [[1, 2]] * 6},
            "The weight `w` cannot be encoded by `list`: use one of number, boolean.",
        ),
        (
            {"w": {"encoding": "epoch"}},
            {"w": TIMES},
            "The weight `w` cannot be encoded by `epoch`: use one of number, boolean.",
        ),
        ({"label": {"encoding": "hash", "buckets": 4}}, {}, "cannot be encoded by `hash`"),
    ],
)
def test_labels_and_weights_are_numbers_that_are_there(tmp_path, encodings, columns, words):
    given = {"a": range(6)} | columns
    split = TimeSplit(validation_from=TIMES[5].as_py())
    assert words in refusal(tmp_path, encodings, split, **given)


WIDER = "Choose one, or give the column a wider type"


@pytest.mark.parametrize(
    ("declared", "kind", "words"),
    [
        ({"missing": -999}, pa.int8(), f"whole numbers from -128 to 127 are. {WIDER}"),
        ({"missing": -1}, pa.uint8(), f"whole numbers from 0 to 255 are. {WIDER}"),
        ({"missing": -1}, pa.uint64(), "from 0 to 9007199254740991 are. "),
        ({"missing": 3_000_000_000}, pa.int32(), "from -2147483648 to 2147483647 are. "),
        ({"missing": 2**53 + 1}, pa.int64(), "from -9007199254740991 to 9007199254740991 are"),
        ({"missing": 0.5}, pa.bool_(), "`missing: 0.5` is no int64"),
        ({"missing": "mean"}, pa.bool_(), "`missing: mean` is for numbers; declare `encoding: nu"),
        ({"missing": "median"}, pa.bool_(), "`missing: median` is for numbers; declare"),
        ({"missing": 1e39}, pa.float32(), "`missing: 1e+39` is beyond float"),
        ({"encoding": "ordinal", "missing": 2**31}, pa.int64(), "`missing: 2147483648` is no int32"),
        ({"encoding": "ordinal", "unknown": 2**31}, pa.int64(), "`unknown: 2147483648` is no int"),
        ({"encoding": "one_hot", "missing": 128}, pa.int64(), "`missing: 128` is no int8"),
        ({"encoding": "one_hot", "unknown": 300}, pa.int64(), "`unknown: 300` is no int8"),
        ({"encoding": "hash", "buckets": 4, "missing": -(2**32)}, pa.int64(), "is no int32"),
        ({"encoding": "list", "length": 2, "pad": 300}, pa.list_(pa.int8()), "`pad: 300.0` is no"),
        ({"encoding": "list", "length": 2, "missing": 300}, pa.list_(pa.int8()), "`missing: 300`"),
        ({"encoding": "epoch", "missing": 1e300}, pa.timestamp("s"), "`missing: 1e+300` is no int"),
        ({"encoding": "boolean", "missing": 1e30}, pa.bool_(), "`missing: 1e+30` is no int64"),
    ],
)
def test_a_fill_that_the_column_cannot_hold_is_an_error_without_any_null(declared, kind, words):
    with pytest.raises(TrainingSetError) as caught:
        Fitting({"x": Encoding(**declared)}, {"x": kind})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("declared", "kind", "values", "expected"),
    [
        ({"missing": -128}, pa.int8(), [None, 1], [-128, 1]),
        ({"missing": 255}, pa.uint8(), [None, 1], [255, 1]),
        ({"missing": 2**53 - 1}, pa.int64(), [None, 1], [2**53 - 1, 1]),
        ({"missing": 0}, pa.uint64(), [None, 2**64 - 1], [0, 2**64 - 1]),
        ({"missing": 1e300}, pa.float64(), [None, 1.0], [1e300, 1.0]),
        ({"missing": 0.5}, pa.float32(), [None, 1.0], [0.5, 1.0]),
        ({"missing": -1}, pa.bool_(), [None, True], [-1, 1]),
    ],
)
def test_a_fill_at_the_edge_of_the_type_is_written(declared, kind, values, expected):
    (fitted,) = Fitting({"x": Encoding(**declared)}, {"x": kind}).finish().values()
    (made,) = fitted.encode(pa.array(values, kind))
    assert made.to_pylist() == expected


def test_a_column_that_is_kept_is_not_filled(tmp_path):
    words = "`a` (string): it is kept as it is, so `missing` applies to nothing: leave it out"
    assert words in refusal(tmp_path, {"a": {"missing": 0}}, a=list("abcdef"), target="script")
