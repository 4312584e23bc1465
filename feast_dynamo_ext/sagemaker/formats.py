"""Files of a training set: one writer per format, from batches of encoded columns.

Every format has the label first, then the weight where there is one, then the features in order.
A missing value is an empty cell of CSV, a null of Parquet, NaN in RecordIO, and an absent index in
libsvm; NaN counts as missing. The bytes of a file depend on its rows, its schema and the version
of pyarrow, not on the batches they came in. A writer holds at most ROW_GROUP_ROWS rows.

libsvm counts its indices from 0, as XGBoost does, and a zero is written: an absent index is a
missing value to XGBoost, though other readers take it as zero.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from feast_dynamo_ext.errors import TrainingSetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from feast_dynamo_ext.storage import NewFile

EXTENSIONS = {"csv": "csv", "parquet": "parquet", "recordio": "recordio", "libsvm": "libsvm"}
"""The ending of a file's name, by format: `<split>/<format>/part-00000.<ending>`."""

FORMATS = tuple(EXTENSIONS)

CATEGORICAL_INDEX = "categorical_index.json"
"""Name of the file beside CSV that says which columns are categories."""

ROW_GROUP_ROWS = 65_536
"""Rows of a Parquet row group; fixed, as it shows in the bytes."""

_CELLS = 2**20
"""Cells that are turned into text or records at a time: some 30 MB of text."""


