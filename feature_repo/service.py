"""Predictions behind HTTP, of features that are computed of the purchases at the request.

`/predict/{customer}` scores one customer, `/cohort/{segment}` all customers of a segment. Run it
in this folder, with a model that the pipeline trained::

    SHOP_MODEL=model.tar.gz uvicorn service:app

The model was trained on customer_90d, which a batch job computes; here the same numbers come from
purchases_90d, of the moment of the request.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xgboost as xgb
from fastapi import FastAPI, HTTPException
from feast import FeatureStore

from feast_dynamo_ext import score_cohort
from feast_dynamo_ext.dynamo.series_read import as_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SERVICE = "repurchase_at_request"
DAY_S = 86_400


def inputs(features: pd.DataFrame) -> pd.DataFrame:
    """The model's inputs, in the order in which it was trained on them.

    Args:
        features: those of the service, a row a customer, in columns of any order.
    """
    found = features.astype("float64")
    # Without purchases a window's sum is null; customer_90d says 0, and 90 days or more.
    days = np.floor(found["time_since_last_90d"] / DAY_S).fillna(90)
    of_90_days = {
        "orders_90d": found["count_90d"],
        "items_90d": found["sum_items_90d"].fillna(0),
        "spend_90d": found["sum_amount_90d"].fillna(0),
        "mean_basket_90d": found["mean_amount_90d"],
        "days_since_last_purchase": days,
    }
    lifetime = ("lifetime_orders", "lifetime_spend", "first_purchase_age_days", "mean_gap_days")
    return pd.DataFrame({**of_90_days, **{name: found[name] for name in lifetime}})


def booster_of(archive: Path) -> xgb.Booster:
    """The model that a training job left."""
    with tarfile.open(archive) as packed, tempfile.TemporaryDirectory() as folder:
        packed.extract("model.json", folder, filter="data")
        return xgb.Booster(model_file=str(Path(folder, "model.json")))


def moment() -> contextlib.AbstractContextManager[None]:
    """As of when windows end: now; or, as the demo's purchases end in 1998, as SHOP_NOW says."""
    then = os.environ.get("SHOP_NOW")
    return as_of(datetime.fromisoformat(then)) if then else contextlib.nullcontext()


class Shop:
    """The store and the model of a running service."""

    def __init__(self) -> None:
        self.store = FeatureStore(str(Path(__file__).parent))
        self.features = self.store.get_feature_service(SERVICE)
        self.model = booster_of(Path(os.environ["SHOP_MODEL"]))
        # A few rows are too little to share out: threads would wait for each other, for longer.
        self.model.set_param({"nthread": 1})

    def scores(self, features: pd.DataFrame) -> np.ndarray:
        """How likely customers buy within 60 days, shape (customers,)."""
        return self.model.predict(xgb.DMatrix(inputs(features).to_numpy(), nthread=1))


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the store and its connections, and close them."""
    app.state.shop = Shop()
    await app.state.shop.store.initialize()
    yield
    await app.state.shop.store.close()


app = FastAPI(lifespan=lifespan)


@app.get("/health")
async def health() -> str:
    """That the service answers."""
    return "ok"


@app.get("/predict/{customer}")
async def predict(customer: int) -> dict[str, Any]:
    """The features of a customer, and how likely a purchase within 60 days is."""
    shop = app.state.shop
    with moment():
        answer = await shop.store.get_online_features_async(
            features=shop.features, entity_rows=[{"customer_id": customer}]
        )
    found = answer.to_dict()
    features = {name: values[0] for name, values in found.items() if name != "customer_id"}
    if features["lifetime_orders"] is None:
        raise HTTPException(404, f"no purchase of customer {customer} is known")
    score = float(shop.scores(pd.DataFrame([features]))[0])
    return {"customer_id": customer, "features": features, "score": score}


@app.get("/cohort/{segment}")
def cohort(segment: str, limit: int | None = None) -> list[dict[str, Any]]:
    """The customers of a segment and their scores, those most likely to buy first."""
    shop = app.state.shop
    found: list[dict[str, Any]] = []
    with moment():
        for table in score_cohort(
            shop.store, "customer_segment", shop.features, shop.scores,
            segment=segment, limit=limit,
        ):  # fmt: skip
            scored = table.select(["customer_id", "prediction"]).rename_columns(
                ["customer_id", "score"]
            )
            found += scored.to_pylist()
    return sorted(found, key=lambda each: (-each["score"], each["customer_id"]))
