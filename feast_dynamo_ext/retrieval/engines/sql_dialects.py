"""Where SQL engines differ: quotes, types, functions, how files are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from feast_dynamo_ext.arrow_types import EXACT_BITS, is_bytes
from feast_dynamo_ext.parquet.listing import partition_value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from feast_dynamo_ext.parquet.source import ParquetSource


@dataclass(frozen=True)
class Dialect:
    """Where SQL engines differ.

    Attributes:
        quote: what stands around names, doubled within them.
        types: the types of keys' families, and those of integers of 64 bits and of `wide_bits`.
        wide_bits: of the widest integer, without its sign.
        asof_join: the join with the last row up to a time.
        max_by: the function that gives one column's value where another is the greatest.
        row: the function that makes one value of several, compared one after the other.
        epoch_us: the function from a time to microseconds since 1970 UTC.
        epoch_ns: likewise to nanoseconds.
        of_folder: the types of columns that only the folders' names have, by what Arrow says.
        read_files: the expression that reads a source's files, in the order of their paths.
        position: the expression of a row's position in these; it ascends with file and row.
        fail: the function that ends the statement with an error of these words.
        inlined: what makes a common table expression part of each query that uses it. A history
            is used for matching and for features, and the columns that each needs are read there
            (measured: 3.2 s of CPU and 1.4 GB where it was kept, 2.2 s and 0.8 GB inlined).
    """

    quote: str
    types: Mapping[str, str]
    wide_bits: int
    asof_join: str
    max_by: str
    row: str
    epoch_us: str
    epoch_ns: str
    read_files: Callable[[ParquetSource], str]
    position: str
    fail: str
    inlined: str

    def quoted(self, name: str) -> str:
        """A name of a column or a table."""
        return self.quote + name.replace(self.quote, 2 * self.quote) + self.quote

    def cast(self, expression: str, kind: str) -> str:
        """An expression in one of `types`."""
        return f"CAST({expression} AS {self.types[kind]})"

    def whole(self, expression: str, kind: pa.DataType) -> str:
        """A number as an integer, which it surely is; see `key_types.comparable`."""
        exact, missing = f"{expression} = trunc({expression})", f"{expression} IS NULL"
        if pa.types.is_floating(kind):
            exact += f" AND abs({expression}) < {1 << EXACT_BITS[kind.bit_width]}"
            missing += f" OR isnan({expression})"
        refused = literal(f"a join key of type {kind} holds a value that is surely no integer")
        return (
            f"CASE WHEN {missing} THEN NULL WHEN {exact} "
            f"THEN {self.cast(expression, 'integer')} ELSE {self.fail}({refused}) END"
        )

    def second(self, ticks: str, *, in_ns: bool) -> str:
        """Nanoseconds or microseconds as the seconds that keys are; see `key_types`."""
        per_second = 1_000_000_000 if in_ns else 1_000_000
        whole = self.cast(f"{ticks} // {per_second}", "integer")
        refused = literal(
            "a join key is a time with a part below a second, which keys do not hold"
        )
        return (
            f"CASE WHEN {ticks} IS NULL OR {ticks} % {per_second} = 0 THEN {whole} "
            f"ELSE {self.fail}({refused}) END"
        )


def literal(text: str) -> str:
    """A string."""
    return "'" + text.replace("'", "''") + "'"


def _read_parquet(source: ParquetSource) -> str:
    on_s3 = source.place.is_on_s3
    paths = [f"s3://{file.path}" if on_s3 else file.path for file in source.files]
    listed = ",\n    ".join(literal(path) for path in paths)
    read = f"read_parquet([\n    {listed}\n  ], union_by_name = true, hive_partitioning = false)"
    of_folders = source.parts.of_folders
    # Of an Iceberg table each file may have what its partition says as well, or none, or some.
    some = source.parts.fragments[: None if source.parts.table is not None else 1]
    inside = [set(part.physical_schema.names) for part in some if of_folders]
    of_folders -= set.intersection(*inside) if inside else set()
    if not of_folders:
        return read
    in_some = of_folders & set().union(*inside)
    others = f" EXCLUDE ({', '.join(map(DUCKDB.quoted, sorted(in_some)))})" if in_some else ""
    # DuckDB would guess at what folders' names mean; those of a Delta table need not say it.
    columns = ",\n    ".join(
        _of_files(source, name, is_inside=name in in_some) for name in sorted(of_folders)
    )
    return f"(SELECT *{others}, file_index, file_row_number,\n    {columns}\n  FROM {read})"  # noqa: S608 - quoted


def _of_files(source: ParquetSource, name: str, *, is_inside: bool) -> str:
    """A column that each file has one value of, from a list in the order of the files.

    Args:
        source: the files.
        name: of the column.
        is_inside: whether some files have it, of which it may not be known otherwise.
    """
    kind = source.schema.field(name).type
    values = ", ".join(
        _literal(partition_value(file, name, kind)) if name in dict(file.partition) else "NULL"
        for file in source.files
    )
    value = f"CAST([{values}] AS {type_name(kind)}[])[CAST(file_index AS BIGINT) + 1]"
    own = DUCKDB.quoted(name)
    return f"coalesce({value}, {own}) AS {own}" if is_inside else f"{value} AS {own}"


def _literal(value: pa.Scalar) -> str:
    """A value in DuckDB, of any type that tables are partitioned by."""
    if not value.is_valid:
        return "NULL"
    kind = value.type
    if pa.types.is_timestamp(kind):
        ticks = value.cast(pa.timestamp("ns" if kind.unit == "ns" else "us", kind.tz)).value
        # Text would be taken in the session's time zone.
        made = "make_timestamp_ns" if kind.unit == "ns" else "make_timestamp"
        return f"{'make_timestamptz' if kind.tz and kind.unit != 'ns' else made}({ticks})"
    if is_bytes(kind):
        return f"unhex('{value.as_py().hex()}')"
    return literal(value.cast(pa.string()).as_py())


def type_name(kind: pa.DataType) -> str:
    """DuckDB's name of a type that tables are partitioned by."""
    if pa.types.is_decimal(kind):
        return f"DECIMAL({kind.precision}, {kind.scale})"
    if pa.types.is_timestamp(kind):
        if kind.unit == "ns":
            return "TIMESTAMP_NS"
        return "TIMESTAMP WITH TIME ZONE" if kind.tz else "TIMESTAMP"
    return next((name for test, name in TYPE_NAMES if test(kind)), "VARCHAR")


