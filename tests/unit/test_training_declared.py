"""What is declared of columns and cannot apply: refused before anything is written."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import ConfigError, TrainingSetError
from feast_dynamo_ext.sagemaker import (
    ColumnSplit,
    Encoding,
    GroupSplit,
    NoSplit,
    Provenance,
    RandomSplit,
    StratifiedSplit,
    TimeFractions,
    TimeSplit,
    load_training_set,
    verify,
    write_training_set,
)
from feast_dynamo_ext.sagemaker.definition import SplitDeclaration
from feast_dynamo_ext.sagemaker.fitting import Fitting
from feast_dynamo_ext.sagemaker.formats import FileRoles, writer
from feast_dynamo_ext.sagemaker.output_folder import open_folder
from feast_dynamo_ext.storage import LocalFiles

if TYPE_CHECKING:
    from pathlib import Path

AWS = AwsSettings()
PROVENANCE = Provenance("shop", ("sales:spend",), {"sales": "ab" * 32}, (), "cd" * 32)
START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
TIMES = pa.array([START + dt.timedelta(hours=n) for n in range(6)], pa.timestamp("us", "UTC"))


def write(output, encodings=None, split=None, **columns):
    """A set of six rows; columns but `label`, `w` and `h_...` are features."""
    given = {"cid": range(6), "event_timestamp": TIMES, "label": [0, 1] * 3} | columns
    options = {key: given.pop(key) for key in ("target", "formats", "overwrite") if key in given}
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
        (
            {"encoding": "ordinal", "missing": 2**31},
            pa.int64(),
            "`missing: 2147483648` is no int32",
        ),
        ({"encoding": "ordinal", "unknown": 2**31}, pa.int64(), "`unknown: 2147483648` is no int"),
        ({"encoding": "one_hot", "missing": 128}, pa.int64(), "`missing: 128` is no int8"),
        ({"encoding": "one_hot", "unknown": 300}, pa.int64(), "`unknown: 300` is no int8"),
        ({"encoding": "hash", "buckets": 4, "missing": -(2**32)}, pa.int64(), "is no int32"),
        ({"encoding": "list", "length": 2, "pad": 300}, pa.list_(pa.int8()), "`pad: 300.0` is no"),
        ({"encoding": "list", "length": 2, "missing": 300}, pa.list_(pa.int8()), "`missing: 300`"),
        (
            {"encoding": "epoch", "missing": 1e300},
            pa.timestamp("s"),
            "`missing: 1e+300` is no int",
        ),
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


def _hash(text: str) -> int:
    """A number from 0 to 6, as the reference says that a category is hashed."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 7


def read(output, split="train", kind="parquet"):
    return pq.read_table(output / split / kind / f"part-00000.{kind}")


BIG = 2**53 + 1


@pytest.mark.parametrize("column", ["a", "label"])
def test_recordio_for_a_script_rounds_no_whole_number(tmp_path, column):
    found = refusal(
        tmp_path,
        **{"a": range(6), column: [BIG, 1, 2, 3, 4, 5]},
        formats=["recordio", "csv"],
        target="script",
    )
    assert f"RecordIO holds float64, which would round values beyond 2^53 in `{column}`." in found


def test_a_writer_of_recordio_rounds_no_whole_number(tmp_path):
    schema = pa.schema([("y", pa.int64()), ("a", pa.int64())])
    roles = FileRoles("y", None, ("a",))
    with LocalFiles().new_file(str(tmp_path / "a.recordio"), replaces=True) as file:
        made = writer("recordio", file, schema, roles)
        made.write(pa.table({"y": [1], "a": [2**53]}, schema))
        with pytest.raises(TrainingSetError, match="Column `a` has whole numbers beyond 2"):
            made.write(pa.table({"y": [1], "a": [BIG]}, schema))


@pytest.mark.parametrize("kind", ["parquet", "csv", "recordio", "libsvm"])
@pytest.mark.parametrize("value", [1e300, -4e38])
def test_xgboost_gets_no_number_that_it_reads_as_infinite(tmp_path, kind, value):
    values = [0.5, value, 2.0, 3.0, 4.0, 5.0]
    found = refusal(tmp_path, a=values, formats=[kind], target="xgboost")
    assert "Column `a` has 1 values that are infinite, or become so as float" in found


