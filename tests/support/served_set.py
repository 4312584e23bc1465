"""A set with every encoding, and a model on it whose predictions are its encoded features.

Keys are renamed, an on-demand view takes request data, and a feature comes with the entity rows.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureService, FeatureStore, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp
from repos import REGION, write_repo_yaml
from views import customer_view

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.sagemaker.manifest import load_manifest
from feast_dynamo_ext.sagemaker.serving.package import package_model, unpack

if TYPE_CHECKING:
    from pathlib import Path

    from feast_dynamo_ext.sagemaker.manifest import Manifest

AWS = AwsSettings(REGION)
CUSTOMERS, PLACES = 40, 9
NOW = dt.datetime(2026, 5, 1, 12, tzinfo=dt.timezone.utc)
"""Of the entity rows: later than all history, so what is known then is what is known now."""
CUSTOMER = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
PLACE = Entity(name="place", join_keys=["place_id"], value_type=ValueType.STRING)

PERSON = {
    "visits": Int64, "level": Int32, "total": Float64, "share": Float32, "member": Bool,
    "city": String, "plan": String, "tag": String, "code": Int64, "joined": UnixTimestamp,
    "seen": UnixTimestamp, "scores": Array(Float64), "counts": Array(Int64),
}  # fmt: skip

DECLARATION = """
feature_service: everything
entity_rows: {path: rows.parquet}
label: bought
split: {rule: random, fractions: {train: 0.7, test: 0.3}, seed: 1}
target: script
formats: [parquet]
full_feature_names: true
output: sets/everything
columns:
  amount: {role: feature, encoding: number}
  channel: {role: feature, encoding: ordinal, unknown: missing, missing: 9}
  person__visits: {missing: mean}
  person__total: {missing: median}
  person__level: {missing: -1}
  person__member: {encoding: boolean, missing: -1}
  person__city: ordinal
  person__plan: {encoding: one_hot, unknown: column, min_count: 3}
  person__tag: {encoding: hash, buckets: 17, missing: -1}
  person__code: {encoding: one_hot, max_categories: 3}
  person__joined: {encoding: epoch, unit: day}
  person__seen: {encoding: age, unit: h}
  person__scores: {encoding: list, length: 3, longer: cut}
  person__counts: {encoding: list, length: 4, pad: -1, missing: -2}
  home__kind: {encoding: one_hot}
  work__kind: {encoding: ordinal}
