"""A packaged model on two views, and the cases that every host of it is held to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import xgboost
from feast import Entity, FeatureService, FeatureStore, ValueType
from feast.types import Float64, Int64, String, UnixTimestamp
from repos import REGION, open_repo_config
from views import customer_view, pushed

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.sagemaker.encodings import Encoding
from feast_dynamo_ext.sagemaker.fitting import Fitting, TrainRows
from feast_dynamo_ext.sagemaker.manifest import ColumnSummary, Manifest, library_versions
from feast_dynamo_ext.sagemaker.provenance import Provenance, definition_hash
from feast_dynamo_ext.sagemaker.serving.package import package_model, references_of, unpack
from feast_dynamo_ext.sagemaker.split import NoSplit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = pd.Timestamp.now(tz="UTC").floor("s")
DAY = pd.Timedelta(days=1)
CUSTOMER = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
CITIES = ["Ulm", "Bonn", "Ulm"]
"""Of the rows that train: Ulm is 0, Bonn 1, any other -1."""

# Of each customer: visits and city; total and days since the last order, None for expired.
PROFILES = {1: (3, "Ulm"), 2: (5, "Bonn"), 3: (None, "Köln"), 4: (7, "Ulm")}
ORDERS = {1: (10.5, 2), 2: (0.25, 40), 3: (8.0, None), 4: None}
AWS = AwsSettings(REGION)


def views() -> list[Any]:
    profile = customer_view(
        "profile", pushed("profile"), entities=[CUSTOMER], visits=Int64, city=String
    )
    orders = customer_view(
        "orders",
        pushed("orders"),
        entities=[CUSTOMER],
        ttl=10 * DAY.to_pytimedelta(),
        total=Float64,
        last=UnixTimestamp,
    )
    return [profile, orders]


def make_store(folder: Path, endpoint: str, project: str, **more: Any) -> FeatureStore:
    """A repo whose tables hold `PROFILES` and `ORDERS`; the row of customer 4 has expired."""
    config = open_repo_config(
        folder,
        project=project,
        **more,
        online={"region": REGION, "endpoint_url": endpoint, "expired": "status"},
        offline={"region": REGION},
    )
    store = FeatureStore(config=config)
    made = views()
    store.apply([CUSTOMER, *made, FeatureService(name="churn", features=made)])
    keys = list(PROFILES)
    profile = pd.DataFrame(
        {
            "customer_id": keys,
            "t": [NOW] * len(keys),
            "visits": pd.array([PROFILES[key][0] for key in keys], "Int64"),
            "city": [PROFILES[key][1] for key in keys],
        }
    )
    store.write_to_online_store("profile", profile)
    orders = pd.DataFrame(
        {
            "customer_id": keys,
            "t": [NOW - (0 * DAY if ORDERS[key] else 9.99999 * DAY) for key in keys],
            "total": [ORDERS[key][0] if ORDERS[key] else 1.0 for key in keys],
            "last": pd.Series(
                [
                    NOW - (ORDERS[key][1] + 0.5) * DAY if ORDERS[key] and ORDERS[key][1] else None
                    for key in keys
                ],
                dtype="datetime64[us, UTC]",
            ),
        }
    )
    store.write_to_online_store("orders", orders)
    return store


def make_manifest(store: FeatureStore) -> Manifest:
    """Of a training set of the feature service `churn`, with every encoding fitted."""
    types = {
        "bought": pa.int64(),
        "visits": pa.int64(),
        "city": pa.string(),
        "total": pa.float64(),
        "last": pa.timestamp("us", tz="UTC"),
        "amount": pa.float64(),
    }
    declared = {
        "city": Encoding(encoding="ordinal"),
        "last": Encoding(encoding="age", unit="day"),
    }
    fitting = Fitting(declared, types)
    count = len(CITIES)
    rows = pa.record_batch(
        [
            pa.array([0, 1, 1], types["bought"]),
            pa.array([1, 2, 3], types["visits"]),
            pa.array(CITIES),
            pa.array([0.5, 1.5, 2.5]),
            pa.array([NOW] * count, types["last"]),
            pa.array([1.0, 2.0, 3.0]),
        ],
        names=list(types),
    )
    while fitting.columns:
        fitting.add(TrainRows(rows, np.zeros(count, np.int8)))
        fitting.end_pass()
    fitted = fitting.finish()
    service = store.get_feature_service("churn")
    return Manifest(
        label="bought",
        event_timestamp="event_timestamp",
        entity_columns=("customer_id",),
        features=("visits", "city", "total", "last", "amount"),
        columns=tuple(
            ColumnSummary(
                name,
                "label" if name == "bought" else "feature",
                str(kind),
                fitted[name].nullable(),
                source="entity_rows" if name in ("bought", "amount") else "features",
            )
            for name, kind in types.items()
        ),
        split=NoSplit(),
        splits={},
        files=(),
        provenance=Provenance(
            project=store.project,
            feature_refs=references_of(service),
            view_definitions={
                view.name: definition_hash(view) for view in store.list_all_feature_views()
            },
            source_files=(),
            entity_rows_sha256="0" * 64,
            feature_service="churn",
        ),
        libraries=library_versions(),
    )


def matrix_of(customers: list[int], amounts: list[float]) -> np.ndarray:
    """What the model is to be given, worked out by hand."""
    rows = []
    for customer, amount in zip(customers, amounts, strict=True):
        visits, city = PROFILES.get(customer, (None, None))
        total, days = ORDERS.get(customer) or (None, None)
        code = None if city is None else {"Ulm": 0, "Bonn": 1}.get(city, -1)
        rows.append([visits, code, total, days, amount])
    return np.array(rows, np.float64)


def train(path: Path) -> xgboost.Booster:
    """A small model of XGBoost of the features in `make_manifest`, saved."""
    random = np.random.default_rng(7)
    matrix = np.column_stack(
        [
            random.integers(0, 9, 400),
            random.integers(-1, 2, 400),
            random.uniform(0, 12, 400),
            random.integers(0, 60, 400),
            random.uniform(0, 100, 400),
        ]
    ).astype(np.float64)
    matrix[random.uniform(size=matrix.shape) < 0.1] = np.nan
    label = np.nan_to_num(matrix[:, 0] - matrix[:, 2] + matrix[:, 4] / 20) > 0
    booster = xgboost.train(
        {"objective": "binary:logistic", "max_depth": 4, "nthread": 1},
        xgboost.DMatrix(matrix, label.astype(int)),
        20,
    )
    booster.save_model(path)
    return booster


@dataclass(frozen=True)
class ServedModel:
    """A model's archive, unpacked, with what it was made of."""

    store: FeatureStore
    manifest: Manifest
    booster: xgboost.Booster
    folder: Path
    archive: Path

    def expected(self, customers: list[int], amounts: list[float]) -> list[float]:
        """Scores by XGBoost itself of the matrix by hand."""
        return self.booster.predict(xgboost.DMatrix(matrix_of(customers, amounts))).tolist()


