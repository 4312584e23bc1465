"""Requests of rows that were encoded by column are those of the same rows as items."""

from __future__ import annotations

from dataclasses import dataclass

import orjson
import pyarrow as pa
import pytest
from examples import cases
from hypothesis import example, given
from hypothesis import strategies as st

from feast_dynamo_ext.dynamo.encoding.requests import EncodedRows, Try
from feast_dynamo_ext.dynamo.layouts.packed import Row, RowSchema, to_item
from feast_dynamo_ext.dynamo.row_batch import EncodedBlock, Items, in_batches

SCHEMA = RowSchema(("a", "b"), ("DOUBLE", "STRING"))
TABLE = 'shop."ördérs"'
EVENT_US = 1_767_225_600_000_000


@dataclass(frozen=True)
class Both:
    """The same rows in both kinds."""

    items: list
    block: EncodedBlock

    def batches(self):
        return list(zip(in_batches(self.items), self.block.batches(), strict=True))


def both(rows: list[Row], ttl_s=None) -> Both:
    columns = [
        pa.array([row[at] for row in rows], kind)
        for at, kind in enumerate([pa.large_binary(), pa.large_binary(), pa.int64(), pa.int64()])
    ]
    items = [to_item(row, SCHEMA, ttl_s, "v") for row in rows]
    return Both(items, EncodedBlock(EncodedRows(*columns, SCHEMA, ttl_s)))


def plain(request) -> object:
    """A request as DynamoDB gets it, decoded."""
    return orjson.loads(orjson.dumps(request))


def numbered(count: int) -> list[Row]:
    return [
        Row(b"key %d" % at, b"x" * at, EVENT_US + at, None if at % 3 else at)
        for at in range(count)
    ]


moments = st.integers(-(10**16), 10**17)
rows_of_a_block = st.lists(
    st.builds(
        Row,
        st.binary(min_size=1, max_size=20),
        st.binary(max_size=3_000),
        moments,
        st.none() | moments,
    ),
    max_size=60,
    unique_by=lambda row: row.key,
)


@cases(40)
@given(rows=rows_of_a_block, ttl_s=st.none() | st.integers(1, 10**9), data=st.data())
def test_both_kinds_make_the_same_requests(rows, ttl_s, data):
    made = both(rows, ttl_s)
    seen = 0
    for items, encoded in made.batches():
        count = len(items)
        assert len(encoded) == count <= 25
        assert plain(encoded.puts()) == items.puts()
        assert [encoded.item(row) for row in range(count)] == list(items.items)
        places = st.lists(st.integers(0, count - 1), unique=True)
        chosen = data.draw(places)
        assert encoded.keys(chosen) == items.keys(chosen)
        todo = [(row, data.draw(st.sampled_from(Try))) for row in chosen]
        assert plain(encoded.statements(TABLE, todo)) == items.statements(TABLE, todo)
        for how in Try:
            whole = [(row, how) for row in range(count)]
            assert plain(encoded.statements(TABLE, whole)) == items.statements(TABLE, whole)
        for one, row in zip(encoded.single_row_batches(), items.single_row_batches(), strict=True):
            assert plain(one.puts()) == row.puts()
            assert (len(one), one.item(0), one.keys([0])) == (1, row.item(0), row.keys([0]))
        seen += count
    assert seen == len(rows)


@cases(30)
@given(places=st.permutations(range(5)), how=st.sampled_from(Try))
@example(places=[1, 0, 2, 3, 4], how=Try.INSERT)
@example(places=[4, 4, 4, 4, 4], how=Try.UPDATE)
def test_statements_come_in_the_order_in_which_they_are_asked_for(places, how):
    ((items, encoded),) = both(numbered(5)).batches()
    todo = [(row, how) for row in places]
    assert plain(encoded.statements(TABLE, todo)) == items.statements(TABLE, todo)


def test_no_statements_are_none():
    ((items, encoded),) = both(numbered(3)).batches()
    assert plain(encoded.statements(TABLE, [])) == items.statements(TABLE, []) == []


@pytest.mark.parametrize(
    ("rows", "sizes"), [(0, []), (1, [1]), (25, [25]), (26, [25, 1]), (51, [25, 25, 1])]
)
def test_a_request_takes_25_rows(rows, sizes):
    made = both(numbered(rows))
    assert [len(items) for items, _ in made.batches()] == sizes
    assert [key for _, batch in made.batches() for key in batch.keys(range(len(batch)))] == [
        row.key for row in numbered(rows)
    ]


def test_requests_written_out():
    rows = [Row(b"k0", b"a", EVENT_US, 7), Row(b"k1", b"b", EVENT_US, None)]
    (batch,) = both(rows, 60).block.batches()
    fixed = {"t": {"N": "1767225600000000"}, "f": {"B": "khAY10H0t3M="}, "x": {"N": "1767225661"}}
    first = {"k": {"B": "azA="}, "v": {"B": "YQ=="}, "c": {"N": "7"}, **fixed}
    second = {"k": {"B": "azE="}, "v": {"B": "Yg=="}, **fixed}
    assert plain({"RequestItems": {"t": batch.puts()}}) == {
        "RequestItems": {"t": [{"PutRequest": {"Item": item}} for item in (first, second)]}
    }
    assert (batch.item(1), batch.keys([1, 0])) == (second, (b"k1", b"k0"))
    told = plain({"Statements": batch.statements("t", [(1, Try.INSERT), (0, Try.REPLACE)])})
    moment, expiry, fingerprint = fixed["t"], fixed["x"], fixed["f"]
    assert told == {
        "Statements": [
            {
                "Statement": "INSERT INTO \"t\" VALUE {'k':?,'v':?,'t':?,'f':?,'x':?}",
                "Parameters": [second["k"], second["v"], moment, fingerprint, expiry],
            },
            {
                "Statement": 'UPDATE "t" SET v=? SET t=? SET f=? SET c=? SET x=? WHERE k=? '
                "AND (t<? OR (t=? AND (c IS MISSING OR c<=?)) OR t IS MISSING)",
                "Parameters": [
                    first["v"], moment, fingerprint, first["c"], expiry,
                    first["k"], moment, moment, first["c"],
                ],
                "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            },
        ]
    }  # fmt: skip


def test_units_are_of_1024_bytes_begun_by_each_item():
    # names k, v, t, f: 4 bytes; key: 2; a number of 16 digits: 9; fingerprint: 8
    room = 1_024 - 4 - 2 - 9 - 8
    widths = [0, room, room + 1, room + 1_024, room + 1_025]
    rows = [Row(b"k%d" % at, b"x" * wide, EVENT_US, None) for at, wide in enumerate(widths)]
    (batch,) = both(rows).block.batches()
    assert [one.units for one in batch.single_row_batches()] == [1, 1, 2, 2, 3]
    assert batch.units == 9
    assert Items([{}]).units == 0  # of a push they are not worked out


def test_units_are_those_of_the_batch_alone():
    wide = [Row(b"w%d" % at, b"x" * 5_000, EVENT_US, None) for at in range(25)]
    first, second = both([*numbered(25), *wide]).block.batches()
    assert (first.units, second.units) == (25, 125)