@dataclass(frozen=True)
class FileRoles:
    """What the columns of a file are.

    Attributes:
        label: the column to predict.
        weight: the column of row weights; None where there is none.
        features: the features, in the order of the file.
        categorical: which of the features are codes of categories.
    """

    label: str
    weight: str | None
    features: tuple[str, ...]
    categorical: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, in the order of the file."""
        return (self.label, *([self.weight] if self.weight else []), *self.features)


class FormatWriter(Protocol):
    """A file that rows are appended to. It leaves opening and closing the file to its caller."""

    def write(self, batch: pa.RecordBatch | pa.Table) -> None:
        """Append rows, of any number.

        Raises:
            TrainingSetError: a value that the format cannot hold; names its column and row.
        """
        ...

    def close(self) -> None:
        """Write what is left: the file is whole thereafter."""
        ...


def writer(
    format: str,  # noqa: A002 - the word that SageMaker's users know
    file: NewFile,
    schema: pa.Schema,
    roles: FileRoles,
    *,
    header: bool = False,
    float32: bool = False,
    within_float32: bool = False,
) -> FormatWriter:
    """A writer of one file.

    Args:
        format: of `FORMATS`.
        file: open for writing; stays open.
        schema: columns of every batch: those of `roles`, in that order. Metadata is not written.
        roles: what the columns are.
        header: of CSV: whether the first line names the columns. SageMaker's own algorithms read
            it as a row.
        float32: whether floats are rounded to the nearest float32, never to infinity. It is all
            that XGBoost keeps and linear-learner reads; XGBoost rounds those of Parquet itself,
            but misreads long numbers in text. RecordIO's tensors are then float32, else float64.
        within_float32: of Parquet: whether a number beyond float32 is an error, as which XGBoost
            would read infinity.

    Raises:
        TrainingSetError: an unknown format, columns that are not those of `roles`, or a type that
            the format cannot hold.
    """
    if format not in _WRITERS:
        raise TrainingSetError(f"Unknown format `{format}`. Known: {', '.join(FORMATS)}.")
    if tuple(schema.names) != roles.columns:
        raise TrainingSetError(
            f"The schema has the columns {', '.join(schema.names)}, and the roles have "
            f"{', '.join(roles.columns)}. Both must be the same, in the same order."
        )
    problems = type_problems(format, schema, float32=float32)
    if problems:
        raise TrainingSetError("; ".join(problems))
    # Fields made anew, as a table's may carry metadata: pandas' index among it.
    plain = pa.schema([pa.field(field.name, field.type) for field in schema])
    options: dict[str, Any] = {"header": header} if format == "csv" else {}
    if format == "parquet":
        options["within_float32"] = within_float32
    return _WRITERS[format](file, plain, roles, float32=float32, **options)


def part_name(format: str, part: int) -> str:  # noqa: A002 - as above
    """The name of a file: `part-00000.csv`."""
    return f"part-{part:05d}.{EXTENSIONS[format]}"


def categorical_index(roles: FileRoles) -> bytes:
    """The text of `categorical_index.json`: which columns of the CSV are categories, from 0 on.

    The label is column 0.
    """
    columns = roles.columns
    indices = sorted(columns.index(name) for name in roles.categorical)
    return (json.dumps({"cat_index_list": indices}) + "\n").encode()


def type_problems(
    format: str,  # noqa: A002 - as above
    schema: pa.Schema,
    *,
    float32: bool = False,
) -> list[str]:
    """What stands in the way of a schema in a format; empty where nothing does."""
    if format == "parquet":
        return []
    only_numbers = float32 or format != "csv"
    holds, kinds = (_is_number, "numbers") if only_numbers else (_is_flat, "no lists or bytes")
    return [
        f"column `{field.name}` is {field.type}, and {format} holds {kinds}"
        for field in schema
        if not holds(field.type)
    ]


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or kind in (pa.float32(), pa.float64()))


def _is_flat(kind: pa.DataType) -> bool:
    return not (
        pa.types.is_nested(kind)
        or pa.types.is_dictionary(kind)
        or pa.types.is_float16(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


# Rows as they come


def _batches(rows: pa.RecordBatch | pa.Table) -> list[pa.RecordBatch]:
    return [rows] if isinstance(rows, pa.RecordBatch) else rows.to_batches()


def _pieces(rows: pa.RecordBatch | pa.Table) -> Iterator[pa.RecordBatch]:
    """Rows in pieces of at most _CELLS cells, or of one row."""
    most = max(1, _CELLS // max(1, rows.num_columns))
    for batch in _batches(rows):
        for start in range(0, batch.num_rows, most):
            yield batch.slice(start, most)


FLOATS = ("float32", "within_float32")
"""Options of `writer` that decide which numbers a file can hold."""


class WrittenColumns:
    """Columns as a file holds them: NaN is null, infinity an error, floats of one width."""

    def __init__(
        self, *, float32: bool, within_float32: bool = False, of: str = "the file"
    ) -> None:
        """No rows were seen yet; see `writer`. Errors count the rows `of` what is written."""
        self._float32, self._within, self._rows, self._whole = float32, within_float32, 0, of

    def of(self, rows: pa.RecordBatch) -> list[pa.Array]:
        """The next rows' columns.

        Raises:
            TrainingSetError: a number is infinite, or becomes so.
        """
        columns = [self._of(field.name, rows.column(at)) for at, field in enumerate(rows.schema)]
        self._rows += rows.num_rows
        return columns

    def _of(self, name: str, column: pa.Array) -> pa.Array:
        if not pa.types.is_floating(column.type):
            return column
        if self._float32:
            column = column.cast(pa.float32(), safe=False)
        narrow = column.cast(pa.float32(), safe=False) if self._within else column
        self._refuse_infinite(name, narrow)
        is_nan = pc.is_nan(column)
        if not pc.any(is_nan).as_py():
            return column
        return pc.if_else(is_nan, pa.scalar(None, column.type), column)

    def _refuse_infinite(self, name: str, column: pa.Array) -> None:
        infinite = pc.is_inf(column)
        if pc.any(infinite).as_py():
            first = self._rows + pc.index(infinite, pa.scalar(value=True)).as_py()
            raise TrainingSetError(
                f"Column `{name}` has {pc.sum(infinite).as_py()} values that are infinite, or "
                f"become so as {column.type}; the first is in row {first} of {self._whole}, "
                "counted from 0. Replace them by null, which reads as missing, or scale the "
                "column."
            )


# CSV and Parquet, by pyarrow


class _Csv:
    """No quotes around numbers, the shortest text that reads back as the same number."""

    def __init__(
        self, file: NewFile, schema: pa.Schema, _: FileRoles, *, header: bool, float32: bool
    ) -> None:
        self._columns, self._float32 = WrittenColumns(float32=float32), float32
        if float32:
            schema = pa.schema([pa.field(name, pa.large_string()) for name in schema.names])
        self._schema = schema
        options = csv.WriteOptions(
            include_header=header, quoting_style="none" if float32 else "needed"
        )
        self._writer = csv.CSVWriter(pa.PythonFile(file, mode="w"), schema, write_options=options)

    def write(self, batch: pa.RecordBatch | pa.Table) -> None:
        for rows in _pieces(batch):
            columns = self._columns.of(rows)
            if self._float32:
                columns = [_text(column) for column in columns]
            self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class _Parquet:
    """Plain columns, with no metadata but Arrow's own schema."""

    def __init__(
        self,
        file: NewFile,
        schema: pa.Schema,
        _: FileRoles,
        *,
        float32: bool,
        within_float32: bool,
    ) -> None:
        if float32:
            kinds = [pa.float32() if pa.types.is_floating(kind) else kind for kind in schema.types]
            schema = pa.schema([*zip(schema.names, kinds, strict=True)])
        self._columns = WrittenColumns(float32=float32, within_float32=within_float32)
        self._schema = schema
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0
        # Every choice that shows in the bytes is spelled out: a default may change with pyarrow.
        self._writer = pq.ParquetWriter(
            pa.PythonFile(file, mode="w"),
            schema,
            version="2.6",
            data_page_version="1.0",
            compression="snappy",
            use_dictionary=True,
            write_statistics=True,
        )

    def write(self, batch: pa.RecordBatch | pa.Table) -> None:
        for rows in _batches(batch):
            columns = self._columns.of(rows)
            self._waiting.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
            self._rows += rows.num_rows
            while self._rows >= ROW_GROUP_ROWS:
                self._write_group(ROW_GROUP_ROWS)

    def _write_group(self, rows: int) -> None:
        table = pa.Table.from_batches(self._waiting, self._schema)
        self._writer.write_table(table.slice(0, rows).combine_chunks(), row_group_size=rows)
        self._waiting = table.slice(rows).to_batches()
        self._rows -= rows

    def close(self) -> None:
        if self._rows:
            self._write_group(self._rows)
        self._writer.close()


