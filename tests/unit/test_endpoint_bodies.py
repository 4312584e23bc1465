"""Bodies of an endpoint, and requests that are answered together."""

from __future__ import annotations

import csv
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from examples import cases
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.errors import AwsUnavailableError, InvocationError
from feast_dynamo_ext.sagemaker.serving.batching import MicroBatcher
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
        ("x" * 31, CSV, 413, "more than 30 bytes"),
        ("1\n" * 11, CSV, 413, "11 rows; the most are 10"),
        ("id\n", CSV, 422, "no rows"),
        ("1", "", 415, "The request has no Content-Type"),
        ("1", "image/png", 415, "text/csv"),
    ],
)
def test_what_is_refused(body, kind, status, words):
    with pytest.raises(InvocationError) as caught:
        read(body.encode(), kind, KEY, max_bytes=30)
    assert caught.value.status == status
    assert words in str(caught.value)


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


# Batches


class Gated:
    """Doubles numbers; holds the first batch until it is let go, while others gather."""

    def __init__(self):
        self.batches, self.began, self.go = [], threading.Event(), threading.Event()

    def __call__(self, numbers):
        self.batches.append(list(numbers))
        self.began.set()
        assert self.go.wait(30)
        if "bad" in numbers:
            raise ValueError("a bad one")
        if "away" in numbers:
            raise AwsUnavailableError("no answer")
        return [2 * number for number in numbers]


@pytest.fixture
def gated():
    function = Gated()
    batcher = MicroBatcher(function, max_wait_s=0.0, max_batch_rows=4, max_queued_rows=6)
    yield function, batcher
    function.go.set()
    batcher.close()


def first(function, batcher):
    future = batcher.submit(0, 1)
    assert function.began.wait(30)
    return future


def test_what_waits_is_answered_together_in_order(gated):
    function, batcher = gated
    futures = [first(function, batcher), *(batcher.submit(n, 1) for n in range(1, 7))]
    function.go.set()
    assert [future.result(30) for future in futures] == [2 * n for n in range(7)]
    assert function.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_a_bad_request_does_not_spoil_its_neighbours(gated):
    function, batcher = gated
    first(function, batcher)
    futures = [batcher.submit(each, 1) for each in (1, "bad", 3)]
    function.go.set()
    assert (futures[0].result(30), futures[2].result(30)) == (2, 6)
    with pytest.raises(ValueError, match="a bad one"):
        futures[1].result(30)
    assert function.batches == [[0], [1, "bad", 3], [1], ["bad"], [3]]


def test_a_store_that_is_away_is_not_asked_for_each(gated):
    function, batcher = gated
    first(function, batcher)
    futures = [batcher.submit(each, 1) for each in (1, "away", 3)]
    function.go.set()
    for future in futures:
        with pytest.raises(AwsUnavailableError):
            future.result(30)
    assert function.batches == [[0], [1, "away", 3]]


def test_the_queue_is_bounded(gated):
    function, batcher = gated
    first(function, batcher)
    futures = [batcher.submit(1, 5), batcher.submit(2, 1)]
    with pytest.raises(InvocationError, match="6 rows wait already, the most are 6") as caught:
        batcher.submit(3, 1)
    assert caught.value.status == 503
    assert futures[1].cancel()
    function.go.set()
    assert futures[0].result(30) == 2
    batcher.close()
    assert function.batches == [[0], [1]]
    with pytest.raises(InvocationError, match="stopping"):
        batcher.submit(4, 1)


def test_answers_go_to_their_own_requests_from_many_threads():
    batcher = MicroBatcher(
        lambda numbers: [n * n for n in numbers],
        max_wait_s=0.001,
        max_batch_rows=16,
        max_queued_rows=1_000,
    )
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda n: batcher.submit(n, 1).result(30), range(500)))
    batcher.close()
    assert found == [n * n for n in range(500)]