def test_xgboost_gets_the_greatest_float32_in_parquet_and_doubles_as_they_are(tmp_path):
    values = [0.1, 3.4028234663852886e38, -3.4028234663852886e38, 1e-300, 4.0, None]
    write(tmp_path, a=values, formats=["parquet"], target="xgboost")
    assert read(tmp_path)["a"].to_pylist() == values


ANY_RULE = {
    "none": NoSplit(),
    "random": RandomSplit({"train": 0.5, "test": 0.5}),
    "group": GroupSplit({"train": 0.5, "test": 0.5}, ("cid",)),
    "stratified": StratifiedSplit({"train": 0.5, "test": 0.5}),
    "column": ColumnSplit("h_s"),
    "time": TimeSplit(validation_from=START + dt.timedelta(hours=3)),
    "fractions": TimeFractions({"train": 0.5, "test": 0.5}),
}


@pytest.mark.parametrize("rule", ANY_RULE)
@pytest.mark.parametrize(
    ("times", "words"),
    [
        (
            pa.array([None, *TIMES.to_pylist()[1:]], TIMES.type),
            "The event timestamp is missing in 1 of 6 rows",
        ),
        (pa.array(range(6)), "The event timestamp column holds int64, not timestamps or dates"),
        (pa.array(["2026-01-01"] * 6), "column holds string, not timestamps or dates"),
    ],
)
def test_every_row_has_an_event_time(tmp_path, rule, times, words):
    given = {"a": range(6), "h_s": ["train", "test"] * 3, "event_timestamp": times}
    assert words in refusal(tmp_path, split=ANY_RULE[rule], **given)


HALVES = pa.array(np.array([1, 2, 1, 2, 3, np.nan], np.float16))


@pytest.mark.parametrize(
    ("values", "declared", "expected"),
    [
        (HALVES, {}, {"a": [1.0, 2.0, 1.0, 2.0, 3.0, None]}),
        (HALVES, {"missing": "mean"}, {"a": [1.0, 2.0, 1.0, 2.0, 3.0, pytest.approx(1.8)]}),
        (HALVES, {"encoding": "ordinal"}, {"a": [0, 1, 0, 1, 2, None]}),
        (
            pa.array([[1.5], [2.5], [], None, [1], [2]], pa.list_(pa.float16())),
            {"encoding": "list", "length": 1, "pad": 0},
            {"a[0]": [1.5, 2.5, 0.0, None, 1.0, 2.0]},
        ),
        # Whole numbers with missing values, as pandas holds them.
        (
            [1.0, 2.0, None, 1.0, 2.0, 3.0],
            {"encoding": "ordinal", "categories": [1, 2, 3]},
            {"a": [0, 1, None, 0, 1, 2]},
        ),
        ([7.0, 7.0, None, 7.0, -0.0, 0.0], {"encoding": "ordinal"}, {"a": [0, 0, None, 0, 1, 1]}),
        (
            [1.0, 1.0, None, 1.0, 1.0, 2.0],
            {"encoding": "one_hot", "missing": 0},
            {"a=1": [1, 1, 0, 1, 1, 0], "a=2": [0, 0, 0, 0, 0, 1]},
        ),
        (
            [1.0, 2.0, None, 1.0, 2.0, 3.0],
            {"encoding": "hash", "buckets": 7},
            {"a": [_hash("1"), _hash("2"), None, _hash("1"), _hash("2"), _hash("3")]},
        ),
        (
            [2**60, 1, 2, 3, 4, None],
            {"encoding": "hash", "buckets": 7},
            {"a": [*map(_hash, (str(2**60), "1", "2", "3", "4")), None]},
        ),
        (
            [2**60, 2**60, 2, 2, 2, None],
            {"encoding": "ordinal"},
            {"a": [1, 1, 0, 0, 0, None]},
        ),
        (
            pa.array([2**64 - 1, 1, None, 3, 4, 5], pa.uint64()),
            {"missing": 0},
            {"a": [2**64 - 1, 1, 0, 3, 4, 5]},
        ),
    ],
)
def test_what_is_legal_is_written(tmp_path, values, declared, expected):
    made = write(tmp_path, {"a": declared}, a=values, formats=["parquet"])
    assert {name: read(tmp_path)[name].to_pylist() for name in made.manifest.outputs} == expected
    assert load_training_set(str(tmp_path), AWS) == made


