"""Join keys of the point-in-time join, in all types and amounts."""

from __future__ import annotations

import datetime as dt
import random
import uuid
from decimal import Decimal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Int64, from_value_type
from pit_cases import (
    HOUR,
    MICROSECONDS,
    Case,
    ViewCase,
    check,
    of_every_plan,
    plan_config,
)
from pit_oracle import HistoryRow
from pit_strategies import EDGES, FAMILIES, INTEGERS
from repos import NoRegistry

from feast_dynamo_ext.dynamo.keys import encode_keys
from feast_dynamo_ext.errors import ColumnTypeError, EntityRowsError
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore

NOW = 500_000 * HOUR


def case_of(entity_columns, history, kinds, entity_kinds, **view) -> Case:
    """One view: each key of the history once, asked for by each of the entity rows."""
    rows = tuple(HistoryRow(keys, NOW) for keys in history)
    return Case(
        (ViewCase(tuple(range(len(kinds))), kinds, rows, group=2, files=2, **view),),
        entity_kinds,
        tuple((keys, NOW) for keys in entity_columns),
    )


def test_integers_from_one_end_of_64_bits_to_the_other(tmp_path):
    keys = [(key,) for key in (*EDGES, -(2**63))]
    asked = [*keys[::-1], (None,), (2**63 - 2,), (-(2**63) + 1,), (7,)]
    check(case_of(asked, keys, (pa.int64(),), (pa.int64(),)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", INTEGERS, ids=str)
@pytest.mark.parametrize("theirs", [pa.int64(), pa.uint64()], ids=str)
def test_integers_of_each_width_meet_those_of_another(tmp_path, kind, theirs):
    ours = [(key,) for key in (0, 1, 3, 100, None)]
    check(case_of(ours, [*ours, (2,), (100,)], (theirs,), (kind,)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_null_joins_null_in_no_type(tmp_path, family):
    for at, kind in enumerate(FAMILIES[family].kinds_of([])[::4]):
        folder = tmp_path / str(at)
        folder.mkdir()
        check(case_of([(None,), (None,)], [(None,)], (kind,), (kind,)), folder)


def test_text_is_compared_byte_by_byte(tmp_path):
    """Composed and decomposed, upper and lower case, with and without a blank or a zero."""
    keys = [(key,) for key in FAMILIES["text"].values]
    asked = [*keys, ("A ",), ("n\x00",), ("nul",), (None,)]
    check(case_of(asked, keys[::-1], (pa.string(),), (pa.large_string(),)), tmp_path)


def test_three_keys_of_mixed_types_must_all_be_equal(tmp_path):
    kinds = (pa.int32(), pa.dictionary(pa.int8(), pa.string()), pa.bool_())
    history = [
        (1, "a", True),
        (1, "a", False),
        (1, "b", True),
        (2, "a", True),
        (None, "a", True),
        (1, None, True),
        (1, "a", None),
    ]
    asked = [*history, (2, "b", False), (2, "a", False), (1, "a", True), (None, None, None)]
    check(case_of(asked, history, kinds, (pa.uint64(), pa.string(), pa.bool_())), tmp_path)


def test_two_keys_do_not_run_into_one_another(tmp_path):
    history = [("a", "bc"), ("ab", "c"), ("", "abc"), ("abc", "")]
    text = (pa.string(), pa.string())
    check(case_of([*history[::-1], ("a", "b")], history, text, text), tmp_path)


def test_entity_rows_whose_keys_are_all_null_without_a_type(tmp_path):
    """As pandas gives them where a column holds nothing but None."""
    for kind, key in ((pa.string(), "a"), (pa.int64(), 1), (pa.bool_(), True)):
        folder = tmp_path / str(kind)
        folder.mkdir()
        check(case_of([(None,), (None,)], [(key,)], (kind,), (pa.null(),)), folder)


def test_a_key_over_64_bits_with_sign_is_refused_on_either_side(tmp_path):
    """One such key would have to be taken for another, or the column compared as decimals."""
    unsigned, big, small = pa.uint64(), [(2**63,)], [(1,)]
    for name, asked, history, error in (
        ("entities", big, small, EntityRowsError),
        ("history", small, big, ColumnTypeError),
    ):
        folder = tmp_path / name
        folder.mkdir()
        with pytest.raises(error, match=r"`e0`.* 1 of 1 values of type uint64"):
            check(case_of(asked, history, (unsigned,), (unsigned,)), folder)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["hot", "skewed", "distinct", "wide"])
def test_many_rows_of_one_key_and_many_keys(tmp_path, shape):
    """Keys run through batches, row groups and files; entity rows ask in no order."""
    dice = random.Random(shape)  # noqa: S311 - to generate rows
    key = {
        "hot": lambda: 7,
        "skewed": lambda: 7 if dice.random() < 0.6 else dice.randrange(300),
        "distinct": lambda: dice.randrange(2_000),
        "wide": lambda: dice.choice((-1, 1)) * 2 ** dice.randrange(62),
    }[shape]
    history = tuple(
        HistoryRow(
            (key(),), NOW + dice.randrange(200) * HOUR, NOW + dice.choice((1, 2, 300)) * HOUR
        )
        for _ in range(1_000)
    )
    view = ViewCase((0,), (pa.int64(),), history, created=MICROSECONDS, files=3, group=100)
    entities = tuple(((key(),), NOW + dice.randrange(-20, 260) * HOUR) for _ in range(60))
    for known in (False, True):
        folder = tmp_path / str(known)
        folder.mkdir()
        check(Case((view,), (pa.int64(),), entities, known=known), folder)


SECOND = dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc)
ID = uuid.UUID("12345678-1234-5678-1234-567812345678")


def history_of(folder, kind, keys):
    """A view whose file has a row a key, and the entity rows that ask for all of them."""
    at = pa.array([SECOND] * len(keys), pa.timestamp("us", "UTC"))
    path = folder / "history.parquet"
    pq.write_table(pa.table({"id": keys, "at": at, "n": range(len(keys))}), path)
    view = FeatureView(
        name="v",
        entities=[Entity(name="e", join_keys=["id"], value_type=kind)],
        schema=[Field(name="id", dtype=from_value_type(kind)), Field(name="n", dtype=Int64)],
        source=FileSource(path=str(path), timestamp_field="at"),
    )
    return view, pa.table({"id": keys, "event_timestamp": at})


def job_of(view, rows):
    return S3ParquetOfflineStore.get_historical_features(
        plan_config(), [view], ["v:n"], rows, NoRegistry(), "p"
    )


NO_KEYS = {
    "INT64": [
        pa.array([True, False]), pa.array(["02", "2"]), pa.array(["2"]).dictionary_encode(),
        pa.array([SECOND]), pa.array([SECOND.date()]), pa.array([b"2"]),
        pa.array([ID.bytes], pa.uuid()),
    ],
    "INT32": [pa.array([True]), pa.array(["2"]), pa.array([SECOND])],
    "STRING": [
        pa.array([True]), pa.array([SECOND]), pa.array([SECOND.date()]), pa.array([1.0]),
        pa.array([Decimal("5.00")], pa.decimal128(10, 2)),
    ],
    "UNIX_TIMESTAMP": [pa.array([True]), pa.array(["2026-01-02"]), pa.array([b"x"])],
    "BYTES": [pa.array([True]), pa.array([1]), pa.array([SECOND])],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "keys"), [(kind, keys) for kind in NO_KEYS for keys in NO_KEYS[kind]], ids=str
)
def test_a_column_of_no_keys_of_the_declared_type_is_refused(tmp_path, kind, keys):
    """As a push and a materialization refuse it."""
    with pytest.raises(ColumnTypeError):
        encode_keys([keys], [ValueType[kind]], ["id"], "v", len(keys))
    view, rows = history_of(tmp_path, ValueType[kind], keys)
    message = rf"`v`, source .*: join key `id` is declared as {kind}, .* values of type"
    with pytest.raises(ColumnTypeError, match=message):
        list(of_every_plan([view], ["v:n"], rows))
    with pytest.raises(ColumnTypeError, match=message):
        job_of(view, rows).to_sql()


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("INT32", pa.array([1, 2**31]), "1 of 2 values of type int64 cannot be int32"),
        ("INT32", pa.array([-(2.0**31) - 1]), "1 of 1 values of type double cannot be int32"),
        ("INT32", pa.array([2**31], pa.uint32()), "1 of 1 values of type uint32"),
        ("UNIX_TIMESTAMP", pa.array([5, 1_767_312_000_000]), "1 of 2 .* years 1 to 9999"),
        ("STRING", pa.array([b"ab", b"\xff"]), "1 of 2 values of type large_binary"),
        ("STRING", pa.array([b"\xff" * 16], pa.binary(16)), "1 of 1 values of type large_binary"),
    ],
    ids=str,
)
def test_a_value_that_is_no_key_of_the_declared_type_is_refused(tmp_path, kind, keys, message):
    with pytest.raises(ColumnTypeError, match=message):
        encode_keys([keys], [ValueType[kind]], ["id"], "v", len(keys))
    view, asked = history_of(tmp_path, ValueType[kind], keys)
    # As no row of the view has such a key, entity rows that have it are refused as well.
    of_rows = message.replace("large_binary", ".*binary")
    refused = rf"`v`: join key `id` of the entity rows is declared as {kind}.*{of_rows}"
    with pytest.raises(EntityRowsError, match=refused):
        list(of_every_plan([view], ["v:n"], asked))
    if kind != "STRING":
        with pytest.raises(EntityRowsError, match=refused):
            job_of(view, asked).to_sql()
    a_key = pa.array([b"x" * 16] if kind == "STRING" else [1]).cast(keys.type)
    rows = asked[:1].set_column(0, "id", a_key)
    with pytest.raises(ColumnTypeError, match=rf"join key `id` is declared as {kind}.*{message}"):
        list(of_every_plan([view], ["v:n"], rows))
    if kind == "STRING":
        with pytest.raises(ColumnTypeError, match=r"UTF-8.*to_arrow"):
            job_of(view, rows).to_sql()
        return
    with duckdb.connect() as database, pytest.raises(duckdb.Error, match="a join key is none of"):
        database.register("entity_df", rows).sql(job_of(view, rows).to_sql()).fetchall()


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("INT64", pa.array([1.0, -2.0])),
        ("INT64", pa.array([Decimal("1.00"), Decimal(-2)], pa.decimal128(10, 2))),
        ("INT32", pa.array([2**31 - 1, -(2**31)])),
        ("INT32", pa.array([1.0, 2.0])),
        ("STRING", pa.array([7, -8])),
        ("STRING", pa.array([Decimal(7), Decimal(8)], pa.decimal128(10, 0))),
        ("STRING", pa.array([b"ab", b"cd"], pa.binary(2))),
        ("STRING", pa.array([ID.bytes, bytes(16)], pa.uuid())),
        ("UNIX_TIMESTAMP", pa.array([5, 1_767_312_000])),
        ("UNIX_TIMESTAMP", pa.array([SECOND.date(), dt.date(1969, 12, 31)])),
        ("BYTES", pa.array(["a", "b"])),
        ("BYTES", pa.array([b"\xff", b""])),
    ],
    ids=str,
)
def test_keys_of_the_declared_type_are_joined(tmp_path, kind, keys):
    view, rows = history_of(tmp_path, ValueType[kind], keys)
    for plan, found in of_every_plan([view], ["v:n"], rows):
        assert found.column("n").to_pylist() == [0, 1], plan