def make_model(tmp: Path, endpoint: str, project: str, **options: Any) -> ServedModel:
    """Package a model below a folder, and unpack it as a container does."""
    store = make_store(tmp, endpoint, project)
    manifest = make_manifest(store)
    booster = train(tmp / "model.ubj")
    archive = tmp / "model.tar.gz"
    package_model(
        store,
        manifest,
        model=str(tmp / "model.ubj"),
        output=str(archive),
        aws=AWS,
        options={"max_rows": 50, "max_body_bytes": 20_000, **options},
    )
    folder = tmp / "model"
    folder.mkdir()
    unpack(str(archive), folder, AWS)
    return ServedModel(store, manifest, booster, folder, archive)


# Cases


@dataclass(frozen=True)
class Reply:
    """What a host answered."""

    status: int
    body: bytes
    content_type: str
    lacking: str | None


@dataclass(frozen=True)
class Case:
    """A request, and what any host answers.

    Attributes:
        body: of the request.
        status: of the answer.
        content_type, accept: headers; None for none.
        customers, amounts: of which the scores must be.
        lacking: of the header; None where it is not looked at.
        features: of JSON's `features` those that lack values.
        words: in the sentence of an error.
        toolkit_status: where AWS's toolkit refuses the request itself, before the handler.
    """

    body: bytes
    status: int = 200
    content_type: str | None = "application/json"
    accept: str | None = "application/json"
    customers: tuple[int, ...] = ()
    amounts: tuple[float, ...] = ()
    lacking: str | None = None
    features: dict[str, Any] | None = None
    words: str = ""
    toolkit_status: int | None = None


def row(customer: Any, amount: Any = 20.0, **more: Any) -> dict[str, Any]:
    return {"customer_id": customer, "amount": amount, **more}


def js(value: Any) -> bytes:
    return json.dumps(value).encode()


NONE = "missing=0; expired=0; unread=0"
TWO = {"customers": (1, 2), "amounts": (20.0, 80.0)}
ONE = {"customers": (1,), "amounts": (20.0,)}
PAIR = [row(1), row(2, 80.0)]
CSV = {"content_type": "text/csv"}
LINES = {"content_type": "application/jsonlines"}