def test_decimals_that_are_kept(tmp_path):
    kinds = {"a": pa.decimal128(5, 2), "b": pa.decimal256(40, 1), "c": pa.decimal32(4, 0)}
    given = {
        "a": pa.array([Decimal("1.10")] * 5 + [None], kinds["a"]),
        "b": pa.array([Decimal("123456789012345678901.5")] * 6, kinds["b"]),
        "c": pa.array([Decimal("120")] * 6, kinds["c"]),
    }
    encodings = {name: {"encoding": "keep"} for name in given}
    made = write(tmp_path, encodings, target="script", formats=["parquet"], **given)
    assert {name: read(tmp_path)[name].to_pylist() for name in given} == {
        name: values.to_pylist() for name, values in given.items()
    }
    assert load_training_set(str(tmp_path), AWS) == made


@pytest.mark.parametrize("output", ["a\0b", "s3://bucket/a\0b"])
def test_an_output_with_a_nul_is_refused(output):
    with pytest.raises(TrainingSetError, match="which is no path: it has a NUL in it"):
        open_folder(output, AWS)


@pytest.mark.parametrize("output", ["s3://bkt//q//", "s3://bkt//q", "s3://bkt/a//b", "s3:///x"])
def test_an_output_with_an_empty_name_is_refused(output):
    with pytest.raises(TrainingSetError, match="with an empty name before a slash"):
        open_folder(output, AwsSettings(region="eu-west-1"))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"building": ' * 100_000])
def test_a_manifest_that_is_nested_without_end_is_none(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(
        TrainingSetError, match=r"(is not a training set's manifest|a process has begun)"
    ):
        load_training_set(str(tmp_path), AWS)


DAY = dt.date(2026, 1, 1), dt.date(2026, 1, 2)
NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.timezone.utc)


@pytest.mark.parametrize(
    ("column", "values", "kept"),
    [
        (pa.array([*DAY] * 3), {"train": DAY[0], "test": [DAY[1]]}, ["2026-01-01"]),
        (pa.array([*DAY] * 3), {"train": "2026-01-01", "test": "2026-01-02"}, ["2026-01-01"]),
        (["2026-01-01", "2026-01-02"] * 3, {"train": DAY[0], "test": DAY[1]}, ["2026-01-01"]),
        (
            pa.array([NOON, START] * 3, pa.timestamp("us", "Europe/Paris")),
            {"train": NOON, "test": START},
            ["2026-01-01T12:00:00+00:00"],
        ),
        (
            pa.array([NOON, START] * 3, pa.timestamp("ns")),
            {"train": NOON.replace(tzinfo=None), "test": START},
            ["2026-01-01T12:00:00+00:00"],
        ),
        ([None, "x"] * 3, {"train": None, "test": "x"}, [None]),
        ([True, False] * 3, {"train": True, "test": False}, [True]),
    ],
)
def test_a_split_by_a_column_of_dates(tmp_path, column, values, kept):
    rule = SplitDeclaration(rule="column", column="h_s", values=values).to_rule()
    assert rule == ColumnSplit("h_s", values)
    made = write(tmp_path, split=rule, a=range(6), h_s=column)
    assert read(tmp_path)["a"].to_pylist() == [0, 2, 4]
    assert made.manifest.split.as_manifest()["values"]["train"] == kept
    assert load_training_set(str(tmp_path), AWS) == made
    declared = SplitDeclaration(rule="column", column="h_s", values=values)
    again = SplitDeclaration(**declared.model_dump(mode="json", exclude_unset=True))
    assert again.to_rule() == rule


