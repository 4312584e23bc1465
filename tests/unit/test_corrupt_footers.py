"""Files whose footers end a process that asks pyarrow of their columns: errors name them."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import multiprocessing
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from feast import FeatureView, Field
from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource
from feast.types import Int64
from order_files import TIME, customers, day, orders
from pyiceberg.catalog import load_catalog
from views import CUSTOMER

from feast_dynamo_ext import S3ParquetOfflineStore
from feast_dynamo_ext.errors import SourceReadError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

    from feast import FeatureStore

TABLE = pa.table({"cid": [1, 2], "t": pa.array([day(1)] * 2, TIME), "total": [1, 2]})


class PlainKeys(pe.KmsClient):
    """Keys that wrap and unwrap as base64."""

    def __init__(self, _config) -> None:
        super().__init__()

    def wrap_key(self, key_bytes, _master_key):
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key, _master_key):
        return base64.b64decode(wrapped_key)


def encrypt(path: Path, column: str) -> None:
    """A file one of whose columns is encrypted; its footer is plain."""
    keys = pe.EncryptionConfiguration(
        footer_key="k", column_keys={"k": [column]}, plaintext_footer=True
    )
    properties = pe.CryptoFactory(PlainKeys).file_encryption_properties(
        pe.KmsConnectionConfig(), keys
    )
    with pq.ParquetWriter(path, TABLE.schema, encryption_properties=properties) as writer:
        writer.write_table(TABLE)


def corrupt(path: Path, _: str) -> None:
    """A file whose footer says of its columns of 64-bit integers a type that there is not."""
    pq.write_table(TABLE, path)
    corrupt_in_place(path)


def corrupt_in_place(path: Path) -> None:
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    columns = footer + 3  # behind the version, which is written alike
    # Thrift's field 1, an integer: 2 for INT64; and field 2, a list.
    assert content.count(b"\x15\x04\x19", columns) == 3
    ending = content[columns:].replace(b"\x15\x04\x19", b"\x15\x7e\x19")
    path.write_bytes(content[:columns] + ending)


def messages_of_uses(store: FeatureStore, found: Connection) -> None:
    """Send what each use of the view `orders` answers."""
    moment = day(3)
    entities = customers(1)
    source = store.get_feature_view("orders").batch_source
    columns = (["cid"], ["total"], "t", None, moment - dt.timedelta(days=9), moment)
    for use in (
        lambda: store.get_historical_features(entities, ["orders:total"]).to_arrow(),
        lambda: store.get_historical_features(entities, ["orders:total"]).explain(),
        lambda: S3ParquetOfflineStore.pull_latest_from_table_or_query(
            store.config, source, *columns
        ).to_arrow(),
    ):
        with pytest.raises(SourceReadError) as caught:
            use()
        found.send(str(caught.value))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "column"),
    [(encrypt, "cid"), (encrypt, "t"), (encrypt, "total"), (corrupt, "")],
    ids=["key encrypted", "time encrypted", "feature encrypted", "corrupt"],
)
def test_each_use_is_an_error_that_names_the_file(open_store, tmp_path, make, column):
    """In a process of its own, which what it is about would end."""
    path = tmp_path / "orders.parquet"
    make(path, column)
    store = open_store(online={"region": "us-east-1"})
    store.apply([CUSTOMER, orders(path, total=Int64)])
    check_messages(store, str(path))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("days", [(1, 1), (1, 9)], ids=["all within", "partly within"])
def test_files_of_tables_too(open_store, tmp_path, days):
    """Whether a table's log says that all of the file is within the range, or not."""
    at = {"uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/warehouse"}
    catalog = load_catalog("feast_iceberg", type="sql", **at)
    catalog.create_namespace("shop")
    table = catalog.create_table("shop.orders", schema=TABLE.schema)
    times = pa.array([day(one) for one in days], TIME)
    table.append(TABLE.set_column(1, "t", times))
    (path,) = (tmp_path / "warehouse").rglob("data/*.parquet")
    corrupt_in_place(path)
    source = IcebergSource(
        name="orders",
        catalog_type="sql",
        endpoint=at["uri"],
        warehouse=at["warehouse"],
        namespace="shop",
        table="orders",
        timestamp_field="t",
    )
    store = open_store(online={"region": "us-east-1"})
    schema = [Field(name="cid", dtype=Int64), Field(name="total", dtype=Int64)]
    view = FeatureView(
        name="orders", source=source, entities=[CUSTOMER], schema=schema, online=False
    )
    store.apply([CUSTOMER, view])
    check_messages(store, str(path))


def check_messages(store: FeatureStore, path: str) -> None:
    context = multiprocessing.get_context("fork")
    ours, childs = context.Pipe(duplex=False)
    child = context.Process(target=messages_of_uses, args=(store, childs))
    child.start()
    childs.close()
    messages = []
    with contextlib.suppress(EOFError), ours:
        while ours.poll(60):
            messages.append(ours.recv())
    child.join(60)
    assert child.exitcode == 0
    assert [f"{path} cannot be read" in message for message in messages] == [True] * 3, messages
