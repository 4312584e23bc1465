"""What makes the finished buckets of a killed run count, or not."""

from __future__ import annotations

import datetime as dt
import hashlib

import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int32, Int64, String
from views import CUSTOMER

from feast_dynamo_ext.materialize.checkpoint import source_fingerprint, view_fingerprint

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
NAME = Entity(name="name", join_keys=["cid"], value_type=ValueType.STRING)
FEATURES = (Field(name="total", dtype=Float64), Field(name="count", dtype=Int64))


def view(name="orders", key=Int64, features=FEATURES, ttl=None, entities=(CUSTOMER,), **source):
    given = {"timestamp_field": "t", "created_timestamp_column": "made", **source}
    return FeatureView(
        name=name,
        entities=list(entities),
        schema=[Field(name="cid", dtype=key), *features],
        source=FileSource(name=f"{name}_source", path="nowhere", **given),
        ttl=ttl or dt.timedelta(0),
    )


def test_files_are_the_same_in_whatever_order_they_are_listed():
    files = [("b.parquet", 10, 2), ("a.parquet", 20, 1)]
    text = b'[["a.parquet",20,1],["b.parquet",10,2]]'
    assert source_fingerprint(files) == hashlib.sha256(text).hexdigest()
    assert source_fingerprint(iter(files[::-1])) == source_fingerprint(files)


@pytest.mark.parametrize(
    "files",
    [
        [],
        [("a.parquet", 20, 1)],
        [("a.parquet", 21, 1), ("b.parquet", 10, 2)],
        [("a.parquet", 20, 2), ("b.parquet", 10, 2)],
        [("c.parquet", 20, 1), ("b.parquet", 10, 2)],
    ],
)
def test_a_file_more_or_less_or_changed_is_another_source(files):
    assert source_fingerprint(files) != source_fingerprint(
        [("a.parquet", 20, 1), ("b.parquet", 10, 2)]
    )


def test_a_view_is_the_same_whatever_else_is_said_of_it():
    other = view()
    other.tags, other.description, other.owner = {"team": "shop"}, "orders", "somebody"
    other.materialization_intervals.append((EPOCH, EPOCH))
    assert view_fingerprint(other) == view_fingerprint(view())
    assert view_fingerprint(FeatureView.from_proto(view().to_proto())) == view_fingerprint(view())


@pytest.mark.parametrize(
    "changed",
    [
        {"key": String, "entities": (NAME,)},
        {"features": FEATURES[:1]},
        {"features": FEATURES[::-1]},
        {"features": (FEATURES[0], Field(name="count", dtype=Int32))},
        {"ttl": dt.timedelta(days=1)},
        {"entities": ()},
        {"timestamp_field": "seen"},
        {"created_timestamp_column": ""},
        {"field_mapping": {"sum": "total"}},
    ],
    ids=str,
)
def test_a_view_whose_rows_or_items_would_be_others_is_another(changed):
    assert view_fingerprint(view(**changed)) != view_fingerprint(view())
