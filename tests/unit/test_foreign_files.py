"""Files as other writers make them: padded pages, times as INT96."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.types import Float64, UnixTimestamp
from order_files import TIME, customers, day, history, orders
from views import CUSTOMER

if TYPE_CHECKING:
    from pathlib import Path

    from feast import FeatureStore

NOT_REFUSED = pytest.fail.Exception  # what `pytest.raises` ends with where nothing was raised


@pytest.fixture
def shop(open_store) -> FeatureStore:
    return open_store(online={"region": "us-east-1"})


# Bytes


PADDING = 8


def as_zigzag(number: int) -> bytes:
    """An integer of 0 or more as Thrift's compact protocol writes it."""
    rest, written = number << 1, bytearray()
    while rest > 127:
        written.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*written, rest])


def after_varint(data: bytes, at: int) -> int:
    """Where the varint ends that begins there."""
    while data[at] & 128:
        at += 1
    return at + 1


def pad_last_page(path: Path) -> None:
    """Put bytes after the values of a file's last page, which is uncompressed, and count them in.

    Readers count the values of a page from its front, so that the file stays valid.
    """
    group = pq.read_metadata(path).row_group(0)
    column = group.column(group.num_columns - 1)
    raw = path.read_bytes()
    start, size = column.data_page_offset, column.total_compressed_size
    # A page's header starts with its kind (0: data page) and its two sizes, which are equal here.
    assert raw[start : start + 3] == b"\x15\x00\x15"
    page_end = after_varint(raw, start + 3)
    page_size = raw[start + 3 : page_end]
    number = sum((byte & 127) << 7 * place for place, byte in enumerate(page_size)) >> 1
    before = b"\x15\x00\x15" + page_size + b"\x15" + page_size
    assert raw[start:].startswith(before)
    padded = as_zigzag(number + PADDING)
    after = b"\x15\x00\x15" + padded + b"\x15" + padded
    footer = raw[start + size :]
    for counted in {size, group.total_byte_size}:
        assert as_zigzag(counted) in footer
        footer = footer.replace(as_zigzag(counted), as_zigzag(counted + PADDING))
    body = raw[start + len(before) : start + size]
    path.write_bytes(raw[:start] + after + body + b"\xee" * PADDING + footer)
    assert path.stat().st_size == len(raw) + PADDING


def test_a_page_that_is_padded_behind_its_values_is_read(shop, tmp_path):
    rows = 40_000
    table = pa.table(
        {
            "cid": np.arange(rows),
            "t": pa.array([day(1)] * rows, TIME),
            "total": np.arange(rows) * 1.0,
        }
    )
    path = tmp_path / "orders.parquet"
    pq.write_table(
        table,
        path,
        compression="none",
        use_dictionary=False,
        data_page_size=1 << 24,
        max_rows_per_page=10**8,
        store_schema=False,
    )
    pad_last_page(path)
    assert pq.read_table(path).column("total").to_pylist() == [float(n) for n in range(rows)]
    shop.apply([CUSTOMER, orders(path, total=Float64)])
    assert history(shop, customers(0, 1, rows - 1), "total") == [0.0, 1.0, 39_999.0]


# Times beyond nanoseconds


FAR = dt.datetime(9999, 12, 31, tzinfo=dt.timezone.utc)


@pytest.fixture
def far_orders(shop, tmp_path) -> Path:
    """The folder of two files as Spark writes them: `paid_until` is an INT96 of the year 9999."""
    folder = tmp_path / "orders"
    folder.mkdir()
    for cid in (1, 2):
        table = pa.table(
            {
                "cid": [cid],
                "t": pa.array([day(1).replace(tzinfo=None)], pa.timestamp("us")),
                "paid_until": pa.array([FAR.replace(tzinfo=None)], pa.timestamp("us")),
            }
        )
        pq.write_table(table, folder / f"{cid}.parquet", use_deprecated_int96_timestamps=True)
    shop.apply([CUSTOMER, orders(folder, paid_until=UnixTimestamp)])
    return folder


@pytest.mark.usefixtures("far_orders")
def test_int96_times_beyond_2262_are_retrieved(shop):
    (value,) = history(shop, customers(1), "paid_until")
    assert value.replace(tzinfo=dt.timezone.utc) == FAR
