"""Bodies of requests and answers: JSON, JSON lines and CSV become rows, predictions become text.

Each form is one row of a table, `READERS` and `WRITERS`. What cannot be read is an
`InvocationError` with the status and one sentence; values of a request are never repeated in it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import orjson

from feast_dynamo_ext.config import did_you_mean
from feast_dynamo_ext.errors import InvocationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

JSON, JSON_LINES, CSV = "application/json", "application/jsonlines", "text/csv"
ALIASES = {
    "application/x-json": JSON,
    "application/x-ndjson": JSON_LINES,
    "application/ndjson": JSON_LINES,
    "application/json-lines": JSON_LINES,
    "application/jsonl": JSON_LINES,
}
BAD_SYNTAX, NOT_ACCEPTABLE, TOO_LARGE, UNSUPPORTED, BAD_VALUE = 400, 406, 413, 415, 422

MAX_BODY_BYTES = 6_291_456
"""What SageMaker passes on to a real-time endpoint."""

MAX_INT64, MAX_EXACT_FLOAT = 2**63 - 1, 2**53
DIGITS = 20
"""Of a whole number of 64 bits, with its sign."""


@dataclass(frozen=True)
class RequestColumn:
    """A value that each row of a request has.

    Attributes:
        name: of the entity key, the request data, or the feature that no view holds.
        kind: `int`, `float`, `string`, `boolean` or `time`.
        nullable: whether it may be null; an entity key may not.
    """

    name: str
    kind: str
    nullable: bool = False


@dataclass(frozen=True)
class RequestRows:
    """The rows of a request, column by column.

    Attributes:
        columns: the values of each column, in order of the rows; times have a zone.
        count: rows.
    """

    columns: Mapping[str, list[Any]]
    count: int


@dataclass(frozen=True)
class FeatureCounts:
    """Values that the features of some rows lack, by feature.

    Attributes:
        missing: not found online, or null there.
        expired: older than the view's ttl; null, or kept by the store's setting `expired: value`.
        unread: not read in time; null.
    """

    missing: Mapping[str, int]
    expired: Mapping[str, int]
    unread: Mapping[str, int]

    def header(self) -> str:
        """The totals as one line, for a header or a log."""
        return "; ".join(f"{name}={sum(found.values())}" for name, found in vars(self).items())


def read_rows(
    body: bytes,
    content_type: str | None,
    columns: Sequence[RequestColumn],
    *,
    max_rows: int,
    max_bytes: int = MAX_BODY_BYTES,
) -> RequestRows:
    """The rows of a request's body.

    Args:
        body: as it came.
        content_type: with its parameters, if any.
        columns: what each row has; CSV without a header has them in this order.
        max_rows: more of them are refused.
        max_bytes: a longer body is refused.

    Raises:
        InvocationError: 400 for a body that cannot be parsed, 413 for too many bytes or rows, 415
            for another content type, 422 for rows that lack a column or hold a wrong value.
    """
    if len(body) > max_bytes:
        raise too_large(max_bytes)
    kind, _, options = (content_type or "").lower().partition(";")
    reader = READERS.get(ALIASES.get(kind.strip(), kind.strip()))
    if reader is None:
        named = "has no Content-Type" if not kind.strip() else "has a Content-Type not known here"
        raise InvocationError(f"The request {named}. Send {_listed(READERS)}.", UNSUPPORTED)
    options = options.replace(" ", "").replace('"', "")
    charset = options.partition("charset=")[2].partition(";")[0]
    if charset not in ("", "utf-8", "utf8", "us-ascii", "ascii"):
        raise InvocationError(
            "The body is said to be of another charset. Send it as UTF-8.", UNSUPPORTED
        )
    if not body.strip():
        raise InvocationError("The body is empty. Send at least one row.", BAD_SYNTAX)
    rows = reader(body, columns, options)
    if not rows:
        raise InvocationError("The request has no rows. Send at least one.", BAD_VALUE)
    if len(rows) > max_rows:
        raise InvocationError(
            f"The request has {len(rows)} rows; the most are {max_rows}. Send them in parts.",
            TOO_LARGE,
        )
    values = RequestRows(
        {
            column.name: [_value(row[column.name], column, at) for at, row in enumerate(rows, 1)]
            for column in columns
        },
        len(rows),
    )
    if reader is not _csv:
        _refuse_duplicates(body, len(rows) * len(columns), by_line=reader is _json_lines)
    return values


def too_large(max_bytes: int) -> InvocationError:
    """The error of a body that is too long."""
    return InvocationError(
        f"The body has more than {max_bytes:,} bytes, the most. Send the rows in parts.", TOO_LARGE
    )


def _listed(forms: Mapping[str, Any]) -> str:
    *first, last = forms
    return f"{', '.join(first)} or {last}"


def _json(body: bytes, columns: Sequence[RequestColumn], _: str) -> list[dict[str, Any]]:
    found = _parsed(body, "The body")
    if isinstance(found, dict) and [*found] == ["instances"]:
        found = found["instances"]
        if not isinstance(found, list):
            raise InvocationError("`instances` is no list of rows.", BAD_VALUE)
    if isinstance(found, dict):
        return [_object(found, columns, "The row")]
    if not isinstance(found, list):
        raise InvocationError(
            "The body is neither an object nor a list. Send a row, a list of rows or "
            '{"instances": [...]}.',
            BAD_VALUE,
        )
    if len(columns) == 1:  # bare keys
        name = columns[0].name
        found = [row if isinstance(row, (dict, list)) else {name: row} for row in found]
    return [_object(row, columns, f"Row {at}") for at, row in enumerate(found, 1)]


def _json_lines(body: bytes, columns: Sequence[RequestColumn], _: str) -> list[dict[str, Any]]:
    lines = [(at, line) for at, line in enumerate(body.split(b"\n"), 1) if line.strip()]
    return [
        _object(_parsed(line, f"Line {at}"), columns, f"The row of line {at}")
        for at, line in lines
    ]


def _parsed(text: bytes, subject: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvocationError(
            f"{subject} is no JSON: {error.msg} at line {error.lineno}, column {error.colno}.",
            BAD_SYNTAX,
        ) from error


_INSTANCES = re.compile(rb'\s*\{\s*"instances"')


def _refuse_duplicates(body: bytes, names: int, *, by_line: bool) -> None:
    """Refuse an object with a name twice, of which orjson keeps the last."""
    # Each name has a colon: without more of them, there is none twice.
    if body.count(b":") <= names + (_INSTANCES.match(body) is not None):
        return
    try:
        for text in body.split(b"\n") if by_line else [body]:
            if text.strip():
                json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:  # values of the rows are not nested, so this one was replaced
        raise InvocationError("A row has a name twice.", BAD_VALUE) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InvocationError("A row has a name twice.", BAD_VALUE)
    return found


def _object(row: Any, columns: Sequence[RequestColumn], subject: str) -> dict[str, Any]:
    names = [column.name for column in columns]
    if not isinstance(row, dict):
        raise InvocationError(
            f"{subject} is no object. A row has {', '.join(names)} by name.", BAD_VALUE
        )
    if row.keys() != {*names}:
        absent = [name for name in names if name not in row]
        if absent:
            raise InvocationError(f"{subject} lacks `{absent[0]}`.", BAD_VALUE)
        other = next(name for name in row if name not in names)
        raise InvocationError(
            f"{subject} has `{other[:64]}`, which the model does not take. "
            f"{did_you_mean(other, names, 'It takes')}",
            BAD_VALUE,
        )
    return row


def _csv(body: bytes, columns: Sequence[RequestColumn], options: str) -> list[dict[str, Any]]:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvocationError(
            f"The body is no UTF-8: byte {error.start} cannot be read.", BAD_SYNTAX
        ) from error
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise InvocationError(f"The body is no CSV: {error}.", BAD_SYNTAX) from error
    while lines and not lines[-1][1]:
        lines.pop()
    # Of one column a line without anything is an empty cell; of several it is no row.
    lines = [(line, cells or [""]) for line, cells in lines if cells or len(columns) == 1]
    names, kinds = [column.name for column in columns], {c.name: c for c in columns}
    if "header=absent" in options:
        has_header = False
    else:
        has_header = bool(lines) and sorted(lines[0][1]) == sorted(names)
    if "header=present" in options and not has_header:
        raise InvocationError(
            f"The first line is not the header: {', '.join(names)}, in any order.", BAD_VALUE
        )
    if has_header:
        names, lines = lines[0][1], lines[1:]
    rows = []
    for line, cells in lines:
        if len(cells) != len(names):
            raise InvocationError(
                f"Line {line} has {len(cells)} cells; it needs {len(names)}: {', '.join(names)}.",
                BAD_VALUE,
            )
        rows.append(
            {name: _cell(cell, kinds[name], line) for name, cell in zip(names, cells, strict=True)}
        )
    return rows


def _cell(cell: str, column: RequestColumn, line: int) -> Any:
    """The value of a cell; an empty cell is null, but of a text that may not be null."""
    if column.kind in ("string", "time"):
        return cell or (None if column.kind == "time" or column.nullable else "")
    text = cell.strip()
    if not text:
        return None
    try:
        # Python reads 1_0 as 10, and digits of other scripts.
        return _PARSERS[column.kind](text if text.isascii() and "_" not in text else "?")
    except (ValueError, KeyError) as error:
        raise InvocationError(
            f"Line {line}: `{column.name}` is no {_KINDS[column.kind]}.", BAD_VALUE
        ) from error


_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}
_PARSERS: dict[str, Callable[[str], Any]] = {
    # Python takes ever longer for ever more digits.
    "int": lambda text: int(text[: DIGITS + 1]),
    "float": float,
    "boolean": lambda text: _BOOLEANS[text.lower()],
}
_KINDS = {
    "int": "whole number of 64 bits",
    "float": "finite number",
    "string": "text",
    "boolean": "boolean",
    "time": "time such as 2026-01-31T12:00:00Z",
}


def _value(value: Any, column: RequestColumn, row: int) -> Any:
    if value is None:
        if column.nullable:
            return None
        raise InvocationError(f"Row {row}: `{column.name}` is null.", BAD_VALUE)
    found = _CHECKS[column.kind](value)
    if found is None:
        raise InvocationError(
            f"Row {row}: `{column.name}` is no {_KINDS[column.kind]}.", BAD_VALUE
        )
    return found


def _int(value: Any) -> int | None:
    # JSON has one kind of number: 7.0 is 7. Beyond that, a float may have been another number.
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_EXACT_FLOAT:
        return int(value)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return value if is_whole and -MAX_INT64 - 1 <= value <= MAX_INT64 else None


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _boolean(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


FINER = re.compile(r"[.,]\d{6}0*[1-9]")
"""A part of a second that microseconds do not hold."""


def _time(value: Any) -> datetime | None:
    if not isinstance(value, str):
        return None
    if FINER.search(value):
        return None  # which would be cut off
    try:
        found = datetime.fromisoformat(value.replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "int": _int,
    "float": _float,
    "string": _text,
    "boolean": _boolean,
    "time": _time,
}

READERS: dict[str, Callable[[bytes, Sequence[RequestColumn], str], list[dict[str, Any]]]] = {
    JSON: _json,
    JSON_LINES: _json_lines,
    CSV: _csv,
}


# Answers


def accepted_form(accept: str | None) -> str:
    """The form of an answer: the best of an `Accept` header, JSON by default.

    Raises:
        InvocationError: 406 for none that is known here.
    """
    if not accept or not accept.strip():
        return JSON
    offers = []
    for at, offer in enumerate(accept.lower().split(",")):
        kind, _, options = offer.partition(";")
        weight = _weight(options)
        if weight > 0:
            offers.append((-weight, at, kind.strip()))
    for _, _, kind in sorted(offers):
        if kind in ("*/*", "application/*"):
            return JSON
        if kind == "text/*":
            return CSV
        if ALIASES.get(kind, kind) in WRITERS:
            return ALIASES.get(kind, kind)
    raise InvocationError(f"Answers come as {_listed(WRITERS)}.", NOT_ACCEPTABLE)


def _weight(options: str) -> float:
    for option in options.split(";"):
        name, _, value = option.strip().partition("=")
        if name == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def write_answer(predictions: NDArray[Any], form: str, counts: FeatureCounts) -> bytes:
    """Predictions, one per row of the first axis, as SageMaker's XGBoost container writes them.

    JSON has beside them what the features of the rows lack.
    """
    return WRITERS[form](predictions.tolist(), counts)


def _score(prediction: Any) -> dict[str, Any]:
    return {"score": prediction}


def _as_json(predictions: list[Any], counts: FeatureCounts) -> bytes:
    return orjson.dumps({"predictions": [*map(_score, predictions)], "features": vars(counts)})


def _as_lines(predictions: list[Any], _: FeatureCounts) -> bytes:
    return b"".join(orjson.dumps(_score(each)) + b"\n" for each in predictions)


def _as_csv(predictions: list[Any], _: FeatureCounts) -> bytes:
    rows = (each if isinstance(each, list) else [each] for each in predictions)
    return "".join(",".join(map(str, row)) + "\n" for row in rows).encode()


WRITERS: dict[str, Callable[[list[Any], FeatureCounts], bytes]] = {
    JSON: _as_json,
    JSON_LINES: _as_lines,
    CSV: _as_csv,
}


def error_body(message: str) -> bytes:
    """An error as JSON of one sentence."""
    return orjson.dumps({"error": " ".join(message.split())})
