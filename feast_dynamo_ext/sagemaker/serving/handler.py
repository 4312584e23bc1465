"""The one handler behind every host: rows of entity keys become features, then predictions.

It opens a model's folder as `package` wrote it, and looks features up as the training set's
manifest has them: the same encodings, the same order. A host passes bodies in and answers out.
"""

from __future__ import annotations

import collections
import importlib.util
import json
import logging
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.errors import (
    BAD_REQUEST,
    SERVER_ERROR,
    UNAVAILABLE,
    FeastDynamoError,
    InvocationError,
    ServingError,
    TrainingSetError,
)
from feast_dynamo_ext.sagemaker.encodings import arrow_type
from feast_dynamo_ext.sagemaker.manifest import Manifest
from feast_dynamo_ext.sagemaker.provenance import definition_hash
from feast_dynamo_ext.sagemaker.serving.bodies import (
    BAD_VALUE,
    JSON,
    MAX_BODY_BYTES,
    FeatureCounts,
    RequestColumn,
    RequestRows,
    accepted_form,
    error_body,
    read_rows,
    write_answer,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast import FeatureStore
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

FOLDER = "features"
"""Of our files in the model's folder: the built-in XGBoost loads whatever is at its top."""
SERVING, REGISTRY, STORE_YAML = "serving.json", "registry.db", "feature_store.yaml"
MANIFEST = "training_set.json"
"""Not manifest.json, which multi-model-server takes for its own, in any folder, and ends."""
CODE, USER_MODULE = "code", "inference.py"
SERVING_VERSION = 1
COUNTS_HEADER = "X-Amzn-SageMaker-Custom-Attributes"
"""The one header of an answer that SageMaker passes on to the caller of InvokeEndpoint."""


@dataclass(frozen=True)
class ServingSettings:
    """What `serving.json` of a packaged model says.

    Attributes:
        model_kind: `xgboost`, or `python` for an `inference.py` with `predict(matrix)`.
        model_file: of `xgboost` the file at the top of the model's folder.
        columns: what each row of a request has.
        features: references to look up, or None for the feature service itself.
        feature_service: name of the feature service, if the training set is of one.
        live_registry: where definitions are compared when a worker starts; None for nowhere.
        max_rows: of one request.
        max_body_bytes: of one request.
        max_batch_rows: of requests that are looked up together.
        max_queued_rows: that may wait, beyond which requests are refused.
        max_wait_ms: that a batch may wait for further requests; None turns batching off.
    """

    model_kind: str
    model_file: str | None
    columns: tuple[RequestColumn, ...]
    features: tuple[str, ...] | None
    feature_service: str | None
    live_registry: str | None = None
    max_rows: int = 1_000
    max_body_bytes: int = MAX_BODY_BYTES
    max_batch_rows: int = 1_000
    max_queued_rows: int = 10_000
    max_wait_ms: float | None = 1.0

    def to_json(self) -> str:
        """The text of `serving.json`."""
        values = {**vars(self), "columns": [vars(column) for column in self.columns]}
        return json.dumps({"format_version": SERVING_VERSION, **values}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> ServingSettings:
        """The inverse of `to_json`; `source` names the file in errors.

        Raises:
            ServingError: it is no such file.
        """
        try:
            values = json.loads(text)
            if (version := values.pop("format_version")) != SERVING_VERSION:
                raise ServingError(
                    f"{source} has format_version {version}; this version reads "
                    f"{SERVING_VERSION}. Package the model again."
                )
            values["columns"] = tuple(RequestColumn(**column) for column in values["columns"])
            if values["features"] is not None:
                values["features"] = tuple(values["features"])
            return cls(**values)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ServingError(
                f"{source} is not what `feast-dynamo endpoint package` writes: {error}."
            ) from error


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


class Model(Protocol):
    """What predicts from encoded features, a row of the matrix each."""

    def predict(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """Predictions, one per row along the first axis."""


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
        self._sources = [_column_type(manifest, name) for name in manifest.features]
        self._has_ages = any(manifest.encodings[name].kind == "age" for name in manifest.features)

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
        columns = {
            column.name: [value for each in requests for value in each.rows.columns[column.name]]
            for column in self.settings.columns
        }
        count = sum(each.rows.count for each in requests)
        response = self._store.get_online_features(
            features=self._features,
            entity_rows=columns,
            full_feature_names=self.manifest.provenance.full_feature_names,
        )
        table, lacking = self._table(response, columns)
        times = None
        if self._has_ages:
            of_rows = [each.at for each in requests for _ in range(each.rows.count)]
            times = pa.array(of_rows, pa.timestamp("us", tz="UTC"))
        try:
            matrix = matrix_of(self.manifest.encode(table, times))
        except TrainingSetError as error:
            raise InvocationError(str(error), BAD_VALUE) from error
        predicted = self._predictions(matrix)
        found, start = [], 0
        for each in requests:
            end = start + each.rows.count
            found.append(Prediction(predicted[start:end], lacking.counts(start, end)))
            start = end
        with self._counting:
            self.counters.update(batches=1, rows=count)
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

    def _table(self, response: Any, given: Mapping[str, list[Any]]) -> tuple[pa.Table, _Lacking]:
        answered = response.to_dict()
        statuses = {
            name: result.statuses
            for name, result in zip(
                response.proto.metadata.feature_names.val, response.proto.results, strict=True
            )
        }
        arrays, lacking = [], _Lacking()
        for name, kind in zip(self.manifest.features, self._sources, strict=True):
            values = answered[name] if name in answered else given[name]
            lacking.add(name, values, statuses.get(name, ()) if name not in given else ())
            arrays.append(_array(name, values, kind))
        return pa.Table.from_arrays(arrays, names=list(self.manifest.features)), lacking

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
        with self._counting:
            self.counters.update(
                requests=1,
                **{name: sum(found.values()) for name, found in vars(counts).items()},
            )
        header = counts.header()
        logger.info(
            "%d rows; %s; %.1f ms",
            len(prediction.values),
            header,
            (time.monotonic() - started) * 1_000,
        )
        body = write_answer(prediction.values, form, counts)
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
        import asyncio

        asyncio.run(self._store.close())


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


class _Lacking:
    """Which rows lack which feature, and how."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, list[int]]] = {
            "missing": {},
            "expired": {},
            "unread": {},
        }

    def add(self, name: str, values: Sequence[Any], statuses: Sequence[int]) -> None:
        from feast_dynamo_ext.dynamo.read import OUTSIDE_MAX_AGE, PRESENT, UNREAD

        if not any(value is None for value in values) and {*statuses} <= {PRESENT}:
            return
        how = {OUTSIDE_MAX_AGE: "expired", UNREAD: "unread"}
        for row, value in enumerate(values):
            status = statuses[row] if row < len(statuses) else PRESENT
            kind = how.get(status, "missing" if value is None else "")
            if kind:
                self._rows[kind].setdefault(name, []).append(row)

    def counts(self, start: int, end: int) -> FeatureCounts:
        return FeatureCounts(
            **{
                kind: {
                    name: found
                    for name, rows in by_name.items()
                    if (found := sum(start <= row < end for row in rows))
                }
                for kind, by_name in self._rows.items()
            }
        )


def _column_type(manifest: Manifest, name: str) -> pa.DataType | None:
    """The type of a column in the join, where it is a plain one; else it follows from values."""
    try:
        return arrow_type(manifest.encodings[name].input_type)
    except ValueError:
        return None


def _array(name: str, values: list[Any], kind: pa.DataType | None) -> pa.Array:
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, OverflowError, ValueError) as error:
        raise InvocationError(
            f"Feature `{name}` of a row is no {kind or 'value of one type'}, as it was in "
            "training.",
            BAD_VALUE,
        ) from error


def matrix_of(table: pa.Table) -> NDArray[Any]:
    """Encoded features as a matrix, a row each; float64 with NaN for missing, if all are numbers.

    A set for a script may keep texts and times: then it is a matrix of objects.
    """
    if all(_is_number(kind) for kind in table.schema.types):
        matrix = np.empty((table.num_rows, table.num_columns), np.float64)
        for at, column in enumerate(table.columns):
            matrix[:, at] = column.to_numpy()
        return matrix
    matrix = np.empty((table.num_rows, table.num_columns), object)
    for at, column in enumerate(table.columns):
        matrix[:, at] = column.to_pylist()
    return matrix


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


# Opening


def open_handler(model_dir: str | Path) -> FeatureHandler:
    """Open a packaged model: its store, its definitions compared, its model loaded.

    Args:
        model_dir: where `model.tar.gz` was unpacked, in a container `/opt/ml/model`.

    Raises:
        ServingError: a file is missing, a definition has changed since the packaging, or the
            model does not fit the training set.
        ConfigError: the store's settings cannot work.
    """
    model_dir = Path(model_dir).resolve()
    folder = model_dir / FOLDER
    settings = ServingSettings.from_json(_text(folder / SERVING), str(folder / SERVING))
    manifest = Manifest.from_json(_text(folder / MANIFEST), source=str(folder / MANIFEST))
    store = _open_store(folder)
    refuse_changed(store, manifest, settings, "The packaged registry")
    if settings.live_registry is not None:
        refuse_changed(
            _live_store(store, settings.live_registry),
            manifest,
            settings,
            f"The registry {settings.live_registry}",
        )
    model = load_model(model_dir, settings, manifest)
    logger.info(
        "serving %d features of %s", len(manifest.features), settings.feature_service or "views"
    )
    return FeatureHandler(settings, manifest, store, model)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ServingError(
            f"{path} cannot be read: {error}. Package the model with `feast-dynamo endpoint "
            "package`, and unpack the archive whole."
        ) from error


def _open_store(folder: Path) -> FeatureStore:
    from feast import FeatureStore

    if not (folder / REGISTRY).is_file():  # Feast would make an empty one
        raise ServingError(f"{folder / REGISTRY} is missing. Package the model again.")
    return FeatureStore(repo_path=str(folder), fs_yaml_file=folder / STORE_YAML)


def _live_store(store: FeatureStore, path: str) -> FeatureStore:
    from feast import FeatureStore

    config = store.config.model_copy(deep=True)
    config = type(config)(
        **{
            **{k: v for k, v in config.model_dump(by_alias=True).items() if k != "registry"},
            "registry": {"path": path, "cache_ttl_seconds": 0},
        }
    )
    config.repo_path = store.config.repo_path
    return FeatureStore(config=config)


def refuse_changed(
    store: FeatureStore, manifest: Manifest, settings: ServingSettings, subject: str
) -> None:
    """Refuse a registry whose definitions are not those of the training set.

    Raises:
        ServingError: naming each feature view or service that is gone or has changed.
    """
    from feast.errors import FeastError

    expected = manifest.provenance.view_definitions
    views = {view.name: view for view in store.list_all_feature_views()}
    changes = [
        f"feature view `{name}` {'has changed' if name in views else 'is gone'}"
        for name, wanted in sorted(expected.items())
        if name not in views or definition_hash(views[name]) != wanted
    ]
    name = settings.feature_service
    if name is not None:
        try:
            refs = references_of(store.get_feature_service(name))
        except FeastError:
            changes.append(f"feature service `{name}` is gone")
        else:
            if refs != manifest.provenance.feature_refs:
                changes.append(f"feature service `{name}` has other features")
    if changes:
        raise ServingError(
            f"{subject} is not what the model was trained on: {'; '.join(changes)}. Build the "
            "training set and the model again, or bring the definitions back."
        )


def references_of(service: Any) -> tuple[str, ...]:
    """The references of a feature service, `view:feature`, in order."""
    return tuple(
        f"{projection.name_to_use()}:{feature.name}"
        for projection in service.feature_view_projections
        for feature in projection.features
    )


def load_model(model_dir: Path, settings: ServingSettings, manifest: Manifest) -> Model:
    """Load what predicts.

    Raises:
        ServingError: it cannot be loaded, or takes other features.
    """
    if settings.model_kind == "xgboost":
        return _XGBoost(model_dir / str(settings.model_file), manifest)
    return _UserModel(model_dir)


class _XGBoost:
    def __init__(self, path: Path, manifest: Manifest) -> None:
        try:
            import xgboost
        except ImportError as error:
            raise ServingError(
                "The model is one of XGBoost, which is not installed: pip install xgboost-cpu"
            ) from error
        self._xgboost = xgboost
        refuse_pickle(path)
        try:
            self._booster = xgboost.Booster(model_file=str(path))
        except xgboost.core.XGBoostError as error:
            raise ServingError(
                f"{path} is no model of XGBoost in JSON or UBJSON: "
                f"{str(error).strip().splitlines()[0]}"
            ) from error
        wanted, names = len(manifest.outputs), self._booster.feature_names
        found = self._booster.num_features()
        if found != wanted:
            raise ServingError(
                f"The model takes {found} features; the training set has {wanted}. It was "
                "trained on another set, or on its files without some columns."
            )
        if names and set(names) == set(manifest.outputs) and tuple(names) != manifest.outputs:
            raise ServingError(
                "The model takes the training set's features in another order. Train it on the "
                "files as they are."
            )
        best = self._booster.attr("best_iteration")
        self._rounds = (0, int(best) + 1) if best else (0, 0)

    def predict(self, matrix: NDArray[Any]) -> NDArray[Any]:
        booster = self._booster
        if booster.feature_types and "c" in booster.feature_types:
            data = self._xgboost.DMatrix(
                matrix,
                feature_names=booster.feature_names,
                feature_types=booster.feature_types,
                enable_categorical=True,
            )
            return booster.predict(data, iteration_range=self._rounds)
        return booster.inplace_predict(
            matrix, iteration_range=self._rounds, validate_features=False
        )


def refuse_pickle(path: Path) -> None:
    """Refuse a file that is no JSON or UBJSON, which both begin with a brace.

    A pickle runs what it says when it is loaded, and the old binary form is no longer read.

    Raises:
        ServingError: it is missing or begins otherwise.
    """
    try:
        with path.open("rb") as file:
            start = file.read(1)
    except OSError as error:
        raise ServingError(f"The model {path} cannot be read: {error}.") from error
    if start != b"{":
        raise ServingError(
            f"{path} is no model of XGBoost in JSON or UBJSON. Pickles are never loaded: save it "
            "with `booster.save_model('model.ubj')`, or serve it with an `inference.py` of your "
            "own."
        )


class _UserModel:
    """An `inference.py` with `predict(matrix)`, and `load(model_dir)` where it reads files."""

    def __init__(self, model_dir: Path) -> None:
        path = model_dir / CODE / USER_MODULE
        spec = importlib.util.spec_from_file_location("feast_dynamo_user_inference", path)
        if spec is None or spec.loader is None or not path.is_file():
            raise ServingError(f"{path} is missing: it must define `predict(matrix)`.")
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            if hasattr(module, "load"):
                module.load(str(model_dir))
        except Exception as error:
            raise ServingError(
                f"{path} failed when it was loaded: {type(error).__name__}: {error}."
            ) from error
        if not callable(getattr(module, "predict", None)):
            raise ServingError(f"{path} does not define `predict(matrix)`.")
        self.predict = module.predict
