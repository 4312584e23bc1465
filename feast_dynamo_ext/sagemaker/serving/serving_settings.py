"""What the folder of a packaged model holds of ours, and `serving.json` in it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from feast_dynamo_ext.errors import ServingError
from feast_dynamo_ext.sagemaker.serving.bodies import MAX_BODY_BYTES, RequestColumn

FOLDER = "features"
"""Of our files in the model's folder: the built-in XGBoost loads whatever is at its top."""
SERVING, REGISTRY, STORE_YAML = "serving.json", "registry.db", "feature_store.yaml"
MANIFEST = "training_set.json"
"""Not manifest.json, which multi-model-server takes for its own, in any folder, and ends."""
CODE, USER_MODULE = "code", "inference.py"
SERVING_VERSION = 1


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