@pytest.mark.parametrize(
    ("value", "kind"),
    [([["a"]], "list"), (b"a", "bytes"), (float("nan"), "float"), ({"a": 1}, "dict")],
)
def test_a_split_goes_by_no_such_value(value, kind):
    words = f"and not by a {kind}. Make the column"
    with pytest.raises(TrainingSetError) as caught:
        ColumnSplit("s", {"train": value, "test": "b"})
    assert words in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        SplitDeclaration(rule="column", column="s", values={"train": value, "test": "b"})
    assert words in str(caught.value)


def contents(folder) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


FOREIGN = ("train/csv/part-00000.csv", "test/parquet/part-00007.parquet", "rows/train.parquet")


@pytest.mark.parametrize("path", FOREIGN)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_of_others_stays_where_no_set_is(tmp_path, path, overwrite):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    with pytest.raises(TrainingSetError) as caught:
        write(tmp_path, a=range(6), overwrite=overwrite)
    assert f"holds 1 files that no training set wrote, and a job would read as data: {path}" in (
        str(caught.value)
    )
    assert contents(tmp_path) == {path: b"precious"}


@pytest.mark.parametrize("path", FOREIGN[1:])
def test_a_file_of_others_stays_beside_a_set(tmp_path, path):
    write(tmp_path, a=range(6))
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(TrainingSetError, match="holds 1 files that no training set wrote"):
        write(tmp_path, a=range(6), overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", ["{}", "[[", '{"files": [{"path": "../precious"}]}'])
def test_no_file_goes_by_a_manifest_that_does_not_name_it(tmp_path, text):
    output = tmp_path / "set"
    write(output, a=range(6))
    (tmp_path / "precious").write_text("precious")
    (output / "manifest.json").write_text(text)
    before = contents(tmp_path)
    with pytest.raises(TrainingSetError, match="files that no training set wrote"):
        write(output, a=range(6), overwrite=True)
    assert contents(tmp_path) == before


def test_files_behind_a_link_in_place_of_a_split_stay(tmp_path):
    other, output = tmp_path / "other", tmp_path / "set"
    (other / "csv").mkdir(parents=True)
    (other / "csv/part-00000.csv").write_text("precious")
    output.mkdir()
    (output / "train").symlink_to(other)
    with pytest.raises(TrainingSetError, match="holds 1 files that no training set wrote"):
        write(output, a=range(6), overwrite=True)
    assert contents(other) == {"csv/part-00000.csv": b"precious"}


def test_an_interrupted_build_is_replaced(tmp_path):
    write(tmp_path, a=range(6))
    before = contents(tmp_path)
    (tmp_path / "manifest.json").write_text(
        '{"building": "ab", "since": "2026-01-01", "host": "h", "process": 1}'
    )
    (tmp_path / "train/csv/part-00001.csv").write_text("half")
    write(tmp_path, a=range(6))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "make", [lambda path: path.symlink_to("/nowhere/at/all"), os.mkfifo], ids=["link", "pipe"]
)
def test_what_is_no_file_in_a_channel_is_seen(tmp_path, make):
    write(tmp_path, a=range(6))
    make(tmp_path / "train/csv/extra.csv")
    assert verify(str(tmp_path), AWS).unexpected == ("train/csv/extra.csv",)
    with pytest.raises(TrainingSetError, match=r"read as data: train/csv/extra\.csv"):
        write(tmp_path, a=range(6), overwrite=True)
    (tmp_path / "train/csv/extra.csv").unlink()
    (tmp_path / "train/csv/part-00000.csv").unlink()
    make(tmp_path / "train/csv/part-00000.csv")
    found = verify(str(tmp_path), AWS)
    assert (found.missing, found.unexpected) == (("train/csv/part-00000.csv",), ())


@pytest.mark.parametrize("declared", [{"encoding": "age"}, {"encoding": "epoch", "unit": "ns"}])
def test_a_time_too_far_to_be_counted_says_what_to_do(tmp_path, declared):
    since = pa.array([dt.date(9999, 12, 31)] * 6).cast(pa.timestamp("us"))
    times = TIMES.cast(pa.timestamp("ns", "UTC"))
    found = refusal(tmp_path, {"a": declared}, a=since, event_timestamp=times)
    assert found.startswith("Column `a`: a time is so far from the others that it cannot be")
    assert "Replace it by null, which reads as missing" in found
