"""Builds of encoded training sets: what is in the files, and that no build leaves half a one."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from examples import cases
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker import (
    ColumnSplit,
    Encoding,
    GroupSplit,
    Manifest,
    NoSplit,
    Provenance,
    TimeFractions,
    TimeSplit,
    hash_table,
    load_training_set,
    verify,
    write_training_set,
)
from feast_dynamo_ext.sagemaker.content_hash import ColumnHash
from feast_dynamo_ext.sagemaker.manifest import manifest_sha256

AWS = AwsSettings()
PROVENANCE = Provenance("shop", ("sales:spend",), {"sales": "ab" * 32}, (), "cd" * 32)
START = datetime(2026, 1, 1, tzinfo=timezone.utc)
DAY = timedelta(days=1)
SPLIT = TimeSplit(START + 6 * DAY, START + 8 * DAY)

ROWS = pa.table(
    {
        "cid": pa.array(range(10), pa.int64()),
        "event_timestamp": pa.array(
            [START + n * DAY for n in range(10)], pa.timestamp("us", "UTC")
        ),
        "order": [f"o{n}" for n in range(10)],
        "bought": ["no", "yes", "no", "no", "yes", "no", "no", "yes", "yes", "no"],
        "w": [1.0, 2.0, 1.0, 1.0, 2.0, 1.0, 1.0, 2.0, 2.0, 1.0],
        "city": ["Ulm", "Bonn", "Ulm", None, "Ulm", "Bonn", "Rom", "Rom", "Bonn", "Ulm"],
        "spend": [1.0, None, 3.0, 4.0, float("nan"), 8.0, 100.0, None, 100.0, 100.0],
        "visits": pa.array([1, 2, 3, 4, 5, 6, 7, 8, 9, None], pa.int32()),
        "since": pa.array([START - n * DAY for n in range(10)], pa.timestamp("ms", "UTC")),
        "tags": [[1, 2], [3], [], None, [4, 5], [6], [7], [8], [9], [10]],
    }
)
ENCODINGS = {
    "bought": Encoding(encoding="ordinal", categories=["no", "yes"]),
    "city": Encoding(encoding="one_hot", unknown="column"),
    "spend": Encoding(missing="mean"),
    "since": Encoding(encoding="age", unit="day"),
    "tags": Encoding(encoding="list", length=2, pad=0),
}
OPTIONS = {
    "label": "bought",
    "event_timestamp": "event_timestamp",
    "entity_columns": ["cid"],
    "features": ["city", "spend", "visits", "since", "tags"],
    "helpers": ["order"],
    "weight": "w",
    "encodings": ENCODINGS,
    "split": SPLIT,
    "aws": AWS,
    "provenance": PROVENANCE,
}


def write(output, table=ROWS, **changes):
    options = OPTIONS | changes
    encoded = {options["label"], options["weight"], *options["features"]}
    encodings = {name: each for name, each in options["encodings"].items() if name in encoded}
    return write_training_set(table, output=str(output), **options | {"encodings": encodings})


def contents(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_every_role_has_its_place(tmp_path):
    made = write(tmp_path)
    train = pq.read_table(tmp_path / "train/parquet/part-00000.parquet")
    assert train.to_pydict() == {
        "bought": [0, 1, 0, 0, 1, 0],
        "w": [1.0, 2.0, 1.0, 1.0, 2.0, 1.0],
        "city=Ulm": [1.0, 0.0, 1.0, None, 1.0, 0.0],
        "city=Bonn": [0.0, 1.0, 0.0, None, 0.0, 1.0],
        "city=(unknown)": [0.0, 0.0, 0.0, None, 0.0, 0.0],
        "spend": [1.0, 4.0, 3.0, 4.0, 4.0, 8.0],  # the mean of 1, 3, 4, 8
        "visits": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],  # float64, as the test split has a null
        "since": [0.0, 2.0, 4.0, 6.0, 8.0, 10.0],
        "tags[0]": [1.0, 3.0, 0.0, None, 4.0, 6.0],
        "tags[1]": [2.0, 0.0, 0.0, None, 5.0, 0.0],
    }
    assert (tmp_path / "validation/csv/part-00000.csv").read_text() == (
        "0,1,0,0,1,100,7,12,7,0\n1,2,0,0,1,4,8,14,8,0\n"
    )
    rows = pq.read_table(tmp_path / "rows/train/part-00000.parquet")
    assert rows.column_names == ["cid", "event_timestamp", "order"]
    assert rows["order"].to_pylist() == ["o0", "o1", "o2", "o3", "o4", "o5"]
    manifest = made.manifest
    assert {column.name: column.role for column in manifest.columns} == {
        "bought": "label",
        "w": "weight",
        **dict.fromkeys(["city", "spend", "visits", "since", "tags"], "feature"),
        "cid": "entity",
        "event_timestamp": "event_time",
        "order": "helper",
    }
    assert list(manifest.written) == train.column_names
    assert manifest.types == {
        name: str(kind) for name, kind in zip(train.schema.names, train.schema.types, strict=True)
    }
    nulls = {column.name: column.nulls for column in manifest.columns}
    assert nulls["spend"] == {"train": 2, "validation": 1, "test": 0}
    assert nulls["visits"] == {"train": 0, "validation": 0, "test": 1}
    assert load_training_set(str(tmp_path), AWS) == made
    assert verify(str(tmp_path), AWS).ok


def test_the_manifest_encodes_rows_as_the_files_are(tmp_path):
    write(tmp_path)
    manifest = Manifest.from_json((tmp_path / "manifest.json").read_bytes(), source="m")
    for split, rows in (("train", ROWS.slice(0, 6)), ("test", ROWS.slice(8))):
        written = pq.read_table(tmp_path / split / "parquet")
        encoded = manifest.encode(rows, rows["event_timestamp"])
        assert encoded.equals(written.select(manifest.outputs))


def test_fitting_on_all_rows_would_change_the_hash(tmp_path):
    """Other rows change nothing of the encodings, unless they train."""
    alone = write(tmp_path / "a").manifest
    changed = ROWS.slice(6).set_column(5, "city", pa.array(["Bonn"] * 4))
    other = pa.concat_tables([ROWS.slice(0, 6), changed])
    beside = write(tmp_path / "b", other).manifest
    everything = write(tmp_path / "c", split=NoSplit()).manifest

    def hash_of_encodings(manifest):
        fitted = [manifest.encodings[name].to_json() for name in ("city", "spend")]
        return hashlib.sha256(json.dumps(fitted).encode()).hexdigest()

    assert beside.content["train"] == alone.content["train"]
    assert hash_of_encodings(beside) == hash_of_encodings(alone)
    assert hash_of_encodings(everything) != hash_of_encodings(alone)


def test_content_is_hashed_by_split_and_column_as_read_again(tmp_path):
    manifest = write(tmp_path).manifest
    for split in ("train", "validation", "test"):
        read = pq.read_table(tmp_path / split / "parquet/part-00000.parquet")
        found = {}
        for name in read.column_names:
            column = ColumnHash(name, read.schema.field(name).type)
            for chunk in read[name].chunks:
                column.add(chunk)
            found[name] = column.hexdigest()
        assert manifest.content[split] == found


VALUES = {
    pa.float64(): st.one_of(st.none(), st.floats(allow_nan=False)),
    pa.string(): st.one_of(st.none(), st.text(max_size=3)),
    pa.bool_(): st.one_of(st.none(), st.booleans()),
    pa.timestamp("us", "UTC"): st.one_of(st.none(), st.integers(0, 10**9)),
}


@cases(100)
@given(data=st.data(), kind=st.sampled_from(list(VALUES)), cuts=st.lists(st.integers(0, 12)))
def test_a_hash_of_a_column_depends_on_its_values_alone(data, kind, cuts):
    values = data.draw(st.lists(VALUES[kind], max_size=12))
    changed = data.draw(st.lists(VALUES[kind], max_size=12))
    array, other = pa.array(values, kind), pa.array(changed, kind)
    bounds = [0, *sorted(cuts), 12]
    whole, pieces, second = (ColumnHash("x", kind) for _ in range(3))
    whole.add(array)
    for start, end in itertools.pairwise(bounds):
        pieces.add(array.slice(start, max(0, end - start)))
    second.add(other)
    assert pieces.hexdigest() == whole.hexdigest()
    same = pa.table({"x": array}).equals(pa.table({"x": other})) and (
        hash_table(pa.table({"x": array})) == hash_table(pa.table({"x": other}))
    )
    assert (second.hexdigest() == whole.hexdigest()) == same


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_shards_are_of_equal_size_and_balance(tmp_path, parts):
    rows = 5_003
    labels = (np.random.default_rng(2).random(rows) < 0.03).astype(int)
    table = pa.table(
        {
            "cid": np.arange(rows),
            "event_timestamp": pa.array(np.arange(rows), pa.timestamp("s")),
            "y": labels,
            "x": np.arange(rows) / 2,
        }
    )
    made = write_training_set(
        table,
        output=str(tmp_path),
        parts=parts,
        **OPTIONS
        | {
            "label": "y",
            "features": ["x"],
            "helpers": [],
            "weight": None,
            "encodings": {},
            "split": TimeSplit(test_from=datetime.fromtimestamp(4_000, tz=timezone.utc)),
        },
    )
    seen = []
    for split in ("train", "test"):
        files = [tmp_path / file.path for file in made.files(split, "parquet")]
        read = [pq.read_table(file) for file in files]
        assert len(read) == parts
        sizes = [table.num_rows for table in read]
        ones = [sum(table["y"].to_pylist()) for table in read]
        assert max(sizes) - min(sizes) <= 1
        assert max(ones) - min(ones) <= 1
        for part, table in enumerate(read):
            ids = pq.read_table(tmp_path / f"rows/{split}/part-{part:05d}.parquet")["cid"]
            assert table["x"].to_pylist() == [number / 2 for number in ids.to_pylist()]
            assert ids.to_pylist() == sorted(ids.to_pylist())
            seen += ids.to_pylist()
    assert sorted(seen) == list(range(rows))


def test_shards_that_are_not_open_at_once_are_the_same(tmp_path):
    options = {"parts": 2, "split": TimeSplit(START + 4 * DAY, START + 7 * DAY)}
    write(tmp_path / "a", **options)
    write(tmp_path / "b", **options, open_bytes=1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_rows_of_a_reader_are_those_of_a_table(tmp_path):
    write(tmp_path / "table")
    batches = ROWS.to_batches(max_chunksize=3)
    write(tmp_path / "reader", pa.RecordBatchReader.from_batches(ROWS.schema, iter(batches)))
    assert contents(tmp_path / "table") == contents(tmp_path / "reader")


def test_an_embargo_leaves_rows_out_and_says_how_many(tmp_path):
    made = write(tmp_path, split=replace(SPLIT, embargo=DAY))
    assert {row["split"]: row["rows"] for row in made.summary()} == {
        "train": 5,
        "validation": 1,
        "test": 2,
    }
    assert made.manifest.left_out == 2
    kept = pq.read_table(tmp_path / "rows/validation")["cid"].to_pylist()
    assert kept == [6]


def test_a_column_of_the_split_is_a_helper(tmp_path):
    folds = pa.array(["train"] * 6 + ["test"] * 4)
    made = write(tmp_path, ROWS.append_column("fold", folds), split=ColumnSplit("fold"))
    assert set(made.manifest.splits) == {"train", "test"}
    assert made.manifest.helpers == ("order", "fold")
    assert [row["split"] for row in made.summary()] == ["train", "test"]


def test_a_group_is_in_one_split_of_the_files(tmp_path):
    ids = pa.array(np.arange(400) % 40)
    table = pa.table(
        {
            "cid": ids,
            "event_timestamp": pa.array(np.arange(400), pa.timestamp("s")),
            "bought": ["no", "yes"] * 200,
            "w": [1] * 400,
            "order": ["o"] * 400,
            "city": ["a"] * 400,
        }
    )
    rule = GroupSplit({"train": 0.6, "validation": 0.2, "test": 0.2}, "cid")
    write(tmp_path, table, features=["city"], split=rule)
    found = [
        set(pq.read_table(tmp_path / "rows" / split)["cid"].to_pylist())
        for split in ("train", "validation", "test")
    ]
    assert sum(map(len, found)) == len(set.union(*found)) == 40


def test_a_script_keeps_texts_and_times(tmp_path):
    made = write(
        tmp_path,
        target="script",
        features=["city", "since"],
        encodings={"bought": ENCODINGS["bought"]},
        formats=["parquet"],
    )
    read = pq.read_table(tmp_path / "train/parquet/part-00000.parquet")
    assert read["city"].to_pylist() == ROWS["city"].to_pylist()[:6]
    assert read.schema.field("since").type == pa.timestamp("ms", "UTC")
    assert made.manifest.target == "script"


def test_lightgbm_finds_its_categories_beside_the_csv(tmp_path):
    encodings = ENCODINGS | {"city": Encoding(encoding="ordinal")}
    write(tmp_path, target="lightgbm", weight=None, encodings=encodings, formats=["csv"])
    index = json.loads((tmp_path / "train/csv/categorical_index.json").read_text())
    assert index == {"cat_index_list": [1]}
    assert verify(str(tmp_path), AWS).ok


@pytest.mark.slow
def test_lightgbm_trains_on_the_files_as_on_the_table(tmp_path):
    """JumpStart's script reads all CSV of a channel with pandas, and says which are categories."""
    lightgbm = pytest.importorskip("lightgbm")
    count = 400
    chance = np.random.default_rng(3)
    city, spend = chance.integers(0, 6, count), chance.normal(size=count)
    spend[::7] = np.nan
    rows = pa.table(
        {
            "cid": range(count),
            "event_timestamp": [START + n * DAY for n in range(count)],
            "bought": ((city % 2 == 1) & ~(spend < 0)).astype("int64"),
            "spend": spend,
            "city": pa.array([f"city {code}" for code in city]),
        }
    )
    made = write_training_set(
        rows,
        label="bought",
        event_timestamp="event_timestamp",
        entity_columns=["cid"],
        features=["spend", "city"],
        encodings={"city": Encoding(encoding="ordinal")},
        target="lightgbm",
        formats=["csv"],
        parts=2,
        split=TimeSplit(START + 300 * DAY, START + 350 * DAY),
        output=str(tmp_path),
        aws=AWS,
        provenance=PROVENANCE,
    )
    folder = tmp_path / "train/csv"
    index = json.loads((folder / "categorical_index.json").read_text())["cat_index_list"]
    files = sorted(folder.glob("*.csv"))
    assert len(files) == 2
    read = pd.concat([pd.read_csv(file, header=None) for file in files])
    wanted = made.manifest.encode(rows.slice(0, 300), rows["event_timestamp"].slice(0, 300))
    order = ["spend", "city"]
    table = np.stack([wanted[name].to_numpy() for name in order], 1)
    parameters = {
        "objective": "binary",
        "verbosity": -1,
        "num_threads": 1,
        "deterministic": True,
        "min_data_per_group": 1,
        "cat_smooth": 1,
        "seed": 1,
    }

    def trained(features, label, categories, **more):
        data = lightgbm.Dataset(features, label, categorical_feature=categories, params=more)
        return lightgbm.train(parameters | more, data, 5)

    of_table = trained(table, rows["bought"].to_numpy()[:300], [1])
    of_files = trained(read[[1, 2]].to_numpy(), read[0].to_numpy(), [at - 1 for at in index])
    score = of_table.predict(table)
    # Rows are in another order in two files, so sums of gradients differ in their last bits.
    np.testing.assert_allclose(of_files.predict(table), score, rtol=1e-9)
    # LightGBM's own reader of text finds the same in a file.
    data = lightgbm.Dataset(str(files[0]), params={"label_column": 0, "header": False})
    data.construct()
    assert (data.num_data(), data.num_feature()) == (150, 2)
    np.testing.assert_array_equal(data.get_label(), pd.read_csv(files[0], header=None)[0])
    decisions = str(of_files.dump_model()["tree_info"])
    assert "'decision_type': '=='" in decisions  # a split on categories, and not on their order


