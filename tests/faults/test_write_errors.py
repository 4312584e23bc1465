"""Errors of writes name the rows that may be missing, whatever step of the write failed."""

from __future__ import annotations

import asyncio

import pytest
from fault_shop import VIEWS, Write, stored_key

from feast_dynamo_ext.errors import IncompleteWriteError

FAILED = (500, {"__type": "x#InternalServerError", "message": "no"})
WRITTEN = (200, {"UnprocessedItems": {}})


@pytest.fixture
def write(open_store, scripted_http):
    """Writes rows 1 to 3 of the overwritten view to a server that gives the scripted answers."""
    stores = []

    def write(answers, progress=None):
        online = {
            "region": "us-east-1",
            "endpoint_url": scripted_http(answers),
            "total_max_retry_attempts": 1,
        }
        stores.append(open_store(online=online))
        rows = Write("log", [(number, 0) for number in (1, 2, 3)]).of_feast()
        provider = stores[-1]._get_provider()
        provider.online_write_batch(stores[-1].config, VIEWS["log"], rows, progress)

    yield write
    for store in stores:
        asyncio.run(store.close())


def test_rows_are_named_where_their_schema_could_not_be_written(write):
    with pytest.raises(IncompleteWriteError, match=r"p\.log: 3 of 3 rows.*InternalServerEr") as no:
        write([FAILED])
    assert no.value.unwritten == [stored_key("log", number) for number in (1, 2, 3)]


def test_rows_are_named_where_their_services_cannot_be_read_either(write):
    with pytest.raises(IncompleteWriteError, match=r"p\.log: 3 of 3 rows.*InternalServerEr") as no:
        write([WRITTEN, FAILED, FAILED])
    assert no.value.unwritten == [stored_key("log", number) for number in (1, 2, 3)]


def test_what_progress_raises_ends_the_write(write):
    def progress(count):
        raise KeyError(count)

    with pytest.raises(KeyError, match="3"):
        write([WRITTEN, WRITTEN, (200, {"Responses": {}})], progress)
