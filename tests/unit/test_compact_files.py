"""The parts of compaction: types, the pointer, buckets, the layout, sources that cannot be."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from compact_cases import START, UTC, compact, opened, target, values, write
from feast import FileSource
from feast.data_format import DeltaFormat
from repos import repo_config

from feast_dynamo_ext.errors import CompactionError, OfflineStoreError, SourceReadError
from feast_dynamo_ext.parquet.compaction.layout import (
    InputFile,
    LayoutRequest,
    by_partition,
    choose,
)
from feast_dynamo_ext.parquet.compaction.snapshot import (
    Target,
    folder_of,
    remove_replaced,
    replaced_files,
)
from feast_dynamo_ext.parquet.compaction.sorted_files import options
from feast_dynamo_ext.parquet.pointer import Buckets, bucket_of


@pytest.fixture
def path(tmp_path):
    return tmp_path / "orders"


@pytest.fixture
def config(tmp_path):
    return repo_config(tmp_path)


def pointer(path):
    return path / "_feast_dynamo" / "current.json"


WORDS = ["a", None, "b"]
TYPED = pa.table(
    {
        "cid": pa.array([1, 2, 1], pa.int32()),
        "event_timestamp": pa.array([3, 2, 1], pa.timestamp("ns", "Europe/Berlin")),
        "created": pa.array([None, 1, 2], pa.date32()),
        "value": pa.array([0, 1, 2], pa.int64()),
        "price": pa.array([Decimal("1.10"), None, Decimal("-3.25")], pa.decimal128(20, 2)),
        "naive": pa.array([1, None, 3], pa.timestamp("ms")),
        "word": pa.array(WORDS).dictionary_encode(),
        "small": pa.array(WORDS).cast(pa.dictionary(pa.int8(), pa.string(), ordered=True)),
        "large": pa.array(WORDS, pa.large_string()),
        "nested": pa.array([{"x": [1.5, None], "y": "q"}, None, {"x": [], "y": None}]),
        "words": pa.array([["a", "b"], None, []]).cast(
            pa.list_(pa.dictionary(pa.int32(), pa.string()))
        ),
        "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int16())),
        "nothing": pa.nulls(3),
        "bytes": pa.array([b"\0", None, b""], pa.binary()),
        "whole": pa.array([2**64 - 1, 0, None], pa.uint64()),
        "single": pa.array([1.5, float("inf"), None], pa.float32()),
    }
)


@pytest.mark.parametrize("how", [{"buckets": 2}, {"by_partition": True}])
def test_types_and_values_stay(path, config, how):
    path.mkdir()
    pq.write_table(TYPED.slice(0, 2), path / "a.parquet")
    pq.write_table(TYPED.slice(2), path / "b.parquet")
    before = opened(path, config).with_all_types()
    rows = pa.Table.from_batches(before.scan(before.schema.names)).sort_by("value")
    compact(path, config, **how)
    after = opened(path, config).with_all_types()
    assert after.schema.equals(before.schema)
    assert after.schema.field("small").type == TYPED.schema.field("small").type
    found = pa.Table.from_batches(after.scan(before.schema.names)).sort_by("value")
    assert found.drop_columns(["__row"]).to_pylist() == rows.drop_columns(["__row"]).to_pylist()
    assert found.drop_columns(["__row"]).to_pylist() == TYPED.to_pylist()


def test_columns_that_some_files_lack_and_narrower_ones_are_brought_together(path, config):
    path.mkdir()
    times = {"event_timestamp": pa.array([START], UTC), "created": pa.array([START], UTC)}
    pq.write_table(pa.table({"cid": pa.array([1], pa.int32()), **times}), path / "a.parquet")
    wide = {"cid": pa.array([2**40]), **times, "value": pa.array([7])}
    pq.write_table(pa.table(wide), path / "b.parquet")
    compact(path, config, buckets=1)
    (file,) = path.glob("_feast_dynamo/*/*.parquet")
    table = pq.read_table(file)
    assert table.select(["cid", "value"]).to_pylist() == [
        {"cid": 1, "value": None},
        {"cid": 2**40, "value": 7},
    ]


def test_rows_are_sorted_and_row_groups_say_their_limits(path, config):
    write(path / "a.parquet", [(1, 3, 0, 1), (2, None, 0, 2), (1, 1, 1, 3)])
    write(path / "b.parquet", [(1, 1, 0, 4), (2, 0, None, 5)])
    compact(path, config, by_partition=True)
    assert values(path, config) == [5, 4, 3, 1, 2]
    (file,) = path.glob("_feast_dynamo/*/*.parquet")
    column = pq.read_metadata(file).row_group(0).column(1)
    assert column.statistics.max == START + dt.timedelta(hours=3)


def test_in_buckets_the_rows_of_a_key_stand_together(path, config):
    write(path / "a.parquet", [(2, 3, 0, 1), (1, None, 0, 2), (2, 1, 1, 3), (None, 0, 0, 4)])
    write(path / "b.parquet", [(2, 1, 0, 5), (1, 0, None, 6), (1, 9, 0, 7), (2, 1, 1, 8)])
    compact(path, config, buckets=1)
    assert values(path, config) == [6, 7, 2, 5, 3, 8, 1, 4]


def test_columns_are_packed_where_it_saves_a_good_part():
    generator = np.random.default_rng(8)
    rows = 20_000
    sample = pa.table(
        {
            "random": generator.random(rows),
            "ascending": np.arange(rows),
            "few": generator.choice(generator.random(40), rows),
            "names": pa.array([f"city {at % 60}" for at in range(rows)]),
            "lists": pa.array([[float(at % 3)] * 4 for at in range(rows)]),
            "nulls": pa.nulls(rows),
        }
    )
    chosen = options(sample)
    assert {path: chosen["compression"][path] for path in ("random", "ascending", "names")} == {
        "random": "none",
        "ascending": "zstd",
        "names": "zstd",
    }
    assert {"few", "names", "lists.list.element"} <= set(chosen["use_dictionary"])
    assert not {"random", "ascending"} & set(chosen["use_dictionary"])
    sink = pa.BufferOutputStream()
    pq.write_table(sample, sink, **chosen)
    assert pq.read_table(pa.BufferReader(sink.getvalue())).equals(sample)


def test_no_rows_are_packed_somehow():
    sample = pa.table({"a": pa.array([], pa.int64()), "b": pa.array([], pa.string())})
    pq.write_table(sample, pa.BufferOutputStream(), **options(sample))


def test_a_source_without_rows_keeps_its_columns(path, config):
    write(path / "a.parquet", [])
    compact(path, config, buckets=4)
    assert values(path, config) == []
    assert opened(path, config).schema.names == ["cid", "event_timestamp", "created", "value"]


# The pointer


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "it is no pointer"),
        ("[]", "it is no pointer"),
        ('{"format": 1}', "a part of it is missing"),
        ('{"format": 2}', "later version"),
    ],
)
def test_a_pointer_that_is_none_is_one_clear_error(path, config, content, why):
    write(path / "a.parquet", [(1, 0, 0, 1)])
    compact(path, config)
    pointer(path).write_text(content)
    with pytest.raises(SourceReadError, match=why):
        opened(path, config)


def test_a_file_that_the_pointer_names_and_is_gone_is_an_error(path, config):
    write(path / "a.parquet", [(1, 0, 0, 1)])
    compact(path, config)
    (file,) = path.glob("_feast_dynamo/*/*.parquet")
    file.unlink()
    with pytest.raises(SourceReadError, match="which it names, is not there"):
        opened(path, config)


def test_a_replaced_file_that_was_written_again_is_an_error_not_double_rows(path, config):
    write(path / "a.parquet", [(1, 0, 0, 1)])
    compact(path, config)
    write(path / "a.parquet", [(1, 0, 0, 1), (1, 1, 0, 2)])
    with pytest.raises(SourceReadError, match=r"a\.parquet was compacted and has been written"):
        opened(path, config)
    pointer(path).unlink()
    assert values(path, config) == [1, 2]


def test_the_pointer_says_what_counts(path, config):
    write(path / "a.parquet", [(1, 0, 0, 1), (2, 0, 0, 2)])
    compact(path, config, buckets=1)
    said = json.loads(pointer(path).read_text())
    assert said["format"] == 1
    assert said["buckets"] == {"columns": ["cid"], "count": 1, "hash": "splitmix64-1"}
    assert said["sorted_by"] == ["cid", "event_timestamp", "created"]
    ((file,), (replaced,)) = said["files"], said["replaced"]
    assert (file["rows"], file["bucket"]) == (2, 0)
    assert file["size"] == (path / file["path"]).stat().st_size
    assert replaced["path"] == "a.parquet"


def test_a_pointer_cannot_have_a_file_elsewhere_deleted(path, config):
    write(path / "a.parquet", [(1, 0, 0, 1)])
    compact(path, config)
    outside = path.parent / "outside.parquet"
    outside.write_bytes(b"mine")
    said = json.loads(pointer(path).read_text())
    said["replaced"].append({**said["replaced"][0], "path": "../outside.parquet"})
    pointer(path).write_text(json.dumps(said))
    remove_replaced(target(path), config, -1)
    assert outside.read_bytes() == b"mine"
    assert not (path / "a.parquet").exists()


def test_a_pointer_that_contradicts_itself_has_nothing_deleted(path, config):
    write(path / "a.parquet", [(1, 0, 0, 1)])
    compact(path, config)
    said = json.loads(pointer(path).read_text())
    counts = said["files"][0]
    stat = (path / counts["path"]).stat()
    said["replaced"].append(
        {**said["replaced"][0], "path": counts["path"], "size": stat.st_size}
        | {"version": str(stat.st_mtime_ns)}
    )
    pointer(path).write_text(json.dumps(said))
    with pytest.raises(SourceReadError, match="that it counts, and that it was replaced"):
        remove_replaced(target(path), config, -1)
    assert (path / "a.parquet").exists()
    assert (path / counts["path"]).exists()


def test_replaced_files_are_deleted_by_age(path, config):
    write(path / "a.parquet", [(1, 0, 0, 1)])
    compact(path, config)
    assert remove_replaced(target(path), config, older_than_s=60) == []
    assert [file.path for file in replaced_files(target(path), config, -1)] == ["a.parquet"]
    assert (path / "a.parquet").exists()
    assert [file.path for file in remove_replaced(target(path), config, -1)] == ["a.parquet"]
    assert not (path / "a.parquet").exists()
    assert values(path, config) == [1]
    # It is forgotten: a later file of that name is a new one.
    write(path / "a.parquet", [(1, 1, 0, 2)])
    assert values(path, config) == [1, 2]


# Buckets


def test_buckets_are_for_ever():
    assert bucket_of([pa.array([0, 1, 2, -1, 2**62, None])], 1000).tolist() == [
        55, 158, 636, 767, 340, 535,
    ]  # fmt: skip
    text = pa.array(["", "a", "abcdefgh", "abcdefghi", "zürich", None])
    assert bucket_of([text], 1000).tolist() == [55, 271, 956, 851, 462, 535]
    assert bucket_of([pa.array([1, 2]), pa.array(["a", "b"])], 1000).tolist() == [75, 417]


@pytest.mark.parametrize(
    ("column", "kinds"),
    [
        (pa.array([1, None, 100]), [pa.int8(), pa.uint32(), pa.float64()]),
        (pa.array(["a", None, "a longer one"]), [pa.large_string()]),
        (pa.array([b"a", None]), [pa.large_binary()]),
        (pa.array([True, None]), [pa.int32()]),
    ],
)
def test_a_key_is_in_the_same_bucket_in_every_type(column, kinds):
    expected = bucket_of([column], 64).tolist()
    for kind in kinds:
        assert bucket_of([column.cast(kind)], 64).tolist() == expected
    chunked = pa.chunked_array([column.slice(0, 1), column.slice(1)])
    assert bucket_of([chunked.dictionary_encode()], 64).tolist() == expected
    assert bucket_of([column.slice(1)], 64).tolist() == expected[1:]


# The layout


def listed(path: str, first=None, last=None, size=1 << 20) -> InputFile:
    folder = path.rpartition("/")[0]
    return InputFile(path, size, "v", folder, 1, 1, 1, first, last, frozenset(), None)


@pytest.mark.parametrize(
    ("files", "keys", "buckets", "why"),
    [
        (["day=1/a", "day=2/a"], ("cid",), None, "its folders are partitions, such as day=1"),
        (["a"], ("cid",), None, "it is small"),
        (["a"] * 100, ("cid",), Buckets(("cid",), 4), "has no partitions, and is large"),
        (["a"] * 100, (), None, "no join key is common"),
    ],
)
def test_the_data_chooses(files, keys, buckets, why):
    found = choose(LayoutRequest(), None, [listed(path) for path in files], keys)
    assert found.buckets == buckets
    assert why in found.why


def test_buckets_stay_and_what_is_asked_for_is_done():
    files = [listed("day=1/a")]
    assert choose(LayoutRequest(), Buckets(("cid",), 7), files, ("cid",)).buckets == Buckets(
        ("cid",), 7
    )
    assert choose(LayoutRequest(buckets=3), None, files, ("cid",)).buckets == Buckets(("cid",), 3)
    assert (
        choose(LayoutRequest(by_partition=True), Buckets(("cid",), 7), files, ("cid",)).buckets
        is None
    )
    with pytest.raises(CompactionError, match="Use --by-partition"):
        choose(LayoutRequest(buckets=3), None, files, ())


def test_partitions_apart_in_time_are_one_unit_each_others_keep_their_order():
    def units(*files):
        return [(unit.folder, unit.layer, len(unit.files)) for unit in by_partition(files)]

    apart = [listed("d=1/a", 0, 9), listed("d=2/a", 10, 19), listed("d=1/b", 3, 4)]
    assert units(*apart) == [("d=1", 0, 2), ("d=2", 0, 1)]
    touching = [listed("d=1/a", 0, 10), listed("d=2/a", 10, 19), listed("d=1/b", 3, 4)]
    assert units(*touching) == [("d=1", 0, 1), ("d=2", 0, 1), ("d=1", 1, 1)]
    silent = [listed("d=1/a"), listed("d=1/b"), listed("d=2/a")]
    assert units(*silent) == [("d=1", 0, 2), ("d=2", 0, 1)]


# What cannot be compacted


@pytest.mark.parametrize(
    ("name", "more", "what"),
    [
        ("a.parquet", {}, "is one file"),
        ("*/b", {}, "is a glob"),
        ("table", {"file_format": DeltaFormat()}, "is a Delta table"),
    ],
)
def test_sources_that_are_no_folder_of_parquet(tmp_path, config, name, more, what):
    source = FileSource(name="s", path=f"{tmp_path}/{name}", timestamp_field="t", **more)
    with pytest.raises(CompactionError, match=what):
        folder_of(Target(source, "t", None, (), ("s",)), config)


def test_keys_that_cannot_be_hashed_exactly(path, config):
    path.mkdir()
    times = pa.array([START], UTC)
    rows = {"cid": [1.5], "event_timestamp": times, "created": times, "value": [1]}
    pq.write_table(pa.table(rows), path / "a.parquet")
    with pytest.raises(OfflineStoreError, match="cannot be compared exactly"):
        compact(path, config, buckets=2)
    assert list(path.rglob("*.parquet")) == [path / "a.parquet"]


def test_a_spill_folder_that_is_not_there(path, config, tmp_path):
    write(path / "a.parquet", [(1, 0, 0, 1)])
    with pytest.raises(OfflineStoreError, match="cannot be kept in"):
        compact(path, config, buckets=2, spill_folder=str(tmp_path / "none"))
