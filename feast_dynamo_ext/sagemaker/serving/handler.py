"""The one handler behind every host: rows of entity keys become features, then predictions.

It looks features up as the training set's manifest has them: the same encodings, the same order.
A host passes bodies in and answers out; `opening` makes one of a packaged model.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np

from feast_dynamo_ext.errors import (
    BAD_REQUEST,
    SERVER_ERROR,
    UNAVAILABLE,
    FeastDynamoError,
    InvocationError,
    ServingError,
)
from feast_dynamo_ext.sagemaker.serving.bodies import (
    BAD_VALUE,
    JSON,
    FeatureCounts,
    RequestRows,
    accepted_form,
    error_body,
    read_rows,
    write_answer,
)
from feast_dynamo_ext.sagemaker.serving.feature_matrix import (
    FEW_ROWS,
    FeatureEncoder,
    LackingValues,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast import FeatureStore
    from numpy.typing import NDArray

    from feast_dynamo_ext.sagemaker.manifest import Manifest
    from feast_dynamo_ext.sagemaker.serving.predictors import Model
    from feast_dynamo_ext.sagemaker.serving.serving_settings import ServingSettings

logger = logging.getLogger(__name__)

COUNTS_HEADER = "X-Amzn-SageMaker-Custom-Attributes"
"""The one header of an answer that SageMaker passes on to the caller of InvokeEndpoint."""


@dataclass(frozen=True)
class Received:
    """The rows of a request, and when it came."""

    rows: RequestRows
    at: datetime


@dataclass(frozen=True)
class Prediction:
    """Predictions of a request's rows, and what their features lack."""

    values: NDArray[Any]
    counts: FeatureCounts


@dataclass(frozen=True)
class Answer:
    """What a host sends back."""

    status: int
    body: bytes
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


