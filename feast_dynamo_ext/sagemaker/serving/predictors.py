"""What predicts in a packaged model: one of XGBoost, or an `inference.py` of the user's own."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any, Protocol

from feast_dynamo_ext.errors import ServingError
from feast_dynamo_ext.sagemaker.serving.serving_settings import CODE, USER_MODULE

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from feast_dynamo_ext.sagemaker.manifest import Manifest
    from feast_dynamo_ext.sagemaker.serving.serving_settings import ServingSettings


class Model(Protocol):
    """What predicts from encoded features, a row of the matrix each."""

    def predict(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """Predictions, one per row along the first axis."""


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
        if "OMP_NUM_THREADS" not in os.environ:
            # As AWS's own container sets it. Several threads wait for each other longer than a few
            # rows take, and take the cores from other requests.
            self._booster.set_param({"nthread": 1})
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
        except (Exception, SystemExit) as error:
            raise ServingError(
                f"{path} failed when it was loaded: {type(error).__name__}: {error}."
            ) from error
        if not callable(getattr(module, "predict", None)):
            raise ServingError(f"{path} does not define `predict(matrix)`.")
        self.predict = module.predict
