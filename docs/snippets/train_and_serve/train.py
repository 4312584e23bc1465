"""Trains XGBoost on the channels of a SageMaker job; the label is the first column."""

import argparse
import os
from pathlib import Path

import pandas as pd
import xgboost as xgb


def channel(name: str) -> xgb.DMatrix:
    """The rows of a channel."""
    files = Path(os.environ[f"SM_CHANNEL_{name}"]).glob("*.parquet")
    rows = pd.concat(map(pd.read_parquet, files))
    return xgb.DMatrix(rows.iloc[:, 1:], label=rows.iloc[:, 0])


def main() -> None:
    """Hyperparameters come as options, the model goes to a folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--max_depth", type=int, default=3)
    given = parser.parse_args()
    settings = {"objective": "binary:logistic", "eval_metric": "auc", "max_depth": given.max_depth}
    validation = channel("VALIDATION")
    model = xgb.train(settings, channel("TRAIN"), 20, evals=[(validation, "validation")])
    model.save_model(Path(os.environ["SM_MODEL_DIR"]) / "model.ubj")


if __name__ == "__main__":
    main()
