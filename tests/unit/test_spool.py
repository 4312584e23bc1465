"""Rows on disk by key bucket: all of them, each once, in blocks of bounded size."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pyarrow as pa
import pytest
from examples import cases
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.dynamo.encoding.requests import Deletions, EncodedRows
from feast_dynamo_ext.dynamo.layouts.packed import RowSchema
from feast_dynamo_ext.errors import OfflineStoreError
from feast_dynamo_ext.materialize.spool import Spool, bucket_count

SCHEMA = RowSchema(("a", "b"), ("DOUBLE", "STRING"))
KB, MB = 1 << 10, 1 << 20


def encoded(rows, *, has_created=True) -> EncodedRows:
    """(key, values, event, created) each as encoded rows."""
    columns = list(zip(*rows, strict=True)) or [[]] * 4
    kinds = (pa.large_binary(), pa.large_binary(), pa.int64(), pa.int64())
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    return EncodedRows(*arrays[:3], arrays[3] if has_created else None, SCHEMA, 60)


def decoded(rows: EncodedRows) -> list[tuple]:
    """The inverse."""
    created = rows.created_us or pa.nulls(len(rows))
    columns = (rows.keys, rows.values, rows.event_us, created)
    return list(zip(*(column.to_pylist() for column in columns), strict=True))


def numbered(count: int, size: int = 10) -> list[tuple]:
    return [(b"key %d" % at, b"x" * size, at, None) for at in range(count)]


def spooled(folder, rows, buckets, done=()) -> dict[int, list[tuple]]:
    """What each bucket that is to be done holds."""
    with Spool(SCHEMA, 60, buckets, frozenset(done), str(folder)) as spool:
        spool.add(encoded(rows))
        spool.finish()
        return {
            bucket: [row for block in spool.blocks(bucket) for row in decoded(block)]
            for bucket in spool.todo
        }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all examples: nothing may stay in it."""
    folder = tmp_path_factory.mktemp("spool")
    yield folder
    assert list(folder.iterdir()) == []


@cases(40)
@given(data=st.data(), power=st.integers(0, 8), parts=st.integers(1, 4))
def test_rows_in_are_rows_out(folder, data, power, parts):
    keys = data.draw(st.sets(st.binary(min_size=1, max_size=12), max_size=40).map(sorted))
    rows = [
        (
            key,
            data.draw(st.binary(max_size=20)),
            data.draw(st.integers(-(2**63), 2**63 - 1)),
            data.draw(st.none() | st.integers(-(2**63), 2**63 - 1)),
        )
        for key in keys
    ]
    found: list[tuple] = []
    with Spool(SCHEMA, 60, 1 << power, folder=str(folder)) as spool:
        for part in range(parts):
            spool.add(encoded(rows[part::parts]))
        spool.finish()
        for bucket in spool.todo:
            of_bucket = [row for block in spool.blocks(bucket) for row in decoded(block)]
            assert len(of_bucket) == spool.rows[bucket] > 0
            found += of_bucket
    assert sorted(found, key=lambda row: row[0]) == rows
    assert (spool.buckets, int(spool.rows.sum()), spool.resumed) == (1 << power, len(rows), 0)


def test_rows_are_what_they_were_and_can_be_read_again(tmp_path):
    rows = [(b"a", b"1", 2**62, None), (b"b", b"", -5, 7)]
    with Spool(SCHEMA, 60, 1, folder=str(tmp_path)) as spool:
        spool.add(encoded(rows))
        spool.finish()
        for _ in range(2):
            (block,) = spool.blocks(0)
            assert decoded(block) == rows
            assert (block.schema, block.ttl_s) == (SCHEMA, 60)