TYPE_NAMES = (
    (pa.types.is_boolean, "BOOLEAN"),
    (pa.types.is_int8, "TINYINT"),
    (pa.types.is_int16, "SMALLINT"),
    (pa.types.is_int32, "INTEGER"),
    (pa.types.is_integer, "BIGINT"),
    (pa.types.is_float32, "FLOAT"),
    (pa.types.is_floating, "DOUBLE"),
    (pa.types.is_date, "DATE"),
    (is_bytes, "BLOB"),
)


ROWS_OF_A_FILE = 1 << 43
"""A position is a file's number times this, and the row's number in it; more files than a million
would be beyond 64 bits, which DuckDB refuses."""

DUCKDB = Dialect(
    quote='"',
    types={
        "integer": "BIGINT",
        "text": "VARCHAR",
        "bytes": "BLOB",
        "boolean": "BOOLEAN",
        "wide": "HUGEINT",
    },
    wide_bits=127,
    asof_join="ASOF JOIN",
    max_by="max_by",
    row="row",
    epoch_us="epoch_us",
    epoch_ns="epoch_ns",
    read_files=_read_parquet,
    position=f"CAST(file_index AS BIGINT) * {ROWS_OF_A_FILE} + file_row_number",
    fail="error",
    inlined="AS NOT MATERIALIZED",
)
