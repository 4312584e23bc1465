"""Files of a training set, read again by what reads them in SageMaker, or by other libraries."""

from __future__ import annotations

import csv
import io
import itertools
import json
import struct
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker.formats import (
    FORMATS,
    ROW_GROUP_ROWS,
    FileRoles,
    categorical_index,
    part_name,
    writer,
)
from feast_dynamo_ext.storage import LocalFiles

if TYPE_CHECKING:
    from pathlib import Path

NAN = float("nan")
SMALL = pa.table(
    {
        "y": pa.array([1, 0, 1], pa.int64()),
        "a": pa.array([0.5, None, NAN], pa.float64()),
        "b": pa.array([0, 2, None], pa.float32()),
    }
)


def written(path: Path, kind: str, table: pa.Table, *, weight=None, batches=None, **options):
    """The bytes of a file that is written in batches of the given sizes, else in one."""
    names = [name for name in table.column_names if name != weight]
    roles = FileRoles(names[0], weight, tuple(names[1:]))
    with LocalFiles().new_file(str(path)) as file:
        opened = writer(kind, file, table.schema, roles, **options)
        start = 0
        for size in batches or [table.num_rows]:
            opened.write(table.slice(start, size))
            start += size
        opened.close()
    return path.read_bytes()


def numbers(rows: int, columns: int, seed: int = 0) -> pa.Table:
    """A label and columns of many magnitudes, a tenth of them missing; all are float64."""
    rng = np.random.default_rng(seed)
    label = (rng.random(rows) < 0.3).astype(np.int64)
    arrays = {"y": pa.array(label)}
    for at in range(columns):
        values = rng.normal(size=rows) * 10.0 ** rng.integers(-5, 14, rows)
        arrays[f"f{at}"] = pa.array(values, mask=rng.random(rows) < 0.1)
    return pa.table(arrays)


# CSV


def test_csv_has_no_header_no_quotes_and_empty_cells_for_what_is_missing(tmp_path):
    assert written(tmp_path / "f", "csv", SMALL) == b"1,0.5,0\n0,,2\n1,,\n"


def test_a_header_names_the_columns(tmp_path):
    text = written(tmp_path / "f", "csv", SMALL, header=True)
    assert next(csv.reader(io.StringIO(text.decode()))) == ["y", "a", "b"]


def test_texts_and_times_are_kept_for_a_script(tmp_path):
    table = pa.table(
        {
            "y": [0, 1, 0],
            "city": ["a,b", 'say "x"\n', None],
            "at": pa.array([0, 1, None], pa.timestamp("us", "UTC")),
        }
    )
    text = written(tmp_path / "f", "csv", table, header=True).decode()
    assert list(csv.reader(io.StringIO(text))) == [
        ["y", "city", "at"],
        ["0", "a,b", "1970-01-01 00:00:00.000000Z"],
        ["1", 'say "x"\n', "1970-01-01 00:00:00.000001Z"],
        ["0", "", ""],
    ]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
    st.integers(-(2**63), 2**63 - 1),
)
def test_numbers_read_back_as_they_were(tmp_path_factory, values, whole):
    table = pa.table({"y": pa.array([whole] * len(values), pa.int64()), "x": values})
    text = written(tmp_path_factory.mktemp("f") / "f", "csv", table).decode()
    rows = [line.split(",") for line in text.splitlines()]
    assert [int(y) for y, _ in rows] == [whole] * len(values)
    assert [struct.pack("d", float(x)) for _, x in rows] == [
        struct.pack("d", value) for value in values
    ]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.floats(width=32, allow_infinity=False), min_size=1, max_size=8))
def test_the_delimiter_that_xgboosts_container_guesses_is_the_comma(tmp_path_factory, values):
    columns = {f"f{at}": pa.array([value], pa.float32()) for at, value in enumerate(values)}
    table = pa.table({"y": [1], **columns})
    text = written(tmp_path_factory.mktemp("f") / "f", "csv", table, float32=True).decode()
    assert csv.Sniffer().sniff(text.splitlines()[0]).delimiter == ","


# Parquet


