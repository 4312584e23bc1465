"""Data frames of a push as rows, by the encoding that materialization uses.

Feast's own conversion goes through Python values: it rounds integers above 2**53 beside a missing
one, cuts off fractions, and takes any number for True. Here a frame becomes Arrow columns, and
these become rows as those of a history do, so that both refuse and write the same.
"""

from __future__ import annotations

import uuid
from datetime import datetime, timezone
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.feature_view import DUMMY_ENTITY_ID
from feast.types import Array, Set, Struct
from feast.value_type import ValueType

from feast_dynamo_ext import _feast
from feast_dynamo_ext.arrow_types import (
    FIELD_VALUE_TYPE,
    VALUE_FIELD,
    is_text,
    one_array,
    plain,
    without_dictionary,
)
from feast_dynamo_ext.declared import JSON_KINDS, LISTS_OF_MAPS, MAPS, declared_as, value_type
from feast_dynamo_ext.declared_values import (
    NotAsDeclaredError,
    any_exact,
    documents,
    is_missing,
    json_text,
    with_fields,
)
from feast_dynamo_ext.dynamo.encoding.values import encode_values
from feast_dynamo_ext.dynamo.keys import encode_keys
from feast_dynamo_ext.dynamo.layouts.packed import Row, RowSchema
from feast_dynamo_ext.errors import ColumnNotFoundError, ColumnTypeError, ConfigError
from feast_dynamo_ext.timestamps import (
    check_time,
    has_mixed_times,
    micros,
    micros_of,
    times_of_objects,
)
from feast_dynamo_ext.view_settings import refuse_derived

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd

    from feast_dynamo_ext.declared import Declared, Nested

MOST_NAMED = 5
"""Rows that an error names."""


def rows_of_frame(
    view: Any, frame: pd.DataFrame, field_mapping: Mapping[str, str] | None = None
) -> tuple[RowSchema, list[Row]]:
    """The rows of a data frame, and what their values stand for.

    Args:
        view: a feature view, or an on-demand view that is written to the online store.
        frame: columns of join keys, features and times, in any order; others are not looked at.
            A column may be a named index. Columns of an on-demand view may be missing: they are
            null, and its event times are the current time.
        field_mapping: new names of columns, for an on-demand view; any other view's source says.

    Raises:
        ColumnNotFoundError: the frame lacks a column.
        ColumnTypeError: a value does not fit its column, or an event time is null.
        EntityKeyError: a key that cannot be one.
        ConfigError: the view has no batch source, or no rows of its own.
    """
    refuse_derived(view)
    on_demand = hasattr(view, "source_feature_view_projections")
    if not on_demand:
        if view.batch_source is None:
            raise ConfigError(
                f"Feature view `{view.name}` has no batch source, which says which column of a "
                "push has the event times. Give it one, for example as the `batch_source` of its "
                "PushSource."
            )
        field_mapping = view.batch_source.field_mapping
    columns = _Frame(view.name, frame, field_mapping or {}, may_lack=on_demand)
    keys = {
        column.name: column.dtype.to_value_type()
        for column in view.entity_columns
        if column.name != DUMMY_ENTITY_ID
    }
    features = {field.name: field.dtype.to_value_type() for field in view.features}
    if on_demand:
        # What is read back is computed from the keys too.
        features |= {name: kind for name, kind in sorted(keys.items()) if name in columns}
    declared = {field.name: declared_as(field.dtype) for field in view.features}
    arrays = {
        name: columns.array(name, kind, declared.get(name)) for name, kind in features.items()
    }
    if any(field.vector_index for field in view.features):
        _feast.check_vectors(pa.table(arrays), view)
    values = (
        encode_values(
            [*arrays.values()],
            [declared.get(name, kind) for name, kind in features.items()],
            [*features],
            view.name,
        )
        if arrays
        else pa.array([b""] * len(frame), pa.large_binary())
    )
    encoded = encode_keys(
        [columns.array(name, kind) for name, kind in keys.items()],
        [*keys.values()],
        [*keys],
        view.name,
        len(frame),
    )
    events: Sequence[int]
    created: Sequence[int | None]
    if on_demand:
        now = micros_of(datetime.now(timezone.utc))
        events, created = [now] * len(frame), [now] * len(frame)
    else:
        events = columns.event_times(view.batch_source.timestamp_field)
        created = columns.created_times(view.batch_source.created_timestamp_column)
    rows = map(Row, encoded.to_pylist(), values.to_pylist(), events, created)
    return _schema(view, features), list(rows)


