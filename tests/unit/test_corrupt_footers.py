"""Files whose footers end a process that asks pyarrow of their columns: errors name them."""

from __future__ import annotations

import base64
import subprocess
import sys
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from feast.types import Int64
from order_files import TIME, day, orders
from repos import write_repo_yaml
from views import CUSTOMER

if TYPE_CHECKING:
    from pathlib import Path

# Each test is a process of its own, since what it is about would end that of the tests.
pytestmark = pytest.mark.slow

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
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    columns = footer + 3  # behind the version, which is written alike
    # Thrift's field 1, an integer: 2 for INT64; and field 2, a list.
    assert content.count(b"\x15\x04\x19", columns) == 3
    ending = content[columns:].replace(b"\x15\x04\x19", b"\x15\x7e\x19")
    path.write_bytes(content[:columns] + ending)


USES = """
import datetime as dt
import sys

import pyarrow as pa
from feast import FeatureStore

from feast_dynamo_ext import S3ParquetOfflineStore
from feast_dynamo_ext.errors import SourceReadError

moment = dt.datetime(2026, 1, 3, tzinfo=dt.timezone.utc)
entities = pa.table({"cid": [1], "event_timestamp": [moment]})
store = FeatureStore(sys.argv[1])
source = store.get_feature_view("orders").batch_source
found = (["cid"], ["total"], "t", None, moment - dt.timedelta(days=9), moment)
for use in (
    lambda: store.get_historical_features(entities, ["orders:total"]).to_arrow(),
    lambda: store.get_historical_features(entities, ["orders:total"]).explain(),
    lambda: S3ParquetOfflineStore.pull_latest_from_table_or_query(
        store.config, source, *found
    ).to_arrow(),
):
    try:
        use()
    except SourceReadError as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("make", "column"),
    [(encrypt, "cid"), (encrypt, "t"), (encrypt, "total"), (corrupt, "")],
    ids=["key encrypted", "time encrypted", "feature encrypted", "corrupt"],
)
def test_each_use_is_an_error_that_names_the_file(open_store, tmp_path, make, column):
    path = tmp_path / "orders.parquet"
    make(path, column)
    store = open_store(online={"region": "us-east-1"})
    store.apply([CUSTOMER, orders(path, total=Int64)])
    write_repo_yaml(tmp_path, registry=str(tmp_path / "registry.db"))
    run = subprocess.run(
        [sys.executable, "-c", USES, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count(f"{path} cannot be read") == 3
