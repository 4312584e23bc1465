"""Changes of items as rows of history: rules written out, and increments beside the records."""

from __future__ import annotations

import datetime as dt
import io

import pytest
from dynamo_items import line_of, values
from examples import cases
from export_writer import (
    NEW,
    NEW_AND_OLD,
    Change,
    ExportedTable,
    ExportPlace,
    items_after,
    write_full,
    write_increment,
)
from feast import Field
from feast.types import Int64, Json, String
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.capture.exports.export_rows import DataFile
from feast_dynamo_ext.capture.values.attribute_types import CapturedColumns
from feast_dynamo_ext.capture.values.change_rows import RecordReader, joined
from feast_dynamo_ext.errors import SourceReadError

UTC = dt.timezone.utc
T0 = dt.datetime(2026, 1, 5, tzinfo=UTC)


def columns_of(*fields, expiry="ttl", keys=None, event_time="at"):
    return CapturedColumns.from_fields(
        [Field(name=name, dtype=dtype, tags={}) for name, dtype in fields],
        keys=keys or {"id": "S"},
        event_time=event_time,
        event_time_unit="s",
        expiry=expiry,
    )


COLUMNS = columns_of(("v", Int64))


def image(event: int, value: str = "1", **more):
    return {"id": {"S": "k"}, "at": {"N": str(event)}, "v": {"N": value}, **more}


def rows_of(columns, *, old=None, new=None, written=100, keys=None):
    record = {"Keys": keys or {"id": {"S": "k"}}}
    record |= {"OldImage": old} if old else {}
    record |= {"NewImage": new} if new else {}
    found = RecordReader(columns).converted([record], [written * 1_000_000], ["o"])
    data = {"Metadata": {"WriteTimestampMicros": {"N": str(written * 1_000_000)}}, **record}
    file = DataFile(io.BytesIO(line_of(data)), columns, "o")
    (from_file,) = file.batches()
    assert from_file.rows.equals(found.rows)
    assert [row["reason"] for row in from_file.quarantine.to_pylist()] == [
        row["reason"] for row in found.quarantine.to_pylist()
    ]
    assert all(row["_feast_written_at"] == moment(written) for row in found.rows.to_pylist())
    return [
        (row["_feast_change"], row["at"], row["v"]) for row in found.rows.to_pylist()
    ], found.quarantine.to_pylist()


