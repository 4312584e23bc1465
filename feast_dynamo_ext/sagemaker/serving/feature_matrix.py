"""What the online store answered for some rows, as the matrix that the model takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.errors import InvocationError, TrainingSetError
from feast_dynamo_ext.sagemaker.encodings import arrow_type
from feast_dynamo_ext.sagemaker.row_encoding import row_plan
from feast_dynamo_ext.sagemaker.serving.bodies import BAD_VALUE, FeatureCounts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from feast_dynamo_ext.sagemaker.encodings import FittedEncoding
    from feast_dynamo_ext.sagemaker.manifest import Manifest

FEW_ROWS = 64
"""Up to here a plan row by row is faster than Arrow column by column."""


class FeatureEncoder:
    """The features of a training set's manifest, encoded for a model: see `matrix`."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._encodings = [manifest.encodings[name] for name in manifest.features]
        self._types = [_column_type(each) for each in self._encodings]
        kinds = [arrow_type(kind) for each in self._encodings for kind in each.types]
        self._plans = [row_plan(each) for each in self._encodings]
        self._is_of_numbers = all(map(_is_number, kinds))
        self._has_ages = any(each.kind == "age" for each in self._encodings)

    def matrix(
        self, columns: Sequence[list[Any]], event_times: Sequence[datetime]
    ) -> NDArray[Any]:
        """Encoded features, a row each; float64 with NaN for missing, if all are numbers.

        Args:
            columns: values of each of the manifest's features, in its order.
            event_times: of the rows, from which an age counts.

        Raises:
            InvocationError: 422, values that cannot be encoded.
        """
        try:
            if self._is_of_numbers and len(event_times) <= FEW_ROWS:
                return self._of_few(columns, event_times)
            arrays = [
                _array(each.column, values, kind)
                for each, values, kind in zip(self._encodings, columns, self._types, strict=True)
            ]
            table = pa.Table.from_arrays(arrays, names=list(self._manifest.features))
            return matrix_of(self._manifest.encode(table, self._times(event_times)))
        except TrainingSetError as error:
            raise InvocationError(str(error), BAD_VALUE) from error

    def _of_few(
        self, columns: Sequence[list[Any]], event_times: Sequence[datetime]
    ) -> NDArray[Any]:
        matrix = np.empty((len(event_times), len(self._manifest.outputs)), np.float64)
        start = 0
        for at, (encoding, plan) in enumerate(zip(self._encodings, self._plans, strict=True)):
            end = start + len(encoding.outputs)
            cells = plan.cells(columns[at], event_times) if plan is not None else None
            if cells is not None:
                matrix[:, start:end] = cells
            else:
                array = _array(encoding.column, columns[at], self._types[at])
                encoded = encoding.encode(array, self._times(event_times))
                for place, column in enumerate(encoded, start):
                    matrix[:, place] = column.to_numpy(zero_copy_only=False)
            start = end
        return matrix

    def _times(self, event_times: Sequence[datetime]) -> pa.Array | None:
        return pa.array(event_times, pa.timestamp("us", tz="UTC")) if self._has_ages else None


def _column_type(encoding: FittedEncoding) -> pa.DataType | None:
    """The type of a column in the join, where it is a plain one; else it follows from values."""
    try:
        return arrow_type(encoding.input_type)
    except ValueError:
        return None


def _array(name: str, values: list[Any], kind: pa.DataType | None) -> pa.Array:
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, OverflowError, ValueError) as error:
        raise InvocationError(
            f"Feature `{name}` of a row is no {kind or 'value of one type'}, as it was in "
            "training.",
            BAD_VALUE,
        ) from error


def matrix_of(table: pa.Table) -> NDArray[Any]:
    """Encoded features as a matrix, a row each; float64 with NaN for missing, if all are numbers.

    A set for a script may keep texts and times: then it is a matrix of objects.
    """
    if all(_is_number(kind) for kind in table.schema.types):
        matrix = np.empty((table.num_rows, table.num_columns), np.float64)
        for at, column in enumerate(table.columns):
            matrix[:, at] = column.to_numpy()
        return matrix
    matrix = np.empty((table.num_rows, table.num_columns), object)
    for at, column in enumerate(table.columns):
        matrix[:, at] = column.to_pylist()
    return matrix


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


# What rows lack


class LackingValues:
    """Which rows lack which feature, and how."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, list[int]]] = {
            "missing": {},
            "expired": {},
            "unread": {},
        }

    def add(self, name: str, values: Sequence[Any], statuses: Sequence[int]) -> None:
        """Take in a feature: its values, and their statuses, none for what the request gave."""
        from feast_dynamo_ext.dynamo.read import OUTSIDE_MAX_AGE, PRESENT, UNREAD

        if not any(value is None for value in values) and {*statuses} <= {PRESENT}:
            return
        how = {OUTSIDE_MAX_AGE: "expired", UNREAD: "unread"}
        for row, value in enumerate(values):
            status = statuses[row] if row < len(statuses) else PRESENT
            kind = how.get(status, "missing" if value is None else "")
            if kind:
                self._rows[kind].setdefault(name, []).append(row)

    def counts(self, start: int, end: int) -> FeatureCounts:
        """How many values the rows from `start` to before `end` lack."""
        return FeatureCounts(
            **{
                kind: {
                    name: found
                    for name, rows in by_name.items()
                    if (found := sum(start <= row < end for row in rows))
                }
                for kind, by_name in self._rows.items()
            }
        )