"""

INFERENCE = '''"""Predicts the features themselves."""


def predict(matrix):
    return matrix
'''


def views(folder: Path) -> list[Any]:
    person = customer_view("person", _source(folder, "person"), entities=[CUSTOMER], schema=PERSON)
    place = customer_view(
        "place", _source(folder, "place"), entities=[PLACE], size=Float64, kind=String
    )
    basket = RequestSource(name="basket", schema=[Field(name="amount", dtype=Float64)])

    @on_demand_feature_view(
        sources=[person[["total"]], basket],
        schema=[Field(name="of_total", dtype=Float64)],
        mode="pandas",
    )
    def ratio(inputs: pd.DataFrame) -> pd.DataFrame:
        import pandas as pd  # the function is kept by itself

        total = inputs["total"].astype("float64").fillna(1.0)
        return pd.DataFrame({"of_total": inputs["amount"] / (total + 1)})

    return [person, place, ratio]


def service(person: Any, place: Any, ratio: Any) -> FeatureService:
    homes = place.with_name("home").with_join_key_map({"place_id": "home_id"})
    works = place.with_name("work").with_join_key_map({"place_id": "work_id"})
    return FeatureService(name="everything", features=[person, homes, works, ratio])


def _source(folder: Path, name: str) -> FileSource:
    path = str(folder / f"{name}.parquet")
    return FileSource(name=f"{name}_files", path=path, timestamp_field="t")


def _some(random: np.random.Generator, values: list[Any], missing: float = 0.2) -> list[Any]:
    return [None if random.uniform() < missing else value for value in values]


def write_history(folder: Path) -> pd.DataFrame:
    """Values of customers and places, of which some are null or not there; the entity rows."""
    random = np.random.default_rng(5)
    count, known = CUSTOMERS, CUSTOMERS - 4  # the last of them have no row

    def texts(of: str) -> list[str]:
        return [of[place] for place in random.integers(0, len(of), known)]

    def moments() -> list[dt.datetime]:
        return [NOW - dt.timedelta(seconds=int(s)) for s in random.integers(1, 10**8, known)]

    lists = [random.normal(size=size).tolist() for size in random.integers(0, 5, known)]
    person = {
        "customer_id": pa.array(range(known), pa.int64()),
        "t": pa.array([NOW - dt.timedelta(days=1)] * known, pa.timestamp("us", "UTC")),
        "visits": pa.array(_some(random, random.integers(0, 2**40, known).tolist()), pa.int64()),
        "level": pa.array(_some(random, random.integers(-5, 5, known).tolist()), pa.int32()),
        "total": pa.array(_some(random, random.normal(0, 1e6, known).tolist()), pa.float64()),
        "share": pa.array(_some(random, random.uniform(size=known).tolist()), pa.float32()),
        "member": pa.array(_some(random, [place % 3 == 0 for place in range(known)]), pa.bool_()),
        "city": pa.array(_some(random, texts("ÄBCD"))),
        "plan": pa.array(_some(random, texts("aaabbbc"))),
        "tag": pa.array(_some(random, [f"täg-{n}" for n in random.integers(0, 30, known)])),
        "code": pa.array(_some(random, random.integers(1, 6, known).tolist()), pa.int64()),
        "joined": pa.array(_some(random, moments()), pa.timestamp("us", "UTC")),
        "seen": pa.array(_some(random, moments()), pa.timestamp("us", "UTC")),
        "scores": pa.array(_some(random, lists), pa.list_(pa.float64())),
        "counts": pa.array(
            _some(random, [list(range(n)) for n in random.integers(1, 5, known)]),
            pa.list_(pa.int64()),
        ),
    }
    pq.write_table(pa.table(person), folder / "person.parquet")
    place = {
        "place_id": [f"p{number}" for number in range(PLACES - 1)],
        "t": pa.array([NOW - dt.timedelta(days=1)] * (PLACES - 1), pa.timestamp("us", "UTC")),
        "size": _some(random, random.normal(size=PLACES - 1).tolist()),
        "kind": _some(random, [["shop", "office"][n % 2] for n in range(PLACES - 1)]),
    }
    pq.write_table(pa.table(place), folder / "place.parquet")
    rows = pd.DataFrame(
        {
            "customer_id": range(count),
            "home_id": [f"p{number}" for number in random.integers(0, PLACES, count)],
            "work_id": [f"p{number}" for number in random.integers(0, PLACES, count)],
            "event_timestamp": [NOW] * count,
            "amount": random.uniform(0, 100, count),
            "channel": [["web", "app", "shop"][n] for n in random.integers(0, 3, count)],
            "bought": random.integers(0, 2, count),
        }
    )
    rows.to_parquet(folder / "rows.parquet", index=False)
    return rows


@dataclass(frozen=True)
class ServedSet:
    """A repo, its built set, and a model on it, packaged and unpacked.

    Attributes:
        repo: folder of the feature repo.
        rows: the set's entity rows; the index is the customer.
        expected: the set's own files; outputs by customer.
    """

    repo: Path
    store: FeatureStore
    manifest: Manifest
    folder: Path
    rows: pd.DataFrame
    expected: pd.DataFrame

    def request(self, customers: list[int]) -> list[dict[str, Any]]:
        """The rows of a request: as the entity rows, without label and event time."""
        kept = self.rows.loc[customers].drop(columns=["event_timestamp", "bought"])
        return kept.to_dict("records")


def make_repo(repo: Path, endpoint: str, project: str) -> tuple[FeatureStore, pd.DataFrame]:
    """A repo with its declared set; its newest rows are in DynamoDB."""
    online = {"region": REGION, "endpoint_url": endpoint}
    write_repo_yaml(repo, project=project, online=online, offline={"region": REGION})
    rows = write_history(repo)
    (repo / "training_sets").mkdir()
    (repo / "training_sets" / "everything.yaml").write_text(DECLARATION)
    store = FeatureStore(repo_path=str(repo))
    made = views(repo)
    store.apply([CUSTOMER, PLACE, *made, service(*made)])
    store.materialize(NOW - dt.timedelta(days=9), NOW)
    return store, rows


def package(store: FeatureStore, repo: Path, folder: Path, **options: Any) -> None:
    """Package a model on the built set, and unpack it into a folder."""
    (repo / "inference.py").write_text(INFERENCE)
    (repo / "weights").mkdir(exist_ok=True)
    (repo / "weights" / "nothing.txt").write_text("This model has no weights.\n")
    output = str(repo / "model.tar.gz")
    package_model(
        store,
        load_manifest(str(repo / "sets" / "everything"), AWS),
        model=str(repo / "weights"),
        output=output,
        aws=AWS,
        code=repo / "inference.py",
        **options,
    )
    folder.mkdir()
    unpack(output, folder, AWS)


def files_of_set(repo: Path, manifest: Manifest) -> pd.DataFrame:
    """The outputs as the set's files have them, by customer."""
    found = []
    for split in ("train", "test"):
        values = pq.read_table(repo / "sets" / "everything" / split / "parquet").to_pandas()
        keys = pq.read_table(repo / "sets" / "everything" / "rows" / split).to_pandas()
        values.index = pd.Index(keys["customer_id"])
        found.append(values[[*manifest.outputs]])
    return pd.concat(found).astype(float)
