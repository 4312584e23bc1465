"""Values taken from plain pages, against pyarrow's own reading; what is not plain is left."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_dynamo_ext.parquet import plain_pages
from feast_dynamo_ext.parquet.plain_pages import ThriftError, read_struct, take_plain

BITS = {8: np.uint64, 4: np.uint32}
PLAIN = {"compression": "none", "use_dictionary": False}


def groups_of(path) -> list:
    (file,) = ds.dataset(str(path), format="parquet").get_fragments()
    return file.split_by_row_group()


def taken(group, table, wanted) -> dict[str, pa.Array]:
    """What was taken, by name, in the types of a table."""
    kinds = {field.name: field.type for field in table.schema}
    places = {
        name: np.zeros(len(wanted), BITS[kind.bit_width // 8])
        for name, kind in kinds.items()
        if pa.types.is_primitive(kind) and kind.bit_width in (32, 64)
    }
    found = take_plain(group, kinds, np.array(wanted, dtype=np.int64), places)
    return {
        name: pa.Array.from_buffers(kinds[name], len(wanted), [None, pa.py_buffer(places[name])])
        for name in found
    }


def table_of(rows: int, seed: int = 0) -> pa.Table:
    generator = np.random.default_rng(seed)
    return pa.table(
        {
            "double": generator.normal(size=rows),
            "float": generator.normal(size=rows).astype(np.float32),
            "long": generator.integers(-(2**63), 2**63 - 1, rows),
            "int": generator.integers(-(2**31), 2**31 - 1, rows, dtype=np.int32),
        }
    )


@given(
    rows=st.integers(1, 3_000),
    group_rows=st.integers(1, 3_000),
    page_rows=st.integers(1, 3_000),
    version=st.sampled_from(["1.0", "2.0"]),
    checksum=st.booleans(),
    nullable=st.booleans(),
    share=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    seed=st.integers(0, 1_000),
)
@settings(max_examples=60, deadline=None)
def test_what_is_taken_is_what_arrow_reads(
    tmp_path_factory, rows, group_rows, page_rows, version, checksum, nullable, share, seed
):
    path = tmp_path_factory.mktemp("plain") / "a.parquet"
    table = table_of(rows, seed)
    table = table.cast(pa.schema([field.with_nullable(nullable) for field in table.schema]))
    options = {"data_page_version": version, "write_page_checksum": checksum}
    pages = {"max_rows_per_page": page_rows, "write_batch_size": min(64, page_rows)}
    pq.write_table(table, path, row_group_size=group_rows, **PLAIN, **options, **pages)
    start = 0
    generator = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_pages, "LEAST_VALUES", 1)
        for group in groups_of(path):
            stored = table.slice(start, group.row_groups[0].num_rows)
            wanted = np.flatnonzero(generator.random(stored.num_rows) < share)
            found = taken(group, table, wanted)
            assert set(found) == set(table.schema.names)
            for name, values in found.items():
                assert values.equals(stored.column(name).take(pa.array(wanted)).combine_chunks())
            start += stored.num_rows
    assert start == rows


def written(path, column, **options):
    pq.write_table(pa.table({"a": column}), path, **{**PLAIN, **options})
    (group,) = groups_of(path)
    return group


MANY = np.random.default_rng(1).normal(size=200_000)
LEFT = {
    "compressed": (pa.array(MANY), {"compression": "zstd"}),
    "with a dictionary": (pa.array([1.0, 2.0] * 50), {"use_dictionary": True}),
    "a dictionary that was given up": (pa.array(MANY), {"use_dictionary": True}),
    "split by bytes": (pa.array(MANY), {"use_byte_stream_split": True}),
    "with a null": (pa.array([1.0, None, 3.0]), {}),
    "without statistics": (pa.array([1.0, 2.0]), {"write_statistics": False}),
    "small pages": (pa.array(MANY), {"max_rows_per_page": 1_000}),
    "times": (pa.array([1, 2], pa.timestamp("us")), {}),
    "unsigned": (pa.array([1, 2], pa.uint64()), {}),
    "stored as something wider": (pa.array([1, 2], pa.int16()), {}),
    "a list": (pa.array([[1.0], [2.0]]), {}),
    "nested": (pa.array([{"a": 1.0}, {"a": 2.0}]), {}),
}


@pytest.mark.parametrize(("column", "options"), LEFT.values(), ids=LEFT)
def test_what_is_not_plain_is_left(tmp_path, column, options):
    group = written(tmp_path / "a.parquet", column, **options)
    kinds = {"a": column.type}
    places = {"a": np.zeros(2, np.uint64)}
    assert take_plain(group, kinds, np.array([0, 1]), places) == set()


def test_a_column_that_is_too_large_to_be_read_whole_is_left(tmp_path, monkeypatch):
    group = written(tmp_path / "a.parquet", pa.array([1.0, 2.0]))
    monkeypatch.setattr(plain_pages, "MOST_BYTES", 15)
    places = {"a": np.zeros(1, np.uint64)}
    assert take_plain(group, {"a": pa.float64()}, np.array([0]), places) == set()


def test_another_type_in_the_file_is_left(tmp_path):
    group = written(tmp_path / "a.parquet", pa.array([1, 2], pa.int32()))
    assert (
        take_plain(group, {"a": pa.int64()}, np.array([0]), {"a": np.zeros(1, np.uint64)}) == set()
    )


def test_a_leaf_of_the_same_name_is_another_column(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"s": [{"a": 7.0}, {"a": 8.0}], "a": [1.0, 2.0], "b": [3.0, 4.0]})
    pq.write_table(table, path, **PLAIN)
    (group,) = groups_of(path)
    found = taken(group, table, [1])
    assert {name: values.to_pylist() for name, values in found.items()} == {"a": [2.0], "b": [4.0]}


def test_nan_and_infinity_keep_their_bits(tmp_path):
    bits = np.array([0x7FF8000000000001, 0xFFF0000000000000, 0x8000000000000000], dtype=np.uint64)
    group = written(tmp_path / "a.parquet", pa.array(bits.view(np.float64)))
    place = np.zeros(3, np.uint64)
    assert take_plain(group, {"a": pa.float64()}, np.arange(3), {"a": place}) == {"a"}
    assert place.tolist() == bits.tolist()


def test_broken_pages_end_in_values_or_are_left(tmp_path):
    """Whatever stands where the headers were: no hang, no other error."""
    path = tmp_path / "a.parquet"
    column = pa.array(np.arange(300.0))
    group = written(path, column)
    whole = path.read_bytes()
    begin = group.metadata.row_group(0).column(0).data_page_offset
    generator = np.random.default_rng(5)
    left = 0
    for _ in range(400):
        broken = bytearray(whole)
        for at in generator.integers(0, 40, generator.integers(1, 5)):
            broken[begin + at] = generator.integers(0, 256)
        path.write_bytes(broken)
        place = np.zeros(300, np.uint64)
        left += not take_plain(group, {"a": column.type}, np.arange(300), {"a": place})
    assert 0 < left < 400


def test_a_file_that_has_become_shorter_is_left(tmp_path):
    path = tmp_path / "a.parquet"
    group = written(path, pa.array(MANY))
    path.write_bytes(path.read_bytes()[:1_000])
    place = np.zeros(1, np.uint64)
    assert take_plain(group, {"a": pa.float64()}, np.array([5]), {"a": place}) == set()


@given(st.binary(max_size=64))
def test_any_bytes_are_a_structure_or_an_error(data):
    try:
        fields, end = read_struct(data, 0)
    except ThriftError:
        return
    assert 0 < end <= len(data)
    assert all(isinstance(number, int) for number in fields)


def test_a_structure_that_never_ends():
    with pytest.raises(ThriftError, match="no end"):
        read_struct(bytes([0x1C] * 100), 0)
    with pytest.raises(ThriftError, match="too long"):
        read_struct(bytes([0x15] + [0xFF] * 20), 0)
