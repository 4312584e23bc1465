"""Random items of DynamoDB, their JSON, and boto3's own reading of them."""

from __future__ import annotations

import base64
import json
from decimal import Decimal, InvalidOperation
from typing import Any

from boto3.dynamodb.types import TypeDeserializer
from hypothesis import strategies as st

NUMBERS = st.one_of(
    st.integers(-10, 10).map(str),
    st.integers(-(2**70), 2**70).map(str),
    st.integers(0, 10**38 - 1).map(str),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(repr),
    st.floats(1e-100, 1e100).map(repr),
    st.decimals(-(10**9), 10**9, allow_nan=False, places=2).map(str),
    st.sampled_from([
        "0", "-0", "1E-130", "9.9E+125", "-9.9E+125", "1E+2", "1.0", "1.50", "0.1", "007", "+5",
        "9223372036854775807", "9223372036854775808", "-9223372036854775808", "2147483648",
        "12345678901234567890123456789012345678", "0.12345678901234567890123456789012345678",
        "1.005", "1700000000", "1700000000123", "1700000000.123456", "1700000000.1234567",
        "1e16", "123456789012345678", "0.30000000000000004", "3.4028236E+38", "5.", ".5",
    ]),
)  # fmt: skip
MALFORMED = st.sampled_from(["", " 5", "5 ", "abc", "NaN", "inf", "1_000", "0x1F", "1e", "--1"])
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from([
        "", "a", '"quoted"', "back\\slash", "new\nline", "\x00", "é", "日本", "😀", '":{"', "}}",
        "2026-01-05T10:00:00Z", "2026-01-05", "2026-01-05 10:00:00.123456+02:00", "1700000000",
        "2026-02-30T00:00:00Z", "2026-01-05T10:00:00.1234567Z", "0000-01-01T00:00:00Z",
        "123e4567-e89b-12d3-a456-426614174000", "123E4567-E89B-12D3-A456-426614174000",
    ]),
)  # fmt: skip
BYTES = st.binary(max_size=8).map(lambda data: base64.b64encode(data).decode())


def scalars() -> st.SearchStrategy[dict[str, Any]]:
    """Values of one value, by the name of their type."""
    return st.one_of(
        TEXTS.map(lambda value: {"S": value}),
        NUMBERS.map(lambda value: {"N": value}),
        MALFORMED.map(lambda value: {"N": value}),
        BYTES.map(lambda value: {"B": value}),
        st.booleans().map(lambda value: {"BOOL": value}),
        st.just({"NULL": True}),
        st.lists(TEXTS, max_size=3, unique=True).map(lambda value: {"SS": value}),
        st.lists(NUMBERS, max_size=3, unique=True).map(lambda value: {"NS": value}),
        st.lists(BYTES, max_size=3, unique=True).map(lambda value: {"BS": value}),
    )


def values() -> st.SearchStrategy[dict[str, Any]]:
    """Values of all types, lists and maps in each other included."""
    return st.recursive(
        scalars(),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3).map(lambda value: {"L": value}),
            st.dictionaries(st.sampled_from(["x", "y", "X"]) | TEXTS, inner, max_size=3).map(
                lambda value: {"M": value}
            ),
        ),
        max_leaves=5,
    )


def exact(value: Any) -> Any:
    """A value of DynamoDB JSON as boto3 reads it, with `Decimal`s and sets."""
    if isinstance(value, dict) and set(value) == {"B"}:
        value = {"B": base64.b64decode(value["B"])}
    if isinstance(value, dict) and set(value) == {"BS"}:
        value = {"BS": [base64.b64decode(each) for each in value["BS"]]}
    return Reader().deserialize(value)


class Reader(TypeDeserializer):
    """boto3's, of bytes as JSON has them, without the rounding of Python's own context.

    A malformed number, which boto3 refuses, is what no number equals.
    """

    def _deserialize_n(self, value: str) -> Decimal | tuple[str, str]:
        try:
            return Decimal(value)
        except InvalidOperation:
            return ("malformed", value)

    def _deserialize_b(self, value: Any) -> bytes:
        return value if isinstance(value, bytes) else base64.b64decode(value)


def line_of(record: Any, *, ascii_only: bool = False) -> bytes:
    """A record as compact JSON."""
    return json.dumps(record, ensure_ascii=ascii_only, separators=(",", ":")).encode() + b"\n"