class FeatureHandler:
    """A packaged model with its feature store, open; see `open_handler`.

    Attributes:
        settings: of `serving.json`.
        manifest: of the training set.
        counters: since the start: requests, rows, batches, missing, expired and unread values,
            and errors by status.
    """

    def __init__(
        self, settings: ServingSettings, manifest: Manifest, store: FeatureStore, model: Model
    ) -> None:
        self.settings = settings
        self.manifest = manifest
        self.counters: collections.Counter[str] = collections.Counter()
        self._counting = threading.Lock()
        self._store = store
        self._model = model
        self._features: Any = (
            list(settings.features)
            if settings.features is not None
            else store.get_feature_service(str(settings.feature_service))
        )
        self._encoder = FeatureEncoder(manifest)
        # Code of the user's may block: it never runs on an event loop, and on one thread alone.
        self._may_block = settings.model_kind != "xgboost" or bool(
            store.list_on_demand_feature_views()
        )
        self._thread = ThreadPoolExecutor(1, "predictions")

    def receive(self, body: bytes, content_type: str | None) -> Received:
        """Read a request's body.

        Raises:
            InvocationError: see `read_rows`.
        """
        at = datetime.now(tz=timezone.utc)
        limits = self.settings
        rows = read_rows(
            body,
            content_type,
            limits.columns,
            max_rows=limits.max_rows,
            max_bytes=limits.max_body_bytes,
        )
        return Received(rows, at)

    def predict(self, requests: Sequence[Received]) -> list[Prediction]:
        """Look up the features of several requests at once, and predict.

        Raises:
            InvocationError: 422, features that cannot be encoded.
            FeastDynamoError: the online store's.
            ServingError: the model failed.
        """
        wanted = self._wanted(requests)
        try:
            return self._answered(requests, wanted, self._store.get_online_features(**wanted))
        except SystemExit as error:  # of code of the user's: it ends a request, not the server
            raise ServingError("The model failed: it called sys.exit.") from error

    async def predict_async(self, requests: Sequence[Received]) -> list[Prediction]:
        """The same on an event loop, which nothing that takes long holds up.

        Raises: as `predict`.
        """
        loop = asyncio.get_running_loop()
        if self._may_block:
            return await loop.run_in_executor(self._thread, self.predict, requests)
        wanted = self._wanted(requests)
        response = await self._store.get_online_features_async(**wanted)
        if sum(each.rows.count for each in requests) <= FEW_ROWS:
            return self._answered(requests, wanted, response)
        return await loop.run_in_executor(self._thread, self._answered, requests, wanted, response)

    def _wanted(self, requests: Sequence[Received]) -> dict[str, Any]:
        """What `get_online_features` is to look up."""
        if len(requests) == 1:
            columns = dict(requests[0].rows.columns)
        else:
            columns = {
                column.name: [
                    value for each in requests for value in each.rows.columns[column.name]
                ]
                for column in self.settings.columns
            }
        return {
            "features": self._features,
            "entity_rows": columns,
            "full_feature_names": self.manifest.provenance.full_feature_names,
        }

    def _answered(
        self, requests: Sequence[Received], wanted: Mapping[str, Any], response: Any
    ) -> list[Prediction]:
        columns, lacking = self._columns(response, wanted["entity_rows"])
        matrix = self._encoder.matrix(
            columns, [each.at for each in requests for _ in range(each.rows.count)]
        )
        predicted = self._predictions(matrix)
        found, start = [], 0
        for each in requests:
            end = start + each.rows.count
            found.append(Prediction(predicted[start:end], lacking.counts(start, end)))
            start = end
        with self._counting:
            self.counters.update(batches=1, rows=len(matrix))
        return found

    def _predictions(self, matrix: NDArray[Any]) -> NDArray[Any]:
        try:
            predicted = np.asarray(self._model.predict(matrix))
        except Exception as error:
            raise ServingError(f"The model failed: {type(error).__name__}.") from error
        if predicted.shape[:1] != matrix.shape[:1]:
            raise ServingError(
                f"The model gave {predicted.shape} for {len(matrix)} rows: it must give one "
                "prediction for each."
            )
        return predicted

    def _columns(
        self, response: Any, given: Mapping[str, list[Any]]
    ) -> tuple[list[list[Any]], LackingValues]:
        """The values of each feature, in the manifest's order, and what is lacking of them."""
        answered = response.to_dict()
        statuses = {
            name: result.statuses
            for name, result in zip(
                response.proto.metadata.feature_names.val, response.proto.results, strict=True
            )
        }
        columns, lacking = [], LackingValues()
        for name in self.manifest.features:
            values = answered[name] if name in answered else given[name]
            lacking.add(name, values, statuses.get(name, ()) if name not in given else ())
            columns.append(values)
        return columns, lacking

    def answer(self, body: bytes, content_type: str | None, accept: str | None) -> Answer:
        """Answer one request by itself; whatever is wrong with it is an answer, too."""
        started = time.monotonic()
        try:
            form = accepted_form(accept)
            received = self.receive(body, content_type)
            (prediction,) = self.predict([received])
            return self.answered(prediction, form, started)
        except Exception as error:  # noqa: BLE001 - a host gets an answer, never a traceback
            return self.refused(error)

    def answered(self, prediction: Prediction, form: str, started: float) -> Answer:
        """The answer of a prediction; `started` is the monotonic time of its request."""
        counts = prediction.counts
        header, body = counts.header(), write_answer(prediction.values, form, counts)
        with self._counting:
            self.counters.update(
                requests=1,
                **{name: sum(found.values()) for name, found in vars(counts).items()},
            )
        logger.info(
            "%d rows; %s; %.1f ms",
            len(prediction.values),
            header,
            (time.monotonic() - started) * 1_000,
        )
        return Answer(200, body, form, {COUNTS_HEADER: header})

    def refused(self, error: BaseException) -> Answer:
        """The answer of an error: a status and one sentence; the log has more."""
        status, message = status_and_message(error)
        if status >= SERVER_ERROR and not isinstance(error, InvocationError):
            logger.error("a request failed", exc_info=error)
        with self._counting:
            self.counters.update({"requests": 1, f"errors_{status}": 1})
        return Answer(status, error_body(message), JSON)

    def close(self) -> None:
        """Close the online store's connections."""
        asyncio.run(self.close_async())

    async def close_async(self) -> None:
        """The same on the event loop that `predict_async` was run on."""
        self._thread.shutdown()
        await self._store.close()


def status_and_message(error: BaseException) -> tuple[int, str]:
    """HTTP status and sentence for what went wrong.

    What the request is to blame for keeps its words; what AWS or the store said may name what is
    not the caller's, and goes to the log alone.
    """
    if isinstance(error, InvocationError):
        return error.status, str(error)
    if isinstance(error, FeastDynamoError) and error.http_status == BAD_REQUEST:
        return BAD_VALUE, str(error)
    if isinstance(error, ServingError) or not isinstance(error, FeastDynamoError):
        return SERVER_ERROR, "The model could not answer; the endpoint's log says why."
    return UNAVAILABLE, "The features could not be read; try again, the endpoint's log says why."