def _schema(view: Any, features: Mapping[str, ValueType]) -> RowSchema:
    declared = RowSchema.from_view(view)
    more = [name for name in features if name not in declared.names]
    # As they are read back: of several value types that one field keeps, the field's own.
    types = [FIELD_VALUE_TYPE[VALUE_FIELD[features[name].name]] for name in more]
    return RowSchema((*declared.names, *more), (*declared.types, *types))


class _Frame:
    """The columns of a frame as Arrow arrays, under the names that features are defined on."""

    def __init__(
        self, view: str, frame: pd.DataFrame, renamed: Mapping[str, str], *, may_lack: bool
    ) -> None:
        self._view, self._frame, self._may_lack = view, frame, may_lack
        named = [*frame.columns, *(name for name in frame.index.names if name is not None)]
        self._stored = {renamed.get(name, name): name for name in named}

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def array(self, name: str, kind: ValueType, declared: Declared | None = None) -> pa.Array:
        """A column; NaN is null, as pandas means it.

        Raises:
            ColumnNotFoundError: there is none.
            ColumnTypeError: its objects are of several types, or have fields that nobody declared.
        """
        if name not in self._stored and self._may_lack:
            return pa.nulls(len(self._frame))
        column = self._column(name)
        try:
            if column.dtype == object:
                cells = list(column)
                lists = cells if kind in LISTS_OF_TIMES else ()
                _refuse_mixed_times(cell for cell in lists if not is_missing(cell))
                times = times_of_objects(cells)
                if times is not None:
                    return times
                if declared is None or isinstance(declared, ValueType):
                    return _array_of_objects(cells, kind)
                return _array_of_parts(cells, declared)
            array = one_array(pa.array(column, from_pandas=True))
            if declared is None or isinstance(declared, ValueType):
                return array
            return _array_of_parts(array.to_pylist(maps_as_pydicts="strict"), declared)
        except NotAsDeclaredError as error:
            raise ColumnTypeError(f"Feature view `{self._view}`: `{name}`: {error}.") from error
        except (pa.ArrowException, OverflowError, TypeError, ValueError, AttributeError):
            # Arrow's words show the value.
            raise ColumnTypeError(
                f"Feature view `{self._view}`: `{name}` holds objects of several types, or "
                f"numbers over 64 bits, and is declared as {kind.name}. Give the column one type."
            ) from None

    def event_times(self, name: str) -> list[int]:
        """Microseconds since 1970 UTC.

        Raises:
            ColumnNotFoundError: there is no such column.
            ColumnTypeError: it does not hold times, or a null; names the rows.
        """
        times = self._times(name)
        missing = np.flatnonzero(np.asarray(times.is_null()))
        if len(missing):
            named = ", ".join(str(row) for row in missing[:MOST_NAMED])
            more = ", ..." if len(missing) > MOST_NAMED else ""
            raise ColumnTypeError(
                f"Feature view `{self._view}`: {len(missing):,} of {len(times):,} rows have no "
                f"event time in `{name}` (row {named}{more}, counted from 0). Nothing was "
                "written. Fill them, or drop these rows."
            )
        found: list[int] = times.to_pylist()
        return found

    def created_times(self, name: str | None) -> Sequence[int | None]:
        """The same; null where there is none.

        Raises: as `event_times`, but for nulls.
        """
        if not name:
            return [None] * len(self._frame)
        found: list[int | None] = self._times(name).to_pylist()
        return found

    def _times(self, name: str) -> pa.Int64Array:
        where = f"Feature view `{self._view}`"
        return micros(name, parsed_times(name, self._column(name), where), where)

    def _column(self, name: str) -> pd.Series:
        stored = self._stored.get(name)
        if stored is None:
            raise ColumnNotFoundError(
                f"Feature view `{self._view}`: the rows lack the column `{name}`; they have "
                f"{sorted(map(str, self._stored))}."
            )
        if stored in self._frame.columns:
            column = self._frame[stored]
            if column.ndim > 1:
                raise ColumnTypeError(
                    f"Feature view `{self._view}`: the rows have several columns `{stored}`."
                )
            return column
        return self._frame.index.get_level_values(stored).to_series(index=self._frame.index)


def parsed_times(
    name: str, column: pd.Series | pa.ChunkedArray, where: str
) -> pa.Array | pa.ChunkedArray:
    """A column of times, or of texts of times; those without a zone are UTC.

    Raises:
        ColumnTypeError: a column of anything else, or a text that is no time.
    """
    import pandas as pd

    try:
        if isinstance(column, pd.Series):
            times = None
            if column.dtype == object:
                times = times_of_objects(column.to_numpy())
            column = one_array(pa.array(column, from_pandas=True)) if times is None else times
        if is_text(without_dictionary(column.type)):
            column = _times_of_texts(column.to_pandas().astype(object))
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        # The words of pandas and Arrow show the value.
        raise ColumnTypeError(
            f"{where}: column `{name}` holds a text that is not a time, or objects of several "
            "types. Texts are read as ISO 8601, for example 2026-01-31T12:00:00Z."
        ) from None
    if pa.types.is_null(column.type):
        return column.cast(pa.timestamp("us", "UTC"))
    check_time(name, column.type, where)
    return column


