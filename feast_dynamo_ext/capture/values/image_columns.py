"""Images of many items, as Arrow's JSON reader gives them, become columns.

Each attribute is a struct with a field for each of DynamoDB's types that its column takes. A row
whose value is of another type, or is not surely what it seems, is marked as doubtful.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.arrow_types import numbers
from feast_dynamo_ext.capture.values.change_rows import Images
from feast_dynamo_ext.capture.values.item_values import Misfit
from feast_dynamo_ext.capture.values.text_columns import column_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from feast_dynamo_ext.capture.values.attribute_types import CapturedColumn, ValueKind
    from feast_dynamo_ext.capture.values.item_values import ItemReader

    Rows = NDArray[np.int64] | None

IN_LINES = {"json", "map"}
"""Kinds whose values may hold anything: they are taken from the lines."""


@dataclass
class Findings:
    """What a walk through images found.

    Attributes:
        doubtful: rows that are to be read one by one.
        conflicts: attributes with values of a type that their column does not take.
        objects: how many named JSON objects the declared attributes are made of.
        is_complete: whether `objects` counts them all, and none too many.
    """

    doubtful: NDArray[np.bool_]
    conflicts: set[str] = field(default_factory=set)
    objects: int = 0
    is_complete: bool = True

    @classmethod
    def of_rows(cls, count: int) -> Findings:
        """None yet, of so many rows."""
        return cls(np.zeros(count, bool))

    def mark(self, bad: NDArray[np.bool_], rows: Rows = None) -> None:
        """Mark rows, or of elements the rows that they are of."""
        if rows is None:
            self.doubtful |= bad
        else:
            self.doubtful[rows[bad]] = True


@dataclass
class _Node:
    """What is read of an attribute, or of a name in a map: a value, or what is in it."""

    kind: ValueKind | None = None
    place: int = -1
    inside: dict[str, _Node] = field(default_factory=dict)


class ImageColumns:
    """The columns of images of one sort: before a change, after it, or its keys.

    Attributes:
        has_lines: whether a column is taken from the lines.

    Args:
        reader: decides what is doubtful.
    """

    def __init__(self, reader: ItemReader) -> None:
        self._reader = reader
        self._columns = reader.columns.columns
        self._tree = _Node()
        self._in_lines: list[int] = []
        leaves: set[tuple[str, ...]] = set()
        for place in sorted(range(len(self._columns)), key=self._depth):
            column = self._columns[place]
            within = {column.path[:end] for end in range(1, len(column.path))}
            if _is_in_lines(column.kind) or within & leaves:
                self._in_lines.append(place)
                continue
            leaves.add(column.path)
            node = self._tree
            for name in column.path:
                node = node.inside.setdefault(name, _Node())
            node.kind, node.place = column.kind, place
        # One path may be a value and lead to others: a struct, and one of its fields beside it.
        self.has_lines = bool(self._in_lines)

    def _depth(self, place: int) -> int:
        return len(self._columns[place].path)

    def json_type(self, with_nulls: Collection[str], watched: Collection[str]) -> pa.DataType:
        """What Arrow's reader is to look for.

        Args:
            with_nulls: attributes whose NULLs are read, too.
            watched: attributes that no column takes, and are counted.
        """
        fields = [
            pa.field(name, _node_type(node, nulls=name in with_nulls))
            for name, node in self._tree.inside.items()
        ]
        present = pa.struct([("NULL", pa.bool_())])
        fields += [pa.field(name, present) for name in watched if name not in self._tree.inside]
        return pa.struct(fields)

    def images(
        self, array: pa.StructArray, findings: Findings, items: Sequence[Any] | None
    ) -> Images:
        """The columns, null where there is no image or no value.

        Args:
            array: of `json_type`.
            findings: what is found is added to it.
            items: the same images as dicts; None where no column needs them.
        """
        arrays: list[pa.Array] = [None] * len(self._columns)
        present = _valid(array)
        self._walk(self._tree, array, findings, arrays, "")
        for place in self._in_lines:
            column = self._columns[place]
            arrays[place] = self._from_items(column, place, items or (), findings)
        for array_, column in zip(arrays, self._columns, strict=True):
            if column.required and array_.null_count > np.count_nonzero(~present):
                findings.mark(present & ~_valid(array_))
        return Images(arrays, present)

    def watched(
        self, array: pa.StructArray, names: Collection[str], which: NDArray[np.bool_]
    ) -> dict[str, int]:
        """How many of some images have each attribute that no column takes."""
        kinds = [part.name for part in array.type]
        parts = dict(zip(kinds, array.flatten(), strict=True))
        return {
            name: int(np.count_nonzero(_valid(parts[name]) & which))
            for name in names
            if name in parts and name not in self._tree.inside
        }

    def _walk(
        self,
        node: _Node,
        array: pa.StructArray,
        findings: Findings,
        arrays: list[pa.Array],
        attribute: str,
    ) -> None:
        """Go through the names of a map; `attribute` is the one it is in, or empty."""
        for part, child in zip(array.type, array.flatten(), strict=True):
            inner = node.inside.get(part.name)
            if inner is None:  # watched
                findings.objects += len(child) - child.null_count
                continue
            own = attribute or part.name
            if inner.kind is not None:
                arrays[inner.place] = _column(inner.kind, child, findings, None, own)
                continue
            findings.objects += len(child) - child.null_count
            map_ = _checked(child, 1, findings, None, own)[0]
            _count_map(map_, findings)
            self._walk(inner, map_, findings, arrays, own)

    def _from_items(
        self, column: CapturedColumn, place: int, items: Sequence[Any], findings: Findings
    ) -> pa.Array:
        values = []
        for row, item in enumerate(items):
            value = None if item is None else self._reader.value(place, item)
            if isinstance(value, Misfit):
                findings.doubtful[row] = True
                value = None
            values.append(value)
        return pa.array(values, column.kind.arrow)


def _is_in_lines(kind: ValueKind) -> bool:
    return kind.name in IN_LINES or any(map(_is_in_lines, kind.parts))


def _node_type(node: _Node, *, nulls: bool) -> pa.DataType:
    if node.kind is not None:
        return _json_type(node.kind, nulls=nulls)
    inside = [pa.field(name, _node_type(n, nulls=nulls)) for name, n in node.inside.items()]
    return _of_types([("M", pa.struct(inside))], nulls=nulls)


def _of_types(fields: list[tuple[str, pa.DataType]], *, nulls: bool) -> pa.DataType:
    return pa.struct([*fields, ("NULL", pa.bool_())] if nulls else fields)


def _json_type(kind: ValueKind, *, nulls: bool) -> pa.DataType:
    """The JSON of a value: a struct of the types that its column takes."""
    inner = pa.string()
    if kind.name == "bool":
        inner = pa.bool_()
    elif kind.name == "set":
        inner = pa.list_(pa.string())
    elif kind.name == "list":
        inner = pa.list_(_json_type(kind.parts[0], nulls=nulls))
    elif kind.name == "struct":
        inner = pa.struct([(name, _json_type(part, nulls=nulls)) for name, part in kind.fields])
    return _of_types([(name, inner) for name in kind.accepts], nulls=nulls)


def _valid(array: pa.Array) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = array.is_valid().to_numpy(zero_copy_only=False)
    return found


def _checked(
    node: pa.StructArray, types: int, findings: Findings, rows: Rows, attribute: str
) -> list[pa.Array]:
    """What stands under each type's name; marks values of other types."""
    children: list[pa.Array] = node.flatten()
    if types == 1 == len(children) and children[0].null_count == node.null_count:
        return children
    other = _valid(node)
    for child in children:
        other &= ~_valid(child)
    if other.any():
        findings.mark(other, rows)
        findings.conflicts.add(attribute)
    return children[:types]