def test_parquet_has_plain_columns_and_no_metadata_of_pandas(tmp_path):
    table = SMALL.replace_schema_metadata({"pandas": '{"index_columns": ["y"]}'})
    written(tmp_path / "f", "parquet", table)
    file = pq.ParquetFile(tmp_path / "f")
    assert set(file.metadata.metadata or {}) <= {b"ARROW:schema"}
    assert file.schema_arrow.metadata is None
    frame = file.read().to_pandas()
    assert list(frame.columns) == ["y", "a", "b"]
    assert frame["a"].isna().tolist() == [False, True, True]
    assert file.read().column("a").null_count == 2


def test_row_groups_are_of_one_size_whatever_the_batches_were(tmp_path):
    table = numbers(2 * ROW_GROUP_ROWS + 10, 1)
    written(tmp_path / "f", "parquet", table, batches=[7, 100_000, 31_085])
    metadata = pq.ParquetFile(tmp_path / "f").metadata
    groups = [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)]
    assert groups == [ROW_GROUP_ROWS, ROW_GROUP_ROWS, 10]
    assert pq.read_table(tmp_path / "f").equals(table)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("float32", [False, True])
def test_bytes_depend_on_rows_alone(tmp_path, kind, float32):
    table = numbers(1_000, 3)
    # Another layout of the same rows: chunks, and what lies under a null.
    under = [table.column(0)] + [
        pa.chunked_array(
            [
                pa.array(np.where(part.is_valid(), part.fill_null(7.5), 7.5), mask=~valid)
                for part in column.chunks
                for valid in [part.is_valid().to_numpy(zero_copy_only=False)]
            ]
        )
        for column in table.columns[1:]
    ]
    other = pa.Table.from_arrays(under, table.column_names)
    first = written(tmp_path / "a", kind, table, float32=float32)
    again = written(tmp_path / "b", kind, other, float32=float32, batches=[1, 0, 500, 499])
    assert first == again


# RecordIO