CASES: dict[str, Case] = {
    "one row": Case(js(row(1)), **ONE, lacking=NONE),
    "a list": Case(js(PAIR), **TWO, lacking=NONE),
    "instances": Case(js({"instances": PAIR}), **TWO),
    "a null amount is missing": Case(
        js(row(1, None)),
        customers=(1,),
        amounts=(float("nan"),),
        lacking="missing=1; expired=0; unread=0",
    ),
    "JSON lines": Case(js(PAIR[0]) + b"\n" + js(PAIR[1]) + b"\n", **LINES, **TWO),
    "JSON lines, answered so": Case(
        js(PAIR[0]) + b"\n\n" + js(PAIR[1]), accept="application/jsonlines", **LINES, **TWO
    ),
    "CSV with a header in another order": Case(b"amount,customer_id\n20,1\n80,2\n", **CSV, **TWO),
    "CSV without a header": Case(b"1,20\r\n2,80\r\n", accept="text/csv", **CSV, **TWO),
    "CSV with an empty cell": Case(b"1,\n", **CSV, customers=(1,), amounts=(float("nan"),)),
    "no Accept": Case(js(PAIR), accept=None, **TWO),
    "Accept with weights": Case(js(PAIR), accept="text/html, text/csv;q=0.9", **TWO),
    "a customer that is not there": Case(
        js([row(1), row(99)]),
        customers=(1, 99),
        amounts=(20.0, 20.0),
        lacking="missing=4; expired=0; unread=0",
        features={
            "missing": {"visits": 1, "city": 1, "total": 1, "last": 1},
            "expired": {},
            "unread": {},
        },
    ),
    "an unseen city and nulls": Case(
        js(row(3)),
        customers=(3,),
        amounts=(20.0,),
        features={"missing": {"visits": 1, "last": 1}, "expired": {}, "unread": {}},
    ),
    "a row past its ttl": Case(
        js(row(4)),
        customers=(4,),
        amounts=(20.0,),
        lacking="missing=0; expired=2; unread=0",
        features={"missing": {}, "expired": {"total": 1, "last": 1}, "unread": {}},
    ),
    "broken JSON": Case(b'{"customer_id": ', 400, words="The body is no JSON"),
    "NaN in JSON": Case(b'{"customer_id": NaN, "amount": 1}', 400, words="The body is no JSON"),
    "an empty body": Case(b" ", 400, words="The body is empty"),
    "bytes that are no UTF-8": Case(
        b"\xff\xfe,1\n", 400, **CSV, words="no UTF-8: byte 0", toolkit_status=500
    ),
    "another content type": Case(
        b"<x/>", 415, content_type="application/xml", words="Send application/json"
    ),
    "another Accept": Case(js(row(1)), 406, accept="image/png", words="Answers come as"),
    "too many rows": Case(js([row(1)] * 51), 413, words="51 rows; the most are 50"),
    "too many bytes": Case(
        b" " * 20_001 + js(row(1)), 413, words="more than 20,000 bytes, the most"
    ),
    "a row without its key": Case(js([row(1), {"amount": 1}]), 422, words="Row 2 lacks"),
    "a key of text": Case(js(row("1")), 422, words="Row 1: `customer_id` is no whole number"),
    "a key that is too large": Case(b"9223372036854775808,1\n", 422, **CSV, words="`customer_id`"),
    "a column that is not known": Case(
        js(row(1, amuont=2)), 422, words="has `amuont`, which the model does not take. Did you"
    ),
    "a null key": Case(js(row(None)), 422, words="`customer_id` is null"),
    "a name twice": Case(
        b'{"customer_id": 1, "amount": 2, "amount": 3}', 422, words="A row has a name twice"
    ),
    "another charset": Case(
        js(row(1)), 415, content_type="application/json; charset=utf-16", words="Send it as UTF-8"
    ),
    "UTF-8 that is said to be": Case(
        js(PAIR), content_type="application/json; charset=utf-8", **TWO
    ),
    "bytes of latin-1 in JSON": Case(
        b'{"customer_id": 1, "\xe4": 1}', 400, words="The body is no JSON", toolkit_status=500
    ),
    "a bad row beside a good one": Case(
        js([row(1), row(2, "x")]), 422, words="Row 2: `amount` is no finite number"
    ),
    "deep JSON": Case(b"[" * 9_000, 400, words="The body is no JSON"),
    "no rows": Case(js({"instances": []}), 422, words="no rows"),
    "too few cells": Case(b"1,2\n3\n", 422, **CSV, words="Line 2 has 1 cells; it needs 2"),
    "a scalar": Case(b"7", 422, words="neither an object nor a list"),
}


def check(case: Case, reply: Reply, model: ServedModel, *, is_toolkit: bool = False) -> None:
    """Hold an answer to a case."""
    if is_toolkit and case.toolkit_status is not None:
        assert reply.status == case.toolkit_status
        return
    assert reply.status == case.status, reply.body
    assert b"Traceback" not in reply.body
    if case.status != 200:
        error = json.loads(reply.body)
        assert list(error) == ["error"]
        assert case.words in error["error"]
        assert "\n" not in error["error"]
        return
    scores = SCORES[reply.content_type.partition(";")[0]](reply.body)
    expected = model.expected(list(case.customers), list(case.amounts))
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    if case.lacking is not None:
        assert reply.lacking == case.lacking
    if case.features is not None:
        assert json.loads(reply.body)["features"] == case.features


def _json_scores(body: bytes) -> list[float]:
    return [each["score"] for each in json.loads(body)["predictions"]]


SCORES: dict[str, Callable[[bytes], list[float]]] = {
    "application/json": _json_scores,
    "application/jsonlines": lambda body: [
        json.loads(line)["score"] for line in body.splitlines()
    ],
    "text/csv": lambda body: [float(line) for line in body.decode().splitlines()],
}