@pytest.mark.parametrize("buckets", [1, 8])
def test_further_attributes_stay_with_their_rows(tmp_path, buckets):
    rows = [(key, values, at, at) for key, values, at, _ in numbered(300)]
    texts = [f"={at}" if at % 3 else None for at in range(300)]
    binaries = [b"%d" % at for at in range(300)]
    marks = {
        "g_segment": ("S", pa.array(texts, pa.large_string())),
        "s": ("B", pa.array(binaries, pa.large_binary())),
    }
    gone = Deletions(pa.array([b"gone"], pa.large_binary()), pa.array([7], pa.int64()))
    kinds = {name: kind for name, (kind, _) in marks.items()}
    with Spool(SCHEMA, 60, buckets, folder=str(tmp_path), marks=kinds) as spool:
        spool.add(replace(encoded(rows), marks=marks))
        spool.add_deletions(gone)
        spool.finish()
        blocks = [block for bucket in spool.todo for block in spool.blocks(bucket)]
    found, deleted = [], []
    for block in blocks:
        if isinstance(block, Deletions):
            deleted += block.keys.to_pylist()
            continue
        assert {name: kind for name, (kind, _) in block.marks.items()} == kinds
        cells = (values.to_pylist() for _, values in block.marks.values())
        found += zip(decoded(block), *cells, strict=True)
    assert sorted(found) == sorted(zip(rows, texts, binaries, strict=True))
    assert deleted == [b"gone"]


def test_a_source_without_created_times_has_none(tmp_path):
    with Spool(SCHEMA, 60, 1, folder=str(tmp_path)) as spool:
        spool.add(encoded([(b"a", b"1", 1, None)], has_created=False))
        spool.finish()
        (block,) = spool.blocks(0)
        assert block.created_us is None


def test_no_rows_are_nothing_to_do(tmp_path):
    assert spooled(tmp_path, [], 4) == {}


def test_done_buckets_are_counted_but_not_kept(tmp_path):
    rows = numbered(1_000)
    whole = spooled(tmp_path, rows, 8)
    assert sorted(whole) == list(range(8))
    with Spool(SCHEMA, 60, 8, frozenset({0, 3, 5}), str(tmp_path)) as spool:
        spool.add(encoded(rows[:500]))
        spool.add(encoded(rows[500:]))
        spool.finish()
        assert spool.todo == [1, 2, 4, 6, 7]
        assert spool.rows.tolist() == [len(whole[bucket]) for bucket in range(8)]
        assert spool.resumed == len(whole[0]) + len(whole[3]) + len(whole[5])
        for bucket in spool.todo:
            kept = [row for block in spool.blocks(bucket) for row in decoded(block)]
            assert kept == whole[bucket]


@pytest.mark.parametrize("buckets", [1, 4])
def test_where_all_buckets_are_done_nothing_is_kept(tmp_path, buckets):
    with Spool(SCHEMA, 60, buckets, frozenset(range(buckets)), str(tmp_path)) as spool:
        spool.add(encoded(numbered(100)))
        spool.finish()
        assert (spool.todo, spool.resumed) == ([], 100)


# Buckets


def test_as_many_buckets_as_rows_ask_for_in_powers_of_two_up_to_256():
    asked = [(0, 1), (1, 1), (100_000, 1), (100_001, 2), (200_000, 2), (200_001, 4), (300_001, 4)]
    asked += [(400_001, 8), (25_600_000, 256), (25_600_001, 256), (1_000_000_000, 256)]
    assert [bucket_count(rows, 100_000) for rows, _ in asked] == [count for _, count in asked]
    assert bucket_count(5, 1) == 8


def test_keys_are_spread_evenly(tmp_path):
    with Spool(SCHEMA, 60, 16, folder=str(tmp_path)) as spool:
        spool.add(encoded(numbered(16_000)))
        spool.finish()
        # 1,000 a bucket, give or take five standard deviations of 31
        assert 845 < spool.rows.min() <= spool.rows.max() < 1_155


# Blocks


def sizes(folder, rows) -> list[tuple[int, int]]:
    """Rows and bytes of the blocks of a spool with one bucket, whose rows must be `rows`."""
    with Spool(SCHEMA, 60, 1, folder=str(folder)) as spool:
        for start in range(0, len(rows), 5_000):
            spool.add(encoded(rows[start : start + 5_000]))
        spool.finish()
        blocks = [decoded(block) for block in spool.blocks(0)]
    assert [row for block in blocks for row in block] == rows
    return [(len(block), sum(len(row[0]) + len(row[1]) for row in block)) for block in blocks]


def test_narrow_rows_come_in_blocks_of_10_000(tmp_path):
    assert [rows for rows, _ in sizes(tmp_path, numbered(25_000))] == [10_000, 10_000, 5_000]


