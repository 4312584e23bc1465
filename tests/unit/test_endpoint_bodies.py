"""Bodies of an endpoint: what is read, what is refused, what is answered."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from examples import cases
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.errors import InvocationError
from feast_dynamo_ext.sagemaker.serving.bodies import (
    CSV,
    JSON,
    JSON_LINES,
    FeatureCounts,
    RequestColumn,
    accepted_form,
    read_rows,
    write_answer,
)

COLUMNS = (
    RequestColumn("id", "int"),
    RequestColumn("name", "string"),
    RequestColumn("amount", "float", nullable=True),
    RequestColumn("new", "boolean", nullable=True),
    RequestColumn("at", "time", nullable=True),
)
INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": INT64,
            "name": TEXT,
            "amount": st.none() | st.floats(allow_nan=False, allow_infinity=False),
            "new": st.none() | st.booleans(),
            "at": st.none() | st.datetimes().map(lambda at: at.isoformat() + "+00:00"),
        }
    ),
    min_size=1,
    max_size=5,
)


def read(body, kind=JSON, columns=COLUMNS, **more):
    return read_rows(body, kind, columns, **{"max_rows": 10, **more})


@given(rows=ROWS)
@cases(60)
def test_the_three_forms_are_read_alike(rows):
    lines = "\n".join(json.dumps(row) for row in rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=[column.name for column in COLUMNS])
    writer.writeheader()
    writer.writerows(rows)  # the standard library's own: None is an empty cell
    bodies = {
        JSON: json.dumps(rows).encode(),
        JSON_LINES: lines.encode(),
        CSV: text.getvalue().encode(),
    }
    found = [read(body, kind) for kind, body in bodies.items()]
    assert found[0] == found[1] == found[2]
    assert found[0].count == len(rows)
    for name in ("id", "name", "amount", "new"):
        assert found[0].columns[name] == [row[name] for row in rows]
    times = [at and at.isoformat() for at in found[0].columns["at"]]
    assert times == [row["at"] for row in rows]


@given(body=st.binary(max_size=60), kind=st.sampled_from([JSON, JSON_LINES, CSV, "text/x", None]))
@cases(300)
def test_no_bytes_but_an_answer_or_a_refusal(body, kind):
    refusal, found = None, None
    try:
        found = read(body, kind)
    except InvocationError as error:
        refusal = error
    if refusal is None:
        assert 1 <= found.count <= 10
    else:
        assert refusal.status in (400, 413, 415, 422)
        assert str(refusal).endswith((".", "?"))


KEY = (RequestColumn("id", "int"),)


def test_an_empty_cell_is_null_where_null_may_be():
    columns = (RequestColumn("key", "string"), RequestColumn("word", "string", nullable=True))
    found = read(b"a,\n,b\n\n", CSV, columns)
    assert (found.columns["key"], found.columns["word"]) == (["a", ""], [None, "b"])
    one = read(b"word\na\n\nb\n", CSV, columns[1:])
    assert one.columns["word"] == ["a", None, "b"]


def test_a_time_is_not_cut():
    column = (RequestColumn("at", "time"),)
    whole = read(b'{"at": "2026-01-01T00:00:00.123456000Z"}', JSON, column)
    assert whole.columns["at"][0].microsecond == 123_456
    with pytest.raises(InvocationError, match="Row 1: `at` is no time"):
        read(b'{"at": "2026-01-01T00:00:00.123456001Z"}', JSON, column)


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        ('{"id": true}', JSON, 422, "Row 1: `id` is no whole number"),
        ('{"id": 1.5}', JSON, 422, "Row 1: `id` is no whole number"),
        ('{"id": 9007199254740994.0}', JSON, 422, "Row 1: `id` is no whole number"),
        ('[1, "2"]', JSON, 422, "Row 2: `id` is no whole number"),
        ('{"id": 9223372036854775808}', JSON, 422, "`id`"),
        ('{"id": 1}\n{"id": ', JSON_LINES, 400, "Line 2 is no JSON"),
        ('{"id": 1}\n[1]', JSON_LINES, 422, "The row of line 2 is no object"),
        ("id\n1\n", "text/csv; header=absent", 422, "Line 1: `id` is no whole number"),
        ("1\n", "text/csv; header=present", 422, "The first line is not the header"),
        ('"1\n', CSV, 400, "no CSV"),
        ("1\n\n2\n", CSV, 422, "Row 2: `id` is null"),
        ("1_0\n", CSV, 422, "Line 1: `id` is no whole number"),
        ("\N{ARABIC-INDIC DIGIT ONE}\n", CSV, 422, "Line 1: `id` is no whole number"),
        ("x" * 31, CSV, 413, "more than 30 bytes"),
        ("1\n" * 11, CSV, 413, "11 rows; the most are 10"),
        ("id\n", CSV, 422, "no rows"),
        ("1", "", 415, "The request has no Content-Type"),
        ("1", "image/png", 415, "text/csv"),
        ('{"id": 1, "id": 2}', JSON, 422, "A row has a name twice"),
        ('[{"id": 1},{"id":2,"id":2}]', JSON, 422, "A row has a name twice"),
        ('{"id": 1}\n{"id":2, "id": 3}', JSON_LINES, 422, "A row has a name twice"),
        ("[" * 30, JSON, 400, "no JSON"),
        ('{"id": 1e999}', JSON, 400, "no JSON: number is infinity"),
        ('{"id": [1]}', JSON, 422, "Row 1: `id` is no whole number"),
        ('{"id": "\\ud800"}', JSON, 400, "no JSON"),
        ("\ufeff[1]", JSON, 400, "no JSON"),
        ('{"id": -Infinity}', JSON, 400, "no JSON"),
        ("[1]", "application/json; charset=UTF-16", 415, "another charset"),
        ("1\n", 'text/csv; charset="latin-1"', 415, "Send it as UTF-8"),
    ],
)
def test_what_is_refused(body, kind, status, words):
    with pytest.raises(InvocationError) as caught:
        read(body.encode(), kind, KEY, max_bytes=30)
    assert caught.value.status == status
    assert words in str(caught.value)


DEEP = b"[" * 1_000 + b"]" * 1_000


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (DEEP, "Row 1"),
        (b"[" * 100_000, "no JSON"),
        (b'{"id":' * 5_000 + b"1" + b"}" * 5_000, "no JSON"),
        (b'{"id": %s, "id": 1}' % DEEP, "A row has a name twice"),
        (b'{"id": 1' + b"0" * 100_000 + b"}", "no JSON: number is infinity"),
        (b'{"instances":[{"id":1}],"instances":[{"id":2}]}', "A row has a name twice"),
        (b"9" * 100_000, "`id` is no whole number"),
        (b'"' + b"x" * 200_000 + b'"', "no CSV"),
        (b"1\0,", "Line 1|no CSV"),
    ],
)
def test_bodies_that_are_deep_or_long(body, words):
    kind = JSON if body[:1] in b"[{" else CSV
    with pytest.raises(InvocationError, match=words) as caught:
        read(body, kind, KEY)
    assert caught.value.status in (400, 422)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("body", [b'{"instances": [{"id": 1}]}', b'["a:b", ":"]', b'[{"id":1}]'])
def test_colons_are_not_always_names(body):
    columns = (RequestColumn("id", "string"),) if b'"a' in body else KEY
    assert read(body, JSON, columns).count in (1, 2)


def test_a_list_of_keys_alone():
    assert read(b"[3, 1, 7.0]", columns=KEY).columns == {"id": [3, 1, 7]}


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (None, JSON),
        ("*/*", JSON),
        ("text/*", CSV),
        ("text/csv;q=0.1, application/jsonlines;q=0.5", JSON_LINES),
        ("text/csv;q=0, application/json;q=0.1", JSON),
        ("text/html, application/x-ndjson", JSON_LINES),
    ],
)
def test_accept(accept, form):
    assert accepted_form(accept) == form


def test_answers_are_of_the_containers_forms():
    counts = FeatureCounts({"total": 1}, {}, {"city": 2})
    assert counts.header() == "missing=1; expired=0; unread=2"
    scores = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)
    assert json.loads(write_answer(scores, JSON, counts)) == {
        "predictions": [{"score": [0.25, 0.75]}, {"score": [0.5, 0.5]}],
        "features": {"missing": {"total": 1}, "expired": {}, "unread": {"city": 2}},
    }
    assert write_answer(scores, CSV, counts) == b"0.25,0.75\n0.5,0.5\n"
    lines = write_answer(np.array([1, 2]), JSON_LINES, counts)
    assert lines == b'{"score":1}\n{"score":2}\n'
