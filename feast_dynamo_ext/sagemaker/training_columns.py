"""The columns an algorithm reads: which can be numbers, and as which type they are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.arrow_types import is_number
from feast_dynamo_ext.errors import TrainingSetError

if TYPE_CHECKING:
    from collections.abc import Sequence


_EXACT_FLOAT_LIMIT = 2**53


@dataclass(frozen=True)
class NumericColumn:
    """A column and the Arrow type it is written as."""

    name: str
    type: pa.DataType

    def convert(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """The column as its written type; NaN becomes null, so that missing has one spelling."""
        converted = column.cast(self.type)
        if not pa.types.is_floating(self.type):
            return converted
        return pc.if_else(pc.is_nan(converted), pa.scalar(None, self.type), converted)


def require_columns(table: pa.Table, names: Sequence[str]) -> None:
    """Raise TrainingSetError unless the table has each column exactly once."""
    absent = [name for name in names if name not in table.column_names]
    if absent:
        raise TrainingSetError(
            f"The table has no column {_listed(absent)}. It has: {_listed(table.column_names)}. "
            "Features are named by their output columns, with the view's name in front where "
            "full_feature_names=True was used."
        )
    twice = [name for name in names if table.column_names.count(name) > 1]
    if twice:
        raise TrainingSetError(
            f"The table has more than one column {_listed(twice)}. Retrieve the features with "
            "full_feature_names=True."
        )


def numeric_columns(
    table: pa.Table, *, label: str, features: Sequence[str], entity_columns: Sequence[str]
) -> list[NumericColumn]:
    """The label, then the features in order, each with the type it is written as.

    Raises:
        TrainingSetError: a column that is no number, an integer column with nulls and values
            that float64 would round, infinite values, or rows without a label.
    """
    _refuse_repeated(label, features)
    fields = [table.schema.field(name) for name in (label, *features)]
    _refuse_other_types(fields)
    _refuse_inexact([field.name for field in fields], table)
    _refuse_infinite([field.name for field in fields], table)
    _refuse_unlabelled(table, label, entity_columns)
    return [
        NumericColumn(field.name, _written_type(field.type, table.column(field.name).null_count))
        for field in fields
    ]


def _is_number(kind: pa.DataType) -> bool:
    return is_number(kind) or bool(pa.types.is_boolean(kind) or pa.types.is_null(kind))


def _written_type(kind: pa.DataType, null_count: int) -> pa.DataType:
    # SageMaker's XGBoost refuses integer Parquet columns with nulls. The table holds all splits,
    # so a column has the same type in each.
    if pa.types.is_decimal(kind) or pa.types.is_null(kind):
        return pa.float64()
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        whole = pa.int64() if pa.types.is_boolean(kind) else kind
        return pa.float64() if null_count else whole
    return pa.float32() if pa.types.is_float16(kind) else kind


def _refuse_repeated(label: str, features: Sequence[str]) -> None:
    if not features:
        raise TrainingSetError("`features` is empty. Name at least one column to train on.")
    repeated = sorted({name for name in features if features.count(name) > 1})
    if repeated:
        raise TrainingSetError(f"`features` names {_listed(repeated)} more than once.")
    if label in features:
        raise TrainingSetError(
            f"`{label}` is the label and one of `features`: the model would read its own answer. "
            "Leave it out of `features`."
        )


def _refuse_other_types(fields: list[pa.Field]) -> None:
    others = [f"`{field.name}` ({field.type})" for field in fields if not _is_number(field.type)]
    if others:
        raise TrainingSetError(
            f"SageMaker's algorithms read numbers only, which these columns are not: "
            f"{', '.join(others)}. Encode them as numbers, or leave them out of `features`."
        )


def _refuse_inexact(names: list[str], table: pa.Table) -> None:
    inexact = []
    for name in names:
        column = table.column(name)
        if pa.types.is_integer(column.type) and 0 < column.null_count < len(column):
            bounds = pc.min_max(column).as_py()
            if max(bounds["max"], -bounds["min"]) > _EXACT_FLOAT_LIMIT:
                inexact.append(name)
    if inexact:
        raise TrainingSetError(
            f"Integer columns with missing values are written as float64, which would round "
            f"values beyond 2^53 in {_listed(inexact)}. Fill the missing values, or leave the "
            "columns out of `features`: numbers that large are usually identifiers."
        )


def _refuse_infinite(names: list[str], table: pa.Table) -> None:
    infinite = []
    for name in names:
        column = table.column(name)
        if pa.types.is_floating(column.type):
            count = pc.sum(pc.is_inf(column)).as_py() or 0
            infinite += [f"`{name}` ({count} rows)"] if count else []
    if infinite:
        raise TrainingSetError(
            f"Infinite values, which XGBoost and most other algorithms refuse: "
            f"{', '.join(infinite)}. Replace them by null, which reads as missing, or by a number."
        )


def _refuse_unlabelled(table: pa.Table, label: str, entity_columns: Sequence[str]) -> None:
    missing = pc.is_null(table.column(label), nan_is_null=True)
    count = pc.sum(missing).as_py() or 0
    if count:
        row = pc.index(missing, pa.scalar(value=True)).as_py()
        entity = ", ".join(f"{name}={_cell(table, name, row)!r}" for name in entity_columns)
        raise TrainingSetError(
            f"The label `{label}` is missing (null or NaN) in {count} of {table.num_rows} rows; "
            f"the first is row {row} ({entity}). Drop these rows or give them a label."
        )


def _cell(table: pa.Table, name: str, row: int) -> Any:
    return table.column(name)[row].as_py()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