# RecordIO of Amazon's protobuf `Record`


_MAGIC = 0xCED7230A

# Field number << 3 | wire type, of Amazon's Record: features = 1 and label = 2 are maps from a
# name to a Value, whose tensors (float32_tensor = 2, float64_tensor = 3) have packed values = 1.
_MAPS = {"features": b"\x0a", "label": b"\x12"}
_MAP_KEY, _MAP_VALUE, _TENSOR_VALUES = b"\x0a\x06values", b"\x12", b"\x0a"
_TENSORS = {"float32": b"\x12", "float64": b"\x1a"}


class _RecordIO:
    """A frame and a `Record` per row: all are of one length, so numpy fills them column-wise.

    A Record is two dense tensors, `values` of its features and `values` of its label.
    """

    def __init__(
        self, file: NewFile, schema: pa.Schema, roles: FileRoles, *, float32: bool
    ) -> None:
        if roles.weight:
            raise TrainingSetError(
                f"RecordIO has no place for the weight `{roles.weight}`: write CSV or libsvm."
            )
        self._file, self._columns = file, WrittenColumns(float32=float32)
        # Integers of any width become float64, which encodings keep exact, or refuse.
        is_float32 = float32 or all(kind == pa.float32() for kind in schema.types)
        self._kind = "float32" if is_float32 else "float64"
        self._frame, self._empty = record_frame(self._kind, len(roles.features))

    def write(self, batch: pa.RecordBatch | pa.Table) -> None:
        for rows in _pieces(batch):
            frames = np.full(rows.num_rows, self._empty, self._frame)
            label, *features = self._columns.of(rows)
            label_name, *names = rows.schema.names
            frames["label"] = self._numbers(label_name, label)
            for at, (name, column) in enumerate(zip(names, features, strict=True)):
                frames["features"][:, at] = self._numbers(name, column)
            self._file.write(frames.tobytes())

    def _numbers(self, name: str, column: pa.Array) -> NDArray[Any]:
        kind = pa.float64() if self._kind == "float64" else pa.float32()
        try:
            # A float32 rounds to the nearest; a float64 holds whole numbers up to 2^53.
            cast = column.cast(kind, safe=self._kind == "float64")
        except pa.ArrowInvalid as error:
            raise TrainingSetError(
                f"Column `{name}` has whole numbers beyond 2^53, which RecordIO's float64 would "
                "round. Write CSV or Parquet, or leave the column out."
            ) from error
        numbers: NDArray[Any] = cast.to_numpy(zero_copy_only=False)
        return numbers

    def close(self) -> None:
        """Nothing: each frame is whole."""