def record_class():
    """Amazon's `Record`, from its published definition (`record.proto` of aialgs)."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="r.proto", package="aialgs", syntax="proto2")
    tensors = {"Float32Tensor": field.TYPE_FLOAT, "Float64Tensor": field.TYPE_DOUBLE}
    for name, kind in tensors.items():
        message = file.message_type.add(name=name)
        added = [
            ("values", 1, kind),
            ("keys", 2, field.TYPE_UINT64),
            ("shape", 3, field.TYPE_UINT64),
        ]
        for of, number, type_ in added:
            made = message.field.add(
                name=of, number=number, type=type_, label=field.LABEL_REPEATED
            )
            made.options.packed = True
    value = file.message_type.add(name="Value")
    value.oneof_decl.add(name="value")
    for name, number, kind in (
        ("float32_tensor", 2, "Float32Tensor"),
        ("float64_tensor", 3, "Float64Tensor"),
    ):
        value.field.add(
            name=name,
            number=number,
            type=field.TYPE_MESSAGE,
            type_name=f".aialgs.{kind}",
            label=field.LABEL_OPTIONAL,
            oneof_index=0,
        )
    record = file.message_type.add(name="Record")
    for name, number in (("features", 1), ("label", 2)):
        entry = record.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
        entry.field.add(
            name="value",
            number=2,
            type=field.TYPE_MESSAGE,
            type_name=".aialgs.Value",
            label=field.LABEL_OPTIONAL,
        )
        record.field.add(
            name=name,
            number=number,
            type=field.TYPE_MESSAGE,
            type_name=f".aialgs.Record.{entry.name}",
            label=field.LABEL_REPEATED,
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("aialgs.Record"))


RECORD = record_class()


def records(data: bytes) -> list:
    """Records of a RecordIO file, frame by frame."""
    found, at = [], 0
    while at < len(data):
        magic, length = struct.unpack_from("<II", data, at)
        assert magic == 0xCED7230A
        record = RECORD()
        assert record.ParseFromString(data[at + 8 : at + 8 + length]) == length
        padding = data[at + 8 + length : at + 8 + length + -length % 4]
        assert padding == bytes(-length % 4)
        found.append(record)
        at += 8 + length + len(padding)
    assert at == len(data)
    return found


@pytest.mark.parametrize("columns", [1, 2, 3, 31, 32, 5_000])
@pytest.mark.parametrize(("tensor", "float32"), [("float32", True), ("float64", False)])
def test_records_are_those_that_protobuf_reads_and_writes(tmp_path, columns, tensor, float32):
    table = numbers(7, columns)
    data = written(tmp_path / "f", "recordio", table, float32=float32)
    found = records(data)
    tensors = [getattr(record.features["values"], f"{tensor}_tensor") for record in found]
    expected = np.stack([table.column(1 + at).to_numpy() for at in range(columns)], 1)
    read = np.array([found_tensor.values for found_tensor in tensors], tensor)
    np.testing.assert_array_equal(read, expected.astype(tensor))
    labels = [list(getattr(record.label["values"], f"{tensor}_tensor").values) for record in found]
    assert labels == [[value] for value in table.column("y").to_pylist()]
    frames = [record.SerializeToString(deterministic=True) for record in found]
    assert data == b"".join(
        struct.pack("<II", 0xCED7230A, len(frame)) + frame + bytes(-len(frame) % 4)
        for frame in frames
    )


def test_records_are_those_of_amazons_own_writer(tmp_path):
    recordio = pytest.importorskip("sagemaker_training.recordio")
    table = numbers(50, 9)
    matrix = np.stack([table.column(1 + at).to_numpy() for at in range(9)], 1)
    label = table.column("y").to_numpy()
    for kind, float32 in (("float32", True), ("float64", False)):
        theirs = io.BytesIO()
        recordio._write_numpy_to_dense_tensor(theirs, matrix.astype(kind), label.astype(kind))
        ours = written(tmp_path / kind, "recordio", table, float32=float32)
        assert ours == theirs.getvalue()


def test_a_float32_file_has_float32_tensors(tmp_path):
    table = pa.table({"y": pa.array([1], pa.float32()), "x": pa.array([0.1], pa.float32())})
    (record,) = records(written(tmp_path / "f", "recordio", table))
    assert record.features["values"].WhichOneof("value") == "float32_tensor"


# libsvm


def test_libsvm_counts_from_zero_writes_zeros_and_leaves_out_what_is_missing(tmp_path):
    assert written(tmp_path / "f", "libsvm", SMALL) == b"1 0:0.5 1:0\n0 1:2\n1\n"


def test_the_weight_follows_the_label(tmp_path):
    table = pa.table({"y": [1, 0], "w": [0.5, 2.0], "x": [3, 4]})
    assert written(tmp_path / "l", "libsvm", table, weight="w") == b"1:0.5 0:3\n0:2 0:4\n"
    assert written(tmp_path / "c", "csv", table, weight="w") == b"1,0.5,3\n0,2,4\n"


# XGBoost, which reads all four


def matrix_of(path: Path, kind: str, options: str = "") -> xgboost.DMatrix:
    """As the container reads: text by XGBoost's own parser, the rest through numpy."""
    if kind == "parquet":
        found = pq.read_table(path).to_pandas().to_numpy()
        return xgboost.DMatrix(found[:, 1:], label=found[:, 0])
    if kind == "recordio":
        found = records(path.read_bytes())
        rows = np.array([record.features["values"].float32_tensor.values for record in found])
        labels = [record.label["values"].float32_tensor.values[0] for record in found]
        return xgboost.DMatrix(rows.astype(np.float32), label=labels)
    kind = "csv&label_column=0&delimiter=," if kind == "csv" else "libsvm"
    return xgboost.DMatrix(f"{path}?format={kind}{options}")


OF_XGBOOST = ("parquet", "csv", "recordio", "libsvm")
TEXT_OF_XGBOOST = "ignore:.*[Tt]ext file input:UserWarning"


@pytest.mark.slow
@pytest.mark.filterwarnings(TEXT_OF_XGBOOST)
def test_xgboost_trains_the_same_model_of_every_format(tmp_path):
    table = numbers(5_000, 12, seed=3)
    models, matrices = {}, {}
    for kind in OF_XGBOOST:
        path = tmp_path / kind
        written(path, kind, table, float32=kind != "parquet")
        matrices[kind] = matrix_of(path, kind)
        models[kind] = xgboost.train(
            {"objective": "binary:logistic", "max_depth": 6, "nthread": 1, "seed": 0},
            matrices[kind],
            num_boost_round=20,
        )
    answers = {
        (model, matrix): models[model].predict(matrices[matrix])
        for model, matrix in itertools.product(OF_XGBOOST, OF_XGBOOST)
    }
    expected = answers["parquet", "parquet"]
    assert np.ptp(expected) > 0.1
    worst = max(np.abs(answer - expected).max() for answer in answers.values())
    assert worst <= 1e-6


