"""Attributes of cohorts by column, as `layouts.series.CohortMarker` makes them of a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.arrow_types import naming, one_array, plain
from feast_dynamo_ext.declared import scalar_exact
from feast_dynamo_ext.dynamo.layouts.series import MAX_COHORT_BYTES, check_key_bytes

if TYPE_CHECKING:
    from feast.value_type import ValueType


def cohort_texts(
    column: pa.Array | pa.ChunkedArray, kind: ValueType, name: str, view: str
) -> pa.LargeStringArray:
    """A feature's values as partition keys of their cohorts; null where they are.

    Args:
        column: the feature's column in the source.
        kind: its value type, of `AS_COHORTS`.
        name: the feature's, for errors.
        view: the feature view's, for errors.

    Raises:
        ColumnTypeError: a value does not fit the declared type, or is too long to be a key.
    """
    array = plain(one_array(column))
    with naming(name, kind, array.type, view):
        texts = scalar_exact(array, kind).cast(pa.large_string())
    found = pc.binary_join_element_wise(
        pa.scalar("=", pa.large_string()), texts, pa.scalar("", pa.large_string())
    )
    check_key_bytes(view, name, pc.max(pc.binary_length(found)).as_py() or 0, MAX_COHORT_BYTES)
    return found