BAD = {
    "a weight below 0": ({"weight": "spend"}, "is the weight and the label or one of `features`"),
    "a missing weight": (
        {"weight": "visits", "features": ["city"]},
        "The weight `visits` is missing in 1 of 10 rows and negative in 0",
    ),
    "a label by hash": (
        {"encodings": ENCODINGS | {"bought": Encoding(encoding="hash", buckets=9)}},
        "The label `bought` cannot be encoded by `hash`",
    ),
    "a label not seen": (
        {"encodings": ENCODINGS | {"bought": Encoding(encoding="ordinal", categories=["no"])}},
        "The label `bought` is in 4 rows none of the categories that the rows that train have",
    ),
    "a helper that is trained on": ({"helpers": ["city"]}, "`city` are helpers, which are never"),
    "a longer list": (
        {"encodings": ENCODINGS | {"tags": Encoding(encoding="list", length=1)}},
        "Column `tags`: 2 of 10 lists have more than 1 elements",
    ),
    "a format that has no text": (
        {
            "target": "script",
            "encodings": {},
            "features": ["city"],
            "label": "w",
            "weight": None,
            "formats": ["csv", "libsvm"],
        },
        "column `city` is string, and libsvm holds numbers",
    ),
    "an unknown format": ({"formats": ["orc"]}, "Unknown format `orc`"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused_leaves_nothing(tmp_path, name):
    changes, words = BAD[name]
    with pytest.raises(TrainingSetError) as caught:
        write(tmp_path, **changes)
    assert words in str(caught.value)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused_costs_no_set_that_is_there(tmp_path, name):
    write(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(TrainingSetError):
        write(tmp_path, **BAD[name][0], overwrite=True)
    assert contents(tmp_path) == before


SHOWS_LATE = {
    # In a row that does not train, which no encoding is fitted on.
    "a number beyond float32": (
        "spend",
        1e39,
        {"target": "xgboost", "weight": None},
        "`spend` has 1 values that are infinite, or become so as float; the first is in row 9 of "
        "the rows that are written",
    ),
    "a longer list": (
        "tags",
        [1, 2, 3, 4],
        {"encodings": ENCODINGS | {"tags": Encoding(encoding="list", length=3)}},
        "Column `tags`: 1 of 10 lists have more than 3 elements",
    ),
    "a time that no nanosecond counts": (
        "since",
        datetime(9999, 12, 31, tzinfo=timezone.utc),
        {"encodings": ENCODINGS | {"since": Encoding(encoding="epoch", unit="ns")}},
        "a time is so far from the others",
    ),
}


@pytest.mark.parametrize("name", SHOWS_LATE)
def test_a_value_that_shows_late_costs_no_set_that_is_there(tmp_path, name):
    column, value, changes, words = SHOWS_LATE[name]
    write(tmp_path)
    before = contents(tmp_path)
    values = pa.array([*ROWS[column].to_pylist()[:9], value], ROWS[column].type)
    rows = ROWS.set_column(ROWS.schema.get_field_index(column), column, values)
    with pytest.raises(TrainingSetError, match=re.escape(words)):
        write(tmp_path, rows, **changes, overwrite=True)
    assert contents(tmp_path) == before
    assert verify(str(tmp_path), AWS).ok


BECOMES_MISSING = {
    "an unknown category": (
        {
            "city": Encoding(
                encoding="ordinal", unknown="missing", max_categories=1, missing="keep"
            )
        },
        r"missing values, which train has in `city` \(3 rows\)",
    ),
    "an unknown category of one-hot": (
        {"city": Encoding(encoding="one_hot", unknown="missing", max_categories=1)},
        r"which train has in `city=Ulm` \(3 rows\)",
    ),
    "a shorter list": (
        {"tags": Encoding(encoding="list", length=2)},
        r"which train has in `tags\[0\]` \(2 rows\), `tags\[1\]` \(4 rows\)",
    ),
    "a missing list, though others are padded": (
        {"tags": Encoding(encoding="list", length=2, pad=0)},
        r"which train has in `tags\[0\]` \(1 rows\), `tags\[1\]` \(1 rows\)",
    ),
    "a missing time": (
        {"since": Encoding(encoding="age")},
        r"which test has in `since` \(1 rows\)",
    ),
}


@pytest.mark.parametrize("name", BECOMES_MISSING)
def test_values_that_become_missing_are_refused_before_anything_is_written(tmp_path, name):
    encodings, words = BECOMES_MISSING[name]
    (column,) = encodings
    times = pa.array([*ROWS["since"].to_pylist()[:9], None], ROWS["since"].type)
    rows = ROWS.set_column(ROWS.schema.get_field_index("since"), "since", times)
    options = {
        "target": "linear-learner",
        "formats": ["recordio"],
        "features": [column],
        "weight": None,
        "helpers": [],
    }
    label = {"bought": ENCODINGS["bought"]}
    with pytest.raises(TrainingSetError, match=words):
        write(tmp_path, rows, encodings=label | encodings, **options)
    assert contents(tmp_path) == {}
    filled = {
        column: encoding.model_copy(update={"missing": -9.0})
        for column, encoding in encodings.items()
    }
    made = write(tmp_path, rows, encodings=label | filled, **options)
    assert made.manifest.target == "linear-learner"


def test_a_build_that_ends_leaves_no_manifest_and_can_be_repeated(tmp_path):
    def rows():
        yield ROWS.to_batches()[0].slice(0, 5)
        raise ConnectionError("the join ended")

    with pytest.raises(ConnectionError):
        write(tmp_path, pa.RecordBatchReader.from_batches(ROWS.schema, rows()))
    assert contents(tmp_path) == {}
    write(tmp_path)
    first = contents(tmp_path)
    # The old set is there until the new one can be written.
    with pytest.raises(ConnectionError):
        write(tmp_path, pa.RecordBatchReader.from_batches(ROWS.schema, rows()), overwrite=True)
    assert contents(tmp_path) == first


def test_of_two_builds_at_once_one_manifest_is_written(tmp_path):
    def rows():
        # Another build of the same rows comes first.
        write(tmp_path)
        yield from ROWS.to_batches()

    reader = pa.RecordBatchReader.from_batches(ROWS.schema, rows())
    with pytest.raises(TrainingSetError, match="holds a training set already"):
        write(tmp_path, reader)
    assert verify(str(tmp_path), AWS).ok


def test_a_claim_is_no_set_and_says_who_has_begun(tmp_path):
    claim = {"building": "ab", "since": "2026-01-31T12:00:00+00:00", "host": "h", "process": 7}
    (tmp_path / "manifest.json").write_text(json.dumps(claim))
    words = "process 7 of h has begun to write one at 2026-01-31T12:00:00"
    for look in (load_training_set, verify, manifest_sha256):
        with pytest.raises(TrainingSetError, match=words):
            look(str(tmp_path), AWS)
    # Who claimed it may have been killed.
    write(tmp_path)
    assert verify(str(tmp_path), AWS).ok


def test_a_set_that_came_meanwhile_is_not_replaced(tmp_path):
    first = write(tmp_path)

    def rows():
        write(tmp_path, overwrite=True, parts=2)
        yield from ROWS.to_batches()

    reader = pa.RecordBatchReader.from_batches(ROWS.schema, rows())
    with pytest.raises(TrainingSetError, match="Another process wrote a training set"):
        write(tmp_path, reader, overwrite=True)
    made = load_training_set(str(tmp_path), AWS)
    assert made.manifest.parts == 2
    assert made != first
    assert verify(str(tmp_path), AWS).ok


BUILD = """
import sys
sys.path[:0] = [{tests!r}, {support!r}]
import test_training_build as build
build.write({output!r}, parts=2, split=build.TimeSplit(build.START + 4 * build.DAY,
            build.START + 7 * build.DAY))
"""


@pytest.mark.slow
def test_two_builds_in_fresh_processes_are_byte_identical(tmp_path):
    tests = Path(__file__).parent
    for name, seed in (("a", "0"), ("b", "12345")):
        code = BUILD.format(
            tests=str(tests), support=str(tests.parent / "support"), output=str(tmp_path / name)
        )
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        )
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert Counter(path.split("/")[0] for path in contents(tmp_path / "a")) == {
        "manifest.json": 1,
        "rows": 6,
        "train": 4,
        "validation": 4,
        "test": 4,
    }


def test_what_is_kept_of_a_block_does_not_hold_all_of_it(tmp_path):
    """A column that was read from a stream has the memory of its whole message."""
    rows, blocks = 65_536, 12
    schema = pa.schema(
        [
            ("cid", pa.int64()),
            ("event_timestamp", pa.timestamp("us", "UTC")),
            ("y", pa.int64()),
            *((f"x{at}", pa.float64()) for at in range(20)),
        ]
    )
    with pa.ipc.new_stream(str(tmp_path / "rows.arrow"), schema) as sink:
        for block in range(blocks):
            numbers = np.arange(block * rows, (block + 1) * rows)
            times = pa.array(numbers * 1_000_000).cast(schema.field("event_timestamp").type)
            features = [numbers / 7] * 20
            columns = [numbers, times, numbers % 2, *features]
            sink.write_batch(pa.record_batch(list(map(pa.array, columns)), schema=schema))
    seen = []

    def read():
        with pa.OSFile(str(tmp_path / "rows.arrow")) as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                seen.append(pa.total_allocated_bytes())
                yield batch

    write_training_set(
        pa.RecordBatchReader.from_batches(schema, read()),
        label="y",
        event_timestamp="event_timestamp",
        entity_columns=["cid"],
        features=[f"x{at}" for at in range(20)],
        output=str(tmp_path / "set"),
        split=TimeFractions({"train": 0.6, "validation": 0.2, "test": 0.2}),
        aws=AwsSettings(),
        provenance=Provenance("test", (), {}, (), ""),
        formats=["parquet"],
        parts=2,
    )
    assert len(seen) == blocks
    # Of each block event time and label stay: 16 bytes of 184 a row.
    assert seen[-1] - seen[2] < 4 * rows * 184
