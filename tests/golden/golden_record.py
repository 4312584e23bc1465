"""A record of what the package answers, as a text file that is committed and compared.

Everything in a record is a plain value. What differs from run to run is replaced by a name in
angle brackets before it is compared: folders, endpoints, times of now, generated ids.
"""

from __future__ import annotations

import base64
import datetime as dt
import difflib
import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pyarrow as pa

RECORDS = Path(__file__).parent / "records"
WIDTH = 97
MOST_DIFF_LINES = 400


def compare(area: str, record: Any) -> None:
    """Fail with a unified diff where the record is not the committed one.

    With `GOLDEN=write` in the environment the record is written instead.
    """
    path, text = RECORDS / f"{area}.json", rendered(plain(record)) + "\n"
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return
    expected = path.read_text()
    if text == expected:
        return
    lines = difflib.unified_diff(
        expected.splitlines(), text.splitlines(), f"records/{area}.json", "now", n=4, lineterm=""
    )
    shown = list(lines)
    more = (
        f"\n... {len(shown) - MOST_DIFF_LINES} more lines" if len(shown) > MOST_DIFF_LINES else ""
    )
    pytest.fail("\n".join(shown[:MOST_DIFF_LINES]) + more, pytrace=False)


def rendered(value: Any, indent: str = "") -> str:
    """JSON with sorted keys; what fits on a line stands on one, so that a diff names a row."""
    line = json.dumps(value, sort_keys=True, ensure_ascii=False)
    if len(indent) + len(line) <= WIDTH or not isinstance(value, (dict, list)) or not value:
        return line
    inner = f"{indent} "
    if isinstance(value, list):
        parts = [f"{inner}{rendered(one, inner)}" for one in value]
        return "[\n" + ",\n".join(parts) + f"\n{indent}]"
    parts = [
        f"{inner}{json.dumps(name, ensure_ascii=False)}: {rendered(value[name], inner)}"
        for name in sorted(value)
    ]
    return "{\n" + ",\n".join(parts) + f"\n{indent}}}"


def plain(value: Any) -> Any:  # noqa: PLR0911 - a line a type
    """A value as JSON has it; types that JSON lacks are named."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else f"<{value}>"
    if isinstance(value, (bytes, bytearray)):
        return f"base64 {base64.b64encode(bytes(value)).decode()}"
    if isinstance(value, dict):
        return {_name(name): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, (set, frozenset)):
        return ["set", *sorted((plain(one) for one in value), key=repr)]
    if isinstance(value, (dt.datetime, dt.date)):
        return f"{type(value).__name__} {value.isoformat()}"
    return f"{type(value).__name__} {value}"


def _name(name: Any) -> str:
    return name if isinstance(name, str) else repr(name)


def replaced(value: Any, names: Mapping[str, str], rules: Mapping[str, Any] | None = None) -> Any:
    """The value with texts replaced: `names` word by word, then `rules`, by re.sub."""
    if isinstance(value, str):
        for text in sorted(names, key=len, reverse=True):
            value = value.replace(text, names[text])
        for pattern, by in (rules or {}).items():
            value = re.sub(pattern, by, value)
        return value
    if isinstance(value, dict):
        return {
            replaced(name, names, rules): replaced(one, names, rules)
            for name, one in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [replaced(one, names, rules) for one in value]
    return value


def outcome(call: Callable[[], Any]) -> Any:
    """What a call answers, or the class and message of the error that it ends with."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - any error is an answer, and recorded
        return {"error": f"{type(error).__name__}: {error}"}


def table_record(table: pa.Table) -> dict[str, Any]:
    """Schema and rows of an Arrow table; times in their own unit, so that nothing is rounded."""
    import pyarrow as pa

    columns = []
    for column in table.columns:
        cells = column.to_pylist() if not pa.types.is_timestamp(column.type) else _times(column)
        columns.append(cells)
    return {
        "columns": [f"{field.name}: {field.type}" for field in table.schema],
        "rows": plain([list(row) for row in zip(*columns, strict=True)]),
    }


def _times(column: Any) -> list[Any]:
    """ISO 8601 up to seconds, then the units below them, exact for nanoseconds too."""
    import pyarrow as pa

    per_s = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[column.type.unit]
    digits = len(str(per_s)) - 1
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
    answers: list[Any] = []
    for units in column.cast(pa.int64()).to_pylist():
        if units is None:
            answers.append(None)
            continue
        moment = (epoch + dt.timedelta(seconds=units // per_s)).strftime("%Y-%m-%d %H:%M:%S")
        below = units % per_s
        answers.append(moment + (f".{below:0{digits}}" if below else ""))
    return answers


def frame_record(frame: Any) -> dict[str, Any]:
    """Types and rows of a pandas DataFrame."""
    import pandas as pd

    rows = [
        [None if cell is None or cell is pd.NaT or cell is pd.NA else _cell(cell) for cell in row]
        for row in frame.itertuples(index=False, name=None)
    ]
    return {
        "columns": [f"{name}: {kind}" for name, kind in frame.dtypes.items()],
        "rows": rows,
    }


def _cell(cell: Any) -> Any:
    import numpy as np

    if isinstance(cell, np.ndarray):
        return ["array", *(_cell(one) for one in cell)]
    if isinstance(cell, np.generic):
        cell = cell.item()
    return plain(cell)