CYCLE_YEARS, CYCLE_US, EARLIEST_YEAR = 400, 146_097 * 86_400_000_000, 1700
"""After which the calendar is the same again; and the first year of a cycle that pandas holds."""


def _times_of_texts(texts: pd.Series) -> pa.TimestampArray:
    """ISO 8601 as times; in nanoseconds where one has a part below a microsecond."""
    import pandas as pd

    cycles: Any = 0
    try:
        parsed = pd.to_datetime(texts, utc=True, format="ISO8601")
    except pd.errors.OutOfBoundsDatetime:
        # To pandas a text is nanoseconds, of which 64 bits hold the years 1678 to 2261.
        years = texts.str.extract(r"^\s*(\d{4})")[0].astype("Int64")
        cycles = ((years - EARLIEST_YEAR) // CYCLE_YEARS).fillna(0).to_numpy(np.int64)
        within = (years - cycles * CYCLE_YEARS).astype(str)
        pairs = zip(within, texts, strict=True)
        moved = pd.Series([text and year + text.lstrip()[4:] for year, text in pairs])
        parsed = pd.to_datetime(moved, utc=True, format="ISO8601")
    times = one_array(pa.array(parsed, from_pandas=True))
    try:
        in_us = times.cast(pa.timestamp("us", "UTC"))
    except pa.ArrowInvalid:
        if np.any(cycles):
            raise
        return times
    if not np.any(cycles):
        return in_us
    return pc.add(in_us, pa.array(cycles * CYCLE_US, pa.duration("us")))


def _refuse_mixed_times(lists: Iterable[Any]) -> None:
    if any(map(has_mixed_times, lists)):
        raise TypeError


LISTS_OF_TIMES = {ValueType.UNIX_TIMESTAMP_LIST, ValueType.UNIX_TIMESTAMP_SET}


def _array_of_json(cells: list[Any], kind: ValueType) -> pa.Array | None:
    """Numbers, lists and maps as Feast hands them to an append, so that both have one text.

    None where there are texts, or what Arrow has no one type for, which no append is given.
    """
    given = [None if is_missing(cell) else cell for cell in cells]
    parts = [cell for cell in given if cell is not None]
    if kind is not ValueType.JSON:
        if not all(isinstance(cell, (list, tuple, np.ndarray)) for cell in parts):
            return None
        given = [
            cell if cell is None else [None if is_missing(part) else part for part in cell]
            for cell in given
        ]
        parts = [part for cell in given for part in cell or () if part is not None]
    if any(isinstance(part, (str, bytes)) for part in parts):
        return None
    try:
        if not _are_alike(parts):
            return None
        try:
            return one_array(pa.array(given))
        except pa.ArrowException:
            return one_array(pa.array([_with_nulls(cell) for cell in given]))
    except (pa.ArrowException, OverflowError, TypeError):
        return None


def _with_nulls(cell: Any) -> Any:
    """A document with null for NaN beside texts, booleans or maps, as pandas means it there."""
    if isinstance(cell, dict):
        return {key: _with_nulls(part) for key, part in cell.items()}
    if not isinstance(cell, (list, tuple, np.ndarray)):
        return cell
    has_others = any(
        not is_missing(part) and isinstance(part, (str, bool, np.bool_, dict)) for part in cell
    )
    return [None if has_others and is_missing(part) else _with_nulls(part) for part in cell]


def _array_of_objects(cells: list[Any], kind: ValueType) -> pa.Array:
    """Python's objects as an Arrow array; pandas and Arrow alone would change some of them."""
    if kind in JSON_KINDS and (made := _array_of_json(cells, kind)) is not None:
        return made
    if kind is ValueType.JSON:
        return pa.array([json_text(cell) for cell in cells], pa.string())
    if kind in MAPS | LISTS_OF_MAPS:
        return _array_of_maps(cells)
    if kind in JSON_KINDS:
        return _array_of_lists(with_fields(cells, kind))
    if kind is ValueType.SCALAR_MAP:
        maps = [cell for cell in cells if not is_missing(cell)]
        names = [key for cell in maps for key in cell]
        parts = [part for cell in maps for part in cell.values()]
        _refuse_mixed_times([names, parts])
        keys, items = pa.array(names), pa.array(parts)
        pairs = [None if is_missing(cell) else list(cell.items()) for cell in cells]
        return pa.array(pairs, pa.map_(keys.type, items.type))
    return _array_of_lists(cells)


def _array_of_parts(cells: list[Any], declared: Nested) -> pa.Array:
    """Values of a nested type; as JSON where maps of no declared fields differ in their keys."""
    cells = with_fields(_with_documents(_parsed(cells), declared), declared, strict=True)
    innermost: Declared = declared
    while isinstance(innermost, (Array, Set)):
        innermost = declared_as(innermost.base_type)
    # Numbers and texts, of which there may be many, are as Arrow takes them.
    is_plain = isinstance(innermost, ValueType) and innermost not in LISTS_OF_TIMES | LISTS_OF_MAPS
    if is_plain or _are_alike(cells):
        return _array_of_lists(cells)
    return pa.array([json_text(cell) for cell in cells], pa.string())


def _with_documents(cells: list[Any], declared: Declared) -> list[Any]:
    """What is declared as Json inside of nested types, as the texts that an append makes of it."""
    if declared in JSON_KINDS:
        kind = value_type(declared)
        made = _array_of_json(cells, kind)
        try:
            return cells if made is None else any_exact(plain(made), kind).to_pylist()
        except ValueError:
            return cells  # NaN, which the encoding refuses by the feature's name
    if isinstance(declared, ValueType):
        return cells
    if isinstance(declared, Struct):
        made = [dict(cell) if isinstance(cell, dict) else cell for cell in cells]
        for name, dtype in declared.fields.items():
            holders = [cell for cell in made if isinstance(cell, dict) and name in cell]
            parts = _with_documents([cell[name] for cell in holders], declared_as(dtype))
            for cell, part in zip(holders, parts, strict=True):
                cell[name] = part
        return made
    lists = [cell for cell in cells if isinstance(cell, (list, tuple, np.ndarray))]
    inner = declared_as(declared.base_type)
    documents_of = iter(_with_documents([part for cell in lists for part in cell], inner))
    return [
        list(islice(documents_of, len(cell)))
        if isinstance(cell, (list, tuple, np.ndarray))
        else cell
        for cell in cells
    ]


def _parsed(cells: list[Any]) -> list[Any]:
    """Texts as what they say as JSON, other objects as they are."""
    texts = [cell for cell in cells if isinstance(cell, (str, bytes))]
    if not texts:
        return cells
    try:
        found = iter(documents(pa.array(texts, pa.large_binary())))
    except ValueError as error:
        raise NotAsDeclaredError(str(error)) from error
    return [next(found) if isinstance(cell, (str, bytes)) else cell for cell in cells]


def _array_of_lists(cells: list[Any]) -> pa.Array:
    # Of a list: pandas would make floats of integers with a null among them.
    try:
        return one_array(pa.array(cells, from_pandas=True))
    except pa.ArrowException:
        return one_array(pa.array([_as_plain(cell) for cell in cells], from_pandas=True))


def _array_of_maps(cells: list[Any]) -> pa.Array:
    """Maps as structs, or as JSON, which Feast reads too, where structs would change them."""
    if _are_alike(cells):
        try:
            return one_array(pa.array(cells, from_pandas=True))
        except pa.ArrowException:
            pass  # values of several types
    return pa.array([json_text(cell) for cell in cells], pa.string())


def _are_alike(cells: Any) -> bool:
    """Whether maps at one place have the same keys: Arrow would give each the keys of all.

    Raises:
        TypeError: a key that is no text, or times beside other objects.
    """
    cells = [cell for cell in cells if not is_missing(cell)]
    if not cells or not isinstance(cells[0], (dict, list, tuple, np.ndarray)):
        _refuse_mixed_times([cells])
        return True
    if not isinstance(cells[0], dict):
        return _are_alike([part for cell in cells for part in cell])
    if not all(isinstance(key, str) for cell in cells for key in cell):
        raise TypeError
    keys = cells[0].keys()
    return all(cell.keys() == keys for cell in cells) and all(
        _are_alike([cell[key] for cell in cells]) for key in keys
    )


def _as_plain(cell: Any) -> Any:
    """What Arrow takes for an object that it does not take itself: UUIDs in lists, frozen sets."""
    if isinstance(cell, uuid.UUID):
        return str(cell)
    if isinstance(cell, (list, tuple, set, frozenset)):
        return [_as_plain(part) for part in cell]
    if isinstance(cell, dict):
        return {key: _as_plain(part) for key, part in cell.items()}
    return cell
