"""Encodings of columns: what each makes of values, and that only rows that train are fitted."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import statistics
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from examples import cases
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.errors import ConfigError, TrainingSetError
from feast_dynamo_ext.sagemaker.encodings import Encoding, FittedEncoding
from feast_dynamo_ext.sagemaker.fitting import ExactSum, Fitting, TrainRows

UTC = dt.timezone.utc


def fit(values, assigned=None, batch_rows=None, *, keeps=False, **declared) -> FittedEncoding:
    """The encoding of a column `x`, fitted on those rows to which 0 is assigned."""
    array = values if isinstance(values, pa.Array) else pa.array(values)
    assigned = np.zeros(len(array), np.int8) if assigned is None else np.array(assigned, np.int8)
    encoding = Encoding(**declared)
    fitting = Fitting({"x": encoding}, {"x": array.type}, keeps=keeps)
    size = batch_rows or max(1, len(array))
    while fitting.columns:
        for start in range(0, len(array), size):
            batch = pa.record_batch({"x": array.slice(start, size)})
            fitting.add(TrainRows(batch, assigned[start : start + size]))
        fitting.end_pass()
    return fitting.finish()["x"]


def encoded(fitted: FittedEncoding, values, event_times=None) -> dict[str, list]:
    array = values if isinstance(values, pa.Array) else pa.array(values)
    found = fitted.encode(array, event_times)
    assert tuple(str(column.type) for column in found) == fitted.types
    return dict(zip(fitted.outputs, (column.to_pylist() for column in found), strict=True))


CITIES = ["Ulm", "Bonn", "Ulm", None, "Köln", "Bonn", "Ulm"]


def test_codes_are_by_count_then_by_text():
    fitted = fit(["b", "a", "c", "c", None, "b", "a", "d"], encoding="ordinal")
    assert fitted.state["categories"] == ["a", "b", "c", "d"]
    assert fit(CITIES, encoding="ordinal").state["categories"] == ["Ulm", "Bonn", "Köln"]


@pytest.mark.parametrize(
    ("declared", "values", "expected"),
    [
        ({}, ["Ulm", "Bonn", "Rom", None], {"x": [0, 1, -1, None]}),
        ({"unknown": 99, "missing": -1}, ["Rom", None, "Köln"], {"x": [99, -1, 2]}),
        ({"unknown": "missing"}, ["Rom", None, "Ulm"], {"x": [None, None, 0]}),
        ({"unknown": "missing", "missing": 7}, ["Rom", None, "Ulm"], {"x": [7, 7, 0]}),
        ({"min_count": 2}, ["Köln", "Bonn"], {"x": [-1, 1]}),
        ({"max_categories": 1}, ["Bonn", "Ulm"], {"x": [-1, 0]}),
        ({"categories": ["Rom", "Ulm"]}, ["Ulm", "Rom", "Bonn"], {"x": [1, 0, -1]}),
    ],
)
def test_ordinal(declared, values, expected):
    assert encoded(fit(CITIES, encoding="ordinal", **declared), values) == expected


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        (
            {},
            {"x=Ulm": [1, 0, 0, None], "x=Bonn": [0, 1, 0, None], "x=Köln": [0, 0, 0, None]},
        ),
        (
            {"missing": 0, "unknown": "column", "max_categories": 1},
            {"x=Ulm": [1, 0, 0, 0], "x=(unknown)": [0, 1, 1, 0]},
        ),
        ({"unknown": "missing", "max_categories": 1}, {"x=Ulm": [1, None, None, None]}),
        ({"unknown": -1, "categories": ["Bonn"]}, {"x=Bonn": [-1, 1, -1, None]}),
    ],
)
def test_one_hot(declared, expected):
    fitted = fit(CITIES, encoding="one_hot", **declared)
    assert encoded(fitted, ["Ulm", "Bonn", "Rom", None]) == expected


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (["Ulm", "Köln", "", None, "Ulm"], ["Ulm", "Köln", "", None, "Ulm"]),
        ([5, -3, None], ["5", "-3", None]),
        ([True, False, None], ["true", "false", None]),
        ([5.0, None], ["5", None]),
    ],
)
def test_a_hash_is_blake2b_modulo_buckets(values, texts):
    expected = [
        None
        if text is None
        else int(hashlib.blake2b(text.encode("utf-8"), digest_size=8).hexdigest(), 16) % 1000
        for text in texts
    ]
    assert encoded(fit(values, encoding="hash", buckets=1000), values) == {"x": expected}


def test_hashes_do_not_change_from_version_to_version():
    fitted = fit(["a"], encoding="hash", buckets=1_000_003)
    assert encoded(fitted, ["Ulm", "Bonn"]) == {"x": [29975, 569435]}  # b2sum -l 64


@pytest.mark.parametrize(
    ("array", "declared", "kind", "expected"),
    [
        (pa.array([1, None, 3], pa.int32()), {}, "int32", [1, None, 3]),
        (pa.array([1.5, float("nan")], pa.float32()), {}, "float", [1.5, None]),
        (pa.array([1.5], pa.float16()), {}, "float", [1.5]),
        (pa.array([Decimal("0.3"), None]), {}, "double", [0.3, None]),
        (pa.nulls(2), {}, "double", [None, None]),
        (pa.array([True, None]), {}, "int64", [1, None]),
        (pa.array([True, None]), {"encoding": "number"}, "int64", [1, None]),
        (pa.array([1, 0]), {"encoding": "boolean"}, "int64", [1, 0]),
        (pa.array([True, None]), {"missing": -1}, "int64", [1, -1]),
        (pa.array([1, None]), {"missing": 0}, "int64", [1, 0]),
        (pa.array([1, None]), {"missing": 0.5}, "double", [1.0, 0.5]),
        (pa.array([1, None, 2, 6]), {"missing": "mean"}, "double", [1, 3, 2, 6]),
        (pa.array([1, None, 2, 6, 7]), {"missing": "median"}, "double", [1, 4, 2, 6, 7]),
        (pa.array([float("nan"), 0.5]), {"missing": "mean"}, "double", [0.5, 0.5]),
    ],
)
def test_numbers_and_booleans(array, declared, kind, expected):
    fitted = fit(array, **declared)
    assert fitted.types == (kind,)
    assert encoded(fitted, array) == {"x": expected}


def test_integers_with_missing_values_are_doubles_where_a_set_says_so():
    array = pa.array([1, None])
    assert encoded(fit(array).nullable(), array) == {"x": [1.0, None]}
    with pytest.raises(TrainingSetError, match="Column `x`: 1 of 1 values of type int64"):
        fit(array).nullable().encode(pa.array([2**53 + 1]))


MOMENT = dt.datetime(2026, 3, 1, 12, 0, 0, 500_000, tzinfo=UTC)


@pytest.mark.parametrize("kind", [pa.timestamp(unit, "UTC") for unit in ("ms", "us", "ns")])
@pytest.mark.parametrize(
    ("unit", "expected"),
    [("s", 1_772_366_400), ("ms", 1_772_366_400_500), ("h", 492_324), ("day", 20_513)],
)
def test_epoch_is_whole_units_rounded_down(kind, unit, expected):
    fitted = fit(pa.array([MOMENT], kind), encoding="epoch", unit=unit)
    assert encoded(fitted, pa.array([MOMENT, None], kind)) == {"x": [expected, None]}
    before = pa.array([dt.datetime(1969, 12, 31, 23, tzinfo=UTC)], kind)
    assert encoded(fit(before, encoding="epoch", unit="day"), before) == {"x": [-1]}


def test_age_counts_from_the_value_to_the_event_time_in_any_units():
    days = pa.array([dt.date(2026, 1, 1), None, dt.date(2026, 3, 2)])
    times = pa.array([dt.datetime(2026, 1, 2, 12, tzinfo=UTC)] * 3, pa.timestamp("ns", "UTC"))
    fitted = fit(days, encoding="age", unit="day")
    assert encoded(fitted, days, times) == {"x": [1.5, None, -58.5]}
    with pytest.raises(TrainingSetError, match="needs the rows' event times"):
        fitted.encode(days)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({}, {"x[0]": [1, None, None, 5], "x[1]": [None, None, None, 6]}),
        ({"pad": 0}, {"x[0]": [1, 0, None, 5], "x[1]": [0, 0, None, 6]}),
        ({"pad": 0, "missing": -1}, {"x[0]": [1, 0, -1, 5], "x[1]": [0, 0, -1, 6]}),
        ({"missing": 0.5}, {"x[0]": [1, 0.5, 0.5, 5], "x[1]": [0.5, 0.5, 0.5, 6]}),
    ],
)
def test_lists_have_a_column_per_element(declared, expected):
    lists = [[1], [], None, [5, 6]]
    fitted = fit(lists, encoding="list", length=2, **declared)
    assert encoded(fitted, lists) == expected
    assert encoded(fitted, pa.array(lists, pa.large_list(pa.int64()))) == expected


def test_longer_lists_are_refused_or_cut():
    fitted = fit([[1]], encoding="list", length=1)
    with pytest.raises(TrainingSetError, match="Column `x`: 1 of 2 lists have more than 1"):
        fitted.encode(pa.array([[1, 2], [3]]))
    cut = fit([[1]], encoding="list", length=1, longer="cut")
    assert encoded(cut, [[1, 2], [3]]) == {"x[0]": [1, 3]}


def test_a_script_may_keep_texts_and_times():
    times = pa.array([MOMENT, None], pa.timestamp("us", "UTC"))
    assert encoded(fit(["a", None], keeps=True), ["b", None]) == {"x": ["b", None]}
    fitted = fit(times, encoding="keep")
    assert FittedEncoding.from_json(fitted.to_json()).encode(times)[0].equals(times)


@pytest.mark.parametrize(
    ("array", "declared", "words"),
    [
        (pa.array(["a"]), {}, "`ordinal`, `one_hot` or `hash`, or `keep` for the target"),
        (pa.array([MOMENT]), {}, "declare its encoding: `epoch` or `age`"),
        (pa.array([[1]]), {}, "declare its encoding: `list` with a `length`"),
        (pa.array([{"a": 1}]), {}, "no encoding takes this type"),
        (pa.array([b"a"]), {"encoding": "hash", "buckets": 9}, "binary has no categories"),
        (pa.array(["a"]), {"encoding": "number"}, "`number` does not take string"),
        (pa.array([1]), {"encoding": "epoch"}, "`epoch` does not take int64"),
        (pa.array([["a"]]), {"encoding": "list", "length": 1}, "`list` does not take list"),
        (pa.array([1]), {"encoding": "ordinal", "categories": ["1"]}, "column's type: int"),
    ],
)
def test_types_that_need_another_encoding(array, declared, words):
    with pytest.raises(TrainingSetError) as caught:
        fit(array, **declared)
    assert f"`x` ({array.type}): " in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"encoding": "onehot"}, "`encoding` is `onehot`: input should be 'number', 'boolean'"),
        ({"encodin": "hash"}, "there is no setting `encodin`. Did you mean `encoding`?"),
        ({"encoding": "hash"}, "`hash` needs `buckets`"),
        ({"encoding": "list"}, "`list` needs `length`"),
        ({"encoding": "ordinal", "buckets": 5}, "`buckets` is not an option of `ordinal`"),
        ({"encoding": "boolean", "missing": "mean"}, "is for numbers, not for `boolean`"),
        ({"encoding": "ordinal", "unknown": "column"}, "`unknown: column` is for `one_hot`"),
        ({"encoding": "ordinal", "missing": 0.5}, "must be a whole number"),
        ({"encoding": "keep", "missing": 0}, "leaves a column as it is"),
        ({"encoding": "ordinal", "categories": ["a", "a"]}, "names one of them twice"),
    ],
)
def test_a_declaration_that_cannot_be(declared, words):
    with pytest.raises(ConfigError) as caught:
        Encoding(**declared)
    assert words in str(caught.value)


def test_values_that_cannot_be_encoded_name_the_column_and_no_value():
    with pytest.raises(TrainingSetError, match="Column `x`: 1 of 2 values are infinite"):
        fit([1.0]).encode(pa.array([float("inf"), 1.0]))
    with pytest.raises(TrainingSetError, match="have no category of it"):
        fit(pa.array([None], pa.string()), encoding="ordinal")
    with pytest.raises(TrainingSetError, match="it has no mean"):
        fit(pa.array([None, 1.0]), [0, 1], missing="mean")


def test_too_many_categories_are_refused_with_what_to_do():
    with pytest.raises(TrainingSetError, match=r"1,001 categories are more than the 1,000"):
        fit(list(range(1001)), encoding="one_hot")


def test_fitting_takes_no_rows_but_those_that_train():
    fitting = Fitting({"x": Encoding(encoding="ordinal")}, {"x": pa.string()})
    with pytest.raises(TypeError, match="fitted on TrainRows, not on RecordBatch"):
        fitting.add(pa.record_batch({"x": ["a"]}))
    with pytest.raises(TrainingSetError, match="not fitted yet"):
        fitting.finish()


@pytest.mark.parametrize(
    ("declared", "values"),
    [
        ({"encoding": "ordinal"}, ["a", "b", "b", "c", "c", "c"]),
        ({"encoding": "one_hot"}, ["a", "b", "b", "c", "c", "c"]),
        ({"missing": "mean"}, [1, 2, 3, 40, 50, 60]),
        ({"missing": "median"}, [1, 2, 3, 40, 50, 60]),
    ],
)
def test_rows_that_do_not_train_change_nothing_though_they_would(declared, values):
    alone = fit(values[:3], **declared)
    beside = fit(values, [0, 0, 0, 1, 2, -1], **declared)
    everything = fit(values, **declared)
    assert json.dumps(alone.to_json()) == json.dumps(beside.to_json())
    assert alone.state != everything.state


KINDS = st.sampled_from(
    [
        {"encoding": "ordinal"},
        {"encoding": "ordinal", "min_count": 2, "unknown": "missing"},
        {"encoding": "one_hot", "max_categories": 2, "unknown": "column", "missing": 0},
        {"encoding": "hash", "buckets": 7},
    ]
)
TEXTS = st.one_of(st.none(), st.sampled_from("abcdeÄß"))


def by_hand(declared, train, values):
    """What the encoding of texts has to be, a row at a time."""
    counts = Counter(value for value in train if value is not None)
    known = [value for value in counts if counts[value] >= declared.get("min_count", 1)]
    known = sorted(known, key=lambda value: (-counts[value], value))
    known = known[: declared.get("max_categories")]
    rows = []
    for value in values:
        if declared["encoding"] == "hash":
            digest = hashlib.blake2b((value or "").encode(), digest_size=8).digest()
            rows.append([None if value is None else int.from_bytes(digest, "big") % 7])
        elif declared["encoding"] == "ordinal":
            other = None if "unknown" in declared else -1
            code = known.index(value) if value in known else other
            rows.append([None if value is None else code])
        else:
            is_other = value is not None and value not in known
            rows.append([int(value == each) for each in known] + [int(is_other)])
    return rows


@cases(150)
@given(
    declared=KINDS,
    rows=st.lists(st.tuples(TEXTS, st.sampled_from([0, 0, 1, 2, -1])), max_size=30),
    size=st.integers(1, 9),
    dictionary=st.booleans(),
)
def test_categories_are_those_of_a_simple_encoder(declared, rows, size, dictionary):
    rows = [("z", 0), ("z", 0), *rows]
    values, assigned = [value for value, _ in rows], [split for _, split in rows]
    array = pa.array(values, pa.string())
    array = array.dictionary_encode() if dictionary else array
    fitted = fit(array, assigned, size, **declared)
    fitted = FittedEncoding.from_json(json.loads(json.dumps(fitted.to_json())))
    train = [value for value, split in rows if split == 0]
    found = [column.to_pylist() for column in fitted.encode(array)]
    assert [list(row) for row in zip(*found, strict=True)] == by_hand(declared, train, values)


NUMBERS = st.one_of(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=40),
)


@cases(150)
@given(values=NUMBERS, size=st.integers(1, 9))
def test_sums_are_exact_in_any_pieces(values, size):
    found = ExactSum()
    for start in range(0, len(values), size):
        found.add(np.array(values[start : start + size]))
    assert found.total == sum(map(Fraction, values))
    assert found.mean == float(sum(map(Fraction, values)) / len(values))


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "uint64", "float32"])
def test_sums_of_narrow_numbers_are_exact(kind):
    values = np.array([100, 120, 7, 0], kind)
    found = ExactSum()
    found.add(np.tile(values, 1000))
    assert (found.total, found.count) == (227_000, 4_000)


@cases(150)
@given(values=NUMBERS, size=st.integers(1, 9))
def test_the_median_is_exact(values, size):
    fitted = fit(pa.array([*values, None]), None, size, missing="median")
    expected = statistics.median(map(Fraction, values))
    assert fitted.state["missing"] == float(expected)