def moment(second: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(second, UTC)


@pytest.mark.parametrize(
    ("old", "new", "rows"),
    [
        (None, image(5), [("put", 5, 1)]),
        (image(5), image(5, "2"), [("put", 5, 2)]),
        (image(5), image(7, "2"), [("put", 7, 2), ("move", 5, 1)]),
        (image(7), image(5, "2"), [("put", 5, 2), ("move", 7, 1)]),
        (image(5), None, [("delete", 5, 1)]),
        (image(5, ttl={"N": "100"}), None, [("expire", 5, 1)]),
        (image(5, ttl={"N": "101"}), None, [("delete", 5, 1)]),
        (image(5, ttl={"S": "1"}), None, [("delete", 5, 1)]),
        (image(5, ttl={"N": "1.5"}), None, [("delete", 5, 1)]),
        (image(5, ttl={"N": "1"}), image(5), [("put", 5, 1)]),
        # Without an image, only the key is known: the deletion is the event.
        (None, None, [("delete", 100, None)]),
        # What does not fit in the item before is null; it never stops a deletion or a move.
        (image(5, "1.5"), None, [("delete", 5, None)]),
        (image(5, "1.5"), image(7), [("put", 7, 1), ("move", 5, None)]),
        ({"id": {"S": "k"}}, image(7), [("put", 7, 1)]),
        ({"id": {"S": "k"}}, None, [("delete", 100, None)]),
    ],
)
def test_the_rows_of_a_change(old, new, rows):
    found, bad = rows_of(COLUMNS, old=old, new=new)
    assert found == [(change, moment(event), value) for change, event, value in rows]
    assert bad == []


def test_a_change_to_what_does_not_fit_goes_to_quarantine_whole():
    found, bad = rows_of(COLUMNS, old=image(5), new=image(7, "x"))
    assert found == []
    assert (bad[0]["attribute"], bad[0]["_feast_change"]) == ("v", "put")


def test_a_key_that_does_not_fit_goes_to_quarantine():
    columns = columns_of(("v", Int64), keys={"id": "N"})
    _, bad = rows_of(columns, keys={"id": {"N": "1.5"}})
    assert (bad[0]["attribute"], bad[0]["_feast_change"]) == ("id", "delete")


def test_an_event_time_in_the_key_is_known_without_an_image():
    columns = columns_of(("v", Int64), keys={"id": "S", "at": "N"})
    found, _ = rows_of(columns, keys={"id": {"S": "k"}, "at": {"N": "9"}})
    assert found == [("delete", moment(9), None)]


def test_without_a_ttl_nothing_expires():
    found, _ = rows_of(columns_of(("v", Int64), expiry=None), old=image(5, ttl={"N": "1"}))
    assert found == [("delete", moment(5), 1)]


@pytest.mark.parametrize(
    "written",
    [{"N": "7"}, "7", 7],
)
def test_the_moment_of_writing_in_the_forms_that_are_documented(written):
    record = {
        "Metadata": {"WriteTimestampMicros": written},
        "Keys": {"id": {"S": "k"}},
        "NewImage": image(1),
    }
    (found,) = DataFile(io.BytesIO(line_of(record) * 3), COLUMNS, "f").batches()
    assert found.rows.num_rows == 3
    assert found.rows.column("_feast_written_at")[0].value == 7


@pytest.mark.parametrize("record", [{"Item": image(1)}, {"Keys": {"id": {"S": "k"}}}])
def test_a_line_of_another_export_is_refused(record):
    with pytest.raises(SourceReadError, match="f, line 1: "):
        list(DataFile(io.BytesIO(line_of(record)), COLUMNS, "f").batches())


# A log of writes, as full export and increments, and record by record.

MIXED = columns_of(("v", Int64), ("w", String), ("j", Json))


@st.composite
def logs(draw):
    """Writes of a few items, one a second."""
    log, there = [], {}
    for second in range(draw(st.integers(1, 12))):
        key = draw(st.sampled_from("abc"))
        new = None
        if key not in there or draw(st.integers(0, 3)):
            new = {"id": {"S": key}, "at": {"N": str(draw(st.integers(0, 3)))}}
            new |= {
                name: draw(values())
                for name in draw(st.sets(st.sampled_from(["v", "w", "j", "u"])))
            }
            if draw(st.booleans()):
                new["ttl"] = {"N": str(1_767_571_200 + draw(st.integers(0, 12)))}
        keys = {"id": {"S": key}}
        log.append(Change(keys, there.get(key), new, T0 + dt.timedelta(seconds=second)))
        there.pop(key, None)
        if new is not None:
            there[key] = new
    return log


@pytest.mark.slow
@given(logs(), st.integers(0, 12), st.sampled_from([NEW, NEW_AND_OLD]), st.booleans())
@cases(150)
def test_exports_say_what_their_records_say_one_by_one(log, split, view, compressed):
    place = ExportPlace(lambda key, data: None, compressed=compressed)
    at, end = T0 + dt.timedelta(seconds=split), T0 + dt.timedelta(hours=1)
    table = ExportedTable(partitions=2)
    full = write_full(place, table, items_after(log, at), at)
    increment = write_increment(place, table, log, at, end, view)
    exported_at = (at - dt.datetime(1970, 1, 1, tzinfo=UTC)) // dt.timedelta(microseconds=1)
    for export, moment_us in ((full, exported_at), (increment, None)):
        for part in export.files:
            file = DataFile(
                io.BytesIO(part.data),
                MIXED,
                part.key,
                exported_at=moment_us,
                md5=part.md5,
                records=part.count,
                chunk_bytes=300,
            )
            found = list(file.batches())
            rows = joined([each.rows for each in found], MIXED.history_schema)
            assert sorted(rows.to_pylist(), key=repr) == sorted(
                by_hand(part, compressed, moment_us, found), key=repr
            )
            bad = sum(each.quarantine.num_rows for each in found)
            assert file.totals.captured + bad == file.totals.records == part.count


def by_hand(part, compressed, exported_at, found):
    """The rows of a file's records, each on its own, by the rules as they are written down."""
    import gzip
    import json

    data = gzip.decompress(part.data) if compressed else part.data
    reader = RecordReader(MIXED)
    wanted = []
    bad = {
        row["origin"].rpartition(":")[2] for each in found for row in each.quarantine.to_pylist()
    }
    for number, line in enumerate(data.splitlines(), 1):
        record = json.loads(line)
        written = exported_at or int(record["Metadata"]["WriteTimestampMicros"]["N"])
        single = reader.converted([record], [written], ["o"])
        assert (single.quarantine.num_rows == 1) == (str(number) in bad)
        old, new = record.get("OldImage"), record.get("NewImage", record.get("Item"))
        changes = [row["_feast_change"] for row in single.rows.to_pylist()]
        if single.quarantine.num_rows:
            assert changes == []
        elif new is None:
            ttl = (old or {}).get("ttl")
            is_expired = ttl is not None and int(ttl["N"]) * 1_000_000 <= written
            assert changes == ["expire" if is_expired else "delete"]
        else:
            assert changes == (["put", "move"] if old and old["at"] != new["at"] else ["put"])
        wanted += single.rows.to_pylist()
    return wanted


def test_the_ttl_is_no_undeclared_attribute():
    record = {
        "Metadata": {"WriteTimestampMicros": {"N": "7"}},
        "Keys": {"id": {"S": "k"}},
        "OldImage": image(1, ttl={"N": "1"}, u={"S": "x"}),
        "NewImage": image(1, ttl={"N": "2"}, u={"S": "x"}),
    }
    file = DataFile(io.BytesIO(line_of(record) * 50), COLUMNS, "f", chunk_bytes=1_000)
    assert sum(each.rows.num_rows for each in file.batches()) == 50
    assert file.totals.undeclared == {"u": 100}