def record_frame(kind: str, features: int) -> tuple[np.dtype[Any], NDArray[Any]]:
    """The layout of a row's frame in RecordIO, and a frame with all but the numbers in it.

    Args:
        kind: `float32` or `float64`, of all its numbers.
        features: how many.
    """
    before_features, before_label = (
        _before_values(part, kind, count) for part, count in (("features", features), ("label", 1))
    )
    width = np.dtype(kind).itemsize
    length = len(before_features) + features * width + len(before_label) + width
    start = _MAGIC.to_bytes(4, "little") + length.to_bytes(4, "little") + before_features
    layout = np.dtype(
        [
            ("start", f"V{len(start)}"),
            ("features", np.dtype(kind).newbyteorder("<"), (features,)),
            ("between", f"V{len(before_label)}"),
            ("label", np.dtype(kind).newbyteorder("<")),
            ("padding", f"V{-length % 4}"),
        ]
    )
    empty = np.zeros((), layout)
    empty["start"], empty["between"] = np.void(start), np.void(before_label)
    return layout, empty


def _before_values(part: str, kind: str, count: int) -> bytes:
    """The bytes of a Record's map of one tensor, up to the tensor's values."""
    size = count * np.dtype(kind).itemsize
    values = _TENSOR_VALUES + _varint(size)
    tensor = _TENSORS[kind] + _varint(len(values) + size)
    value = _MAP_VALUE + _varint(len(tensor) + len(values) + size)
    entry = _MAP_KEY + value
    length = len(entry) + len(tensor) + len(values) + size
    return _MAPS[part] + _varint(length) + entry + tensor + values


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


# libsvm


class _Libsvm:
    """A line per row: `label index:value ...`, or `label:weight index:value ...`."""

    def __init__(self, file: NewFile, _: pa.Schema, roles: FileRoles, *, float32: bool) -> None:
        self._file, self._columns = file, WrittenColumns(float32=float32)
        self._weighted = roles.weight is not None

    def write(self, batch: pa.RecordBatch | pa.Table) -> None:
        for rows in _pieces(batch):
            self._file.write(self._lines(rows))

    def _lines(self, rows: pa.RecordBatch) -> pa.Buffer:
        texts = [_text(column) for column in self._columns.of(rows)]
        first = 1 + self._weighted
        label = pc.binary_join_element_wise(*texts[:first], _large(":"))
        pairs = [
            # Null where the value is: joined with "skip", it leaves no trace.
            pc.binary_join_element_wise(_large(f"{index}:"), text, _large(""))
            for index, text in enumerate(texts[first:])
        ]
        lines = pc.binary_join_element_wise(label, *pairs, _large(" "), null_handling="skip")
        whole = pc.binary_join_element_wise(lines, _large(""), _large("\n"))
        _, offsets, text = whole.buffers()
        return text.slice(0, np.frombuffer(offsets, np.int64)[len(whole)])

    def close(self) -> None:
        """Nothing: each line is whole."""


def _large(text: str) -> pa.Scalar:
    return pa.scalar(text, pa.large_string())


# XGBoost's parser of text adds whole part and fraction as float32, and multiplies by the power of
# ten: a float32 is exact to it if all its digits are there and no power is. It keeps 19 digits
# behind the point, and 64 bits before it. pyarrow writes powers below 1e-6 and from 1e10 on.
_TINY, _SMALL = 1e-11, 1e-5
_LARGE, _HUGE = 1e9, 2.0**63


def _text(column: pa.Array) -> pa.Array:
    """Numbers as text that reads back as the same number."""
    if column.type != pa.float32():
        return column.cast(pa.large_string())
    texts = column.cast(pa.float64()).cast(pa.large_string())
    sizes = np.abs(column.to_numpy(zero_copy_only=False))  # NaN, which is in no range, for null
    is_large = (sizes >= _LARGE) & (sizes < _HUGE)
    if is_large.any():
        mask = pa.array(is_large)
        whole = column.filter(mask).cast(pa.int64()).cast(pa.large_string())
        texts = pc.replace_with_mask(texts, mask, whole)
    is_small = (sizes >= _TINY) & (sizes < _SMALL)
    if is_small.any():
        mask = pa.array(is_small)
        digits = [
            np.format_float_positional(value, precision=19, unique=False, trim="-")
            for value in column.filter(mask).cast(pa.float64()).to_pylist()
        ]
        texts = pc.replace_with_mask(texts, mask, pa.array(digits, pa.large_string()))
    return texts


_WRITERS: Mapping[str, Callable[..., FormatWriter]] = {
    "csv": _Csv,
    "parquet": _Parquet,
    "recordio": _RecordIO,
    "libsvm": _Libsvm,
}