@pytest.mark.parametrize(
    "widths",
    [
        [4 * KB] * 2_500,
        [390 * KB] * 60,
        # nearly all of the bytes in a few rows, that follow each other
        [10] * 5_000 + [390 * KB] * 25 + [10] * 5_000,
        [390 * KB if at % 1_000 == 0 else 10 for at in range(20_000)],
    ],
    ids=["wide", "widest", "wide ones together", "wide ones apart"],
)
def test_wide_rows_come_in_blocks_of_4_mb(tmp_path, widths):
    rows = [(b"%d" % at, b"x" * width, at, None) for at, width in enumerate(widths)]
    blocks = sizes(tmp_path, rows)
    assert max(count for count, _ in blocks) <= 10_000
    assert max(size for _, size in blocks) <= 4 * MB
    # and no more of them than need be: two that follow each other are over a limit together
    for (rows_a, bytes_a), (rows_b, bytes_b) in itertools.pairwise(blocks):
        assert rows_a + rows_b > 5_000 or bytes_a + bytes_b > 2 * MB


# The disk


def test_nothing_stays_on_the_disk(tmp_path):
    with Spool(SCHEMA, 60, 4, folder=str(tmp_path)) as spool:
        spool.add(encoded(numbered(100, 400 * KB)))
        spool.finish()
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_on_the_disk_after_an_error(tmp_path):
    def fail():
        with Spool(SCHEMA, 60, 4, folder=str(tmp_path)) as spool:
            spool.add(encoded(numbered(100, 400 * KB)))
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["nowhere", "a file"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, folder):
    (tmp_path / "a file").write_text("")
    with pytest.raises(OfflineStoreError, match=rf"{folder}.*`spill_folder`"):
        spooled(tmp_path / folder, numbered(10), 2)


# Another process

SCRIPT = """
import json, resource, sys
import pyarrow as pa
from feast_dynamo_ext.dynamo.encoding.requests import EncodedRows
from feast_dynamo_ext.dynamo.layouts.packed import RowSchema
from feast_dynamo_ext.errors import OfflineStoreError
from feast_dynamo_ext.materialize.spool import Spool

schema = RowSchema(("other",), ("INT64",))
keys = pa.array([b"key %d" % at for at in range(60)], pa.large_binary())

def encoded(start, count, size):
    values = pa.array([b"x" * size] * count, pa.large_binary())
    return EncodedRows(keys[start:start + count], values, pa.array(range(count)), None, schema, 1)

def spooled(size, at_once):
    with Spool(schema, 1, 8, folder=sys.argv[1]) as spool:
        for start in range(0, 60, at_once):
            spool.add(encoded(start, at_once, size))
        spool.finish()
        return {
            bucket: [
                key.decode() for rows in spool.blocks(bucket) for key in rows.keys.to_pylist()
            ]
            for bucket in spool.todo
        }

def on_a_disk_of(size, limit):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        return "kept" if spooled(size, 60) else "lost"
    except OfflineStoreError as error:
        return str(error).replace(sys.argv[1], "the folder")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

limits = [0, 1, 500, 1_000, 2_000, 3_000, 10_000, 1_000_000, 100_000_000]
full = {size: {limit: on_a_disk_of(size, limit) for limit in limits} for size in (10, 300_000)}
print(json.dumps({"buckets": spooled(10, 1), "full": full}))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, fork_server):
    """What another process answers, and that it leaves nothing."""
    folder = tmp_path_factory.mktemp("elsewhere")
    result = fork_server.run("-c", SCRIPT, folder)
    assert (result.returncode, result.stderr) == (0, "")
    assert list(folder.iterdir()) == []
    return json.loads(result.stdout)


@pytest.mark.slow
def test_a_key_has_the_same_bucket_in_another_process(tmp_path, elsewhere):
    here = spooled(tmp_path, numbered(60), 8)
    assert elsewhere["buckets"] == {
        str(bucket): [row[0].decode() for row in rows] for bucket, rows in here.items()
    }
    assert sum(map(len, here.values())) == 60


@pytest.mark.slow
@pytest.mark.parametrize("row_bytes", ["10", "300000"])
def test_a_full_disk_is_one_error_that_says_so(elsewhere, row_bytes):
    """A limit to the size of a file is met where the end of a disk would be."""
    told = elsewhere["full"][row_bytes]
    assert told.pop("100000000") == "kept"
    full = (
        "The rows to write cannot be kept in the folder: [Errno 27] File too large. Free space "
        "there, or point `spill_folder` of the offline store to a larger disk."
    )
    assert told["0"] == told["1"] == told["500"] == full
    assert set(told.values()) <= {"kept", full}
