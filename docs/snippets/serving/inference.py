"""A model of one's own behind an endpoint: here one of scikit-learn, kept as plain numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

weights: np.ndarray = np.zeros(0)


def load(model_dir: str) -> None:
    """Read the model's files, once a worker."""
    global weights  # noqa: PLW0603
    weights = np.load(Path(model_dir) / "weights.npy", allow_pickle=False)


def predict(matrix: np.ndarray) -> np.ndarray:
    """One prediction per row; missing values are NaN."""
    return np.nan_to_num(matrix) @ weights