def _count_map(map_: pa.StructArray, findings: Findings) -> None:
    """Of a map that is not empty, and says so by having something that is declared."""
    findings.objects += len(map_) - map_.null_count
    nothing = _valid(map_)
    for child in map_.flatten():
        nothing &= ~_valid(child)
    if nothing.any():
        findings.is_complete = False


def _column(
    kind: ValueKind,
    node: pa.StructArray,
    findings: Findings,
    rows: Rows,
    attribute: str,
    *,
    is_named: bool = True,
) -> pa.Array:
    if is_named:
        findings.objects += len(node) - node.null_count
    children = _checked(node, len(kind.accepts), findings, rows, attribute)
    first = children[0]
    if kind.name in {"list", "set"}:
        for other in children[1:]:
            if other.null_count < len(other):
                findings.mark(_valid(other), rows)
        return _lists(kind, first, findings, rows, attribute)
    if kind.name == "struct":
        _count_map(first, findings)
        arrays = [
            _column(part, child, findings, rows, attribute)
            for (_, part), child in zip(kind.fields, first.flatten(), strict=True)
        ]
        mask = first.is_null() if first.null_count else None
        return pa.StructArray.from_arrays(arrays, fields=list(kind.arrow), mask=mask)
    if kind.name == "bool":
        return first
    texts = first if len(children) == 1 else pc.coalesce(*children)
    array, doubtful = column_of(kind, texts)
    if doubtful is not None:
        findings.mark(doubtful, rows)
    return array


def _lists(
    kind: ValueKind, lists: pa.ListArray, findings: Findings, rows: Rows, attribute: str
) -> pa.ListArray:
    elements = lists.flatten()
    parents = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    of_rows = parents if rows is None else rows[parents]
    if elements.null_count:  # JSON's own null, which no value of DynamoDB is
        findings.mark(~_valid(elements), of_rows)
    element = kind.parts[0]
    if kind.name == "list":
        values = _column(element, elements, findings, of_rows, attribute, is_named=False)
    else:
        values, doubtful = column_of(element, elements)
        if doubtful is not None:
            findings.mark(doubtful, of_rows)
    lengths = numbers(pc.list_value_length(lists))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    mask = lists.is_null() if lists.null_count else None
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=kind.arrow, mask=mask)
