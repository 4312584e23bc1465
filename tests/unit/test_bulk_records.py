"""Items -> lines of the files of a bulk load."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from feast_dynamo_ext.materialize.bulk_import.files import line, newest_wins_lines, plain_lines
from feast_dynamo_ext.materialize.bulk_import.load import CONDITION

WITH_CREATED = b'{"k":{"B":"azE="},"v":{"B":"dg=="},"t":{"N":"-5"},"c":{"N":"7"}}'
WITHOUT = b'{"k":{"B":"azI="},"v":{"B":""},"t":{"N":"1767398400000000"},"x":{"N":"1"}}'
OPENING = b',"ConditionExpression":"attribute_not_exists(#k) OR #t < :t OR (#t = :t AND '
NAMES = b'"ExpressionAttributeNames":{"#k":"k","#t":"t","#c":"c"},"ExpressionAttributeValues":'


def items(*texts: bytes) -> pa.LargeBinaryArray:
    return pa.array(texts, pa.large_binary())


def test_plain_lines():
    assert plain_lines(items(WITH_CREATED, WITHOUT)).to_pylist() == [
        b'{"Item":' + WITH_CREATED + b"}\n",
        b'{"Item":' + WITHOUT + b"}\n",
    ]


def test_lines_whose_newest_row_wins():
    assert newest_wins_lines(items(WITH_CREATED, WITHOUT)).to_pylist() == [
        b'{"Item":'
        + WITH_CREATED
        + OPENING
        + b'(attribute_not_exists(#c) OR #c <= :c))",'
        + NAMES
        + b'{":t":{"N":"-5"},":c":{"N":"7"}}}\n',
        b'{"Item":'
        + WITHOUT
        + OPENING
        + b'attribute_not_exists(#c))",'
        + NAMES
        + b'{":t":{"N":"1767398400000000"}}}\n',
    ]


def test_a_slice_of_items_gives_its_own_lines():
    whole = items(WITHOUT, WITH_CREATED, WITHOUT)
    assert newest_wins_lines(whole.slice(1, 1)).to_pylist() == [
        newest_wins_lines(items(WITH_CREATED))[0].as_py()
    ]
    assert len(plain_lines(whole.slice(0, 0))) == 0


def test_an_item_without_event_time_is_no_row():
    with pytest.raises(ValueError, match="1 items have no `t`"):
        newest_wins_lines(items(WITHOUT, b'{"k":{"B":"azE="}}'))


def test_the_line_of_a_schema_holds_no_escaped_quote():
    (text,) = line({"k": {"B": "azE="}, "s": {"S": '[["a","INT64"]]'}}).to_pylist()
    assert text == (
        b'{"Item":{"k":{"B":"azE="},"s":{"S":"[[\\u0022a\\u0022,\\u0022INT64\\u0022]]"}}}\n'
    )
    assert json.loads(text)["Item"]["s"]["S"] == '[["a","INT64"]]'


def test_the_line_of_a_probe():
    (text,) = line({"k": {"B": "azE="}}, CONDITION).to_pylist()
    assert text == (
        b'{"Item":{"k":{"B":"azE="}},'
        b'"ConditionExpression":"attribute_exists(#k) AND attribute_not_exists(#k)",'
        b'"ExpressionAttributeNames":{"#k":"k"}}\n'
    )