@pytest.mark.filterwarnings(TEXT_OF_XGBOOST)
@pytest.mark.parametrize("kind", ["csv", "libsvm"])
def test_xgboost_reads_the_nearest_float32_of_text(tmp_path, kind):
    rng = np.random.default_rng(1)
    values = rng.choice([-1, 1], 20_000) * 10.0 ** rng.uniform(-10.9, 18.9, 20_000)
    values[:6] = [0.0, 1e-11, 1e15, 1e-5, 9.2e18, 16_777_217.0]
    table = pa.table({"y": np.zeros(20_000, np.int64), "x": values})
    written(tmp_path / "f", kind, table, float32=True)
    found = matrix_of(tmp_path / "f", kind).get_data().toarray()[:, 0]
    np.testing.assert_array_equal(found, values.astype(np.float32))


@pytest.mark.filterwarnings(TEXT_OF_XGBOOST)
@pytest.mark.parametrize(("kind", "options"), [("csv", "&weight_column=1"), ("libsvm", "")])
def test_xgboost_reads_weights(tmp_path, kind, options):
    table = pa.table({"y": [1, 0], "w": [0.5, 2.0], "x": [3.0, None], "z": [1.0, 2.0]})
    written(tmp_path / "f", kind, table, weight="w", float32=True)
    found = matrix_of(tmp_path / "f", kind, options)
    assert found.get_weight().tolist() == [0.5, 2.0]
    assert found.get_label().tolist() == [1.0, 0.0]
    assert (found.num_col(), found.num_nonmissing()) == (2, 3)


# What cannot be written


@pytest.mark.parametrize("kind", FORMATS)
def test_infinity_is_refused_by_column_and_row(tmp_path, kind):
    table = pa.table({"y": [0, 1, 0], "x": [1.0, 2.0, float("-inf")]})
    with pytest.raises(TrainingSetError, match=r"`x` has 1 values.*row 2 of the file"):
        written(tmp_path / "f", kind, table, batches=[2, 1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", FORMATS)
def test_what_float32_cannot_hold_never_becomes_infinity(tmp_path, kind):
    table = pa.table({"y": [0], "x": [1e39]})
    with pytest.raises(TrainingSetError, match="become so as float"):
        written(tmp_path / "f", kind, table, float32=True)


@pytest.mark.parametrize("kind", ["recordio", "libsvm"])
def test_formats_of_numbers_refuse_text(tmp_path, kind):
    table = pa.table({"y": [0], "x": ["a"], "z": [[1]]})
    with pytest.raises(TrainingSetError, match=f"`x` is string, and {kind} holds numbers; col"):
        written(tmp_path / "f", kind, table)


@pytest.mark.parametrize(
    ("kind", "roles", "message"),
    [
        ("orc", FileRoles("y", None, ("x",)), "Unknown format `orc`. Known: csv, parquet, rec"),
        ("csv", FileRoles("x", None, ("y",)), "has the columns y, x, and the roles have x, y"),
        ("recordio", FileRoles("y", "x", ()), "RecordIO has no place for the weight `x`"),
    ],
)
def test_what_makes_no_file_is_refused(tmp_path, kind, roles, message):
    schema = pa.schema({"y": pa.int64(), "x": pa.int64()})
    with (
        pytest.raises(TrainingSetError, match=message),
        LocalFiles().new_file(str(tmp_path / "f")) as file,
    ):
        writer(kind, file, schema, roles)


def test_names_and_the_index_of_categories():
    roles = FileRoles("y", "w", ("a", "b", "c"), categorical=("c", "a"))
    assert json.loads(categorical_index(roles)) == {"cat_index_list": [2, 4]}
    assert [part_name(kind, 3) for kind in FORMATS] == [
        "part-00003.csv",
        "part-00003.parquet",
        "part-00003.recordio",
        "part-00003.libsvm",
    ]


def test_a_file_without_rows_is_empty_text_or_an_empty_table(tmp_path):
    table = SMALL.slice(0, 0)
    assert written(tmp_path / "c", "csv", table) == b""
    assert written(tmp_path / "l", "libsvm", table) == b""
    assert written(tmp_path / "r", "recordio", table) == b""
    written(tmp_path / "p", "parquet", table)
    assert pq.read_table(tmp_path / "p").schema == table.schema
