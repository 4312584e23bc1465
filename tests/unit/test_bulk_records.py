"""Items -> lines of the files of a bulk load."""

from __future__ import annotations

import json

import pyarrow as pa

from feast_dynamo_ext.materialize.bulk_import.files import row_lines, schema_line

WITH_CREATED = b'{"k":{"B":"azE="},"v":{"B":"dg=="},"t":{"N":"-5"},"c":{"N":"7"}}'
WITHOUT = b'{"k":{"B":"azI="},"v":{"B":""},"t":{"N":"1767398400000000"},"x":{"N":"1"}}'


def items(*texts: bytes) -> pa.LargeBinaryArray:
    return pa.array(texts, pa.large_binary())


def test_the_lines_of_rows():
    assert row_lines(items(WITH_CREATED, WITHOUT)).to_pylist() == [
        b'{"Item":' + WITH_CREATED + b"}\n",
        b'{"Item":' + WITHOUT + b"}\n",
    ]


def test_a_slice_of_items_gives_its_own_lines():
    whole = items(WITHOUT, WITH_CREATED, WITHOUT)
    assert row_lines(whole.slice(1, 1)).to_pylist() == [b'{"Item":' + WITH_CREATED + b"}\n"]
    assert len(row_lines(whole.slice(0, 0))) == 0


def test_the_line_of_a_schema_holds_no_escaped_quote():
    (text,) = schema_line({"k": {"B": "azE="}, "s": {"S": '[["a","INT64"]]'}}).to_pylist()
    assert text == (
        b'{"Item":{"k":{"B":"azE="},"s":{"S":"[[\\u0022a\\u0022,\\u0022INT64\\u0022]]"}}}\n'
    )
    assert json.loads(text)["Item"]["s"]["S"] == '[["a","INT64"]]'
