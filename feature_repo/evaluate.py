"""Measure an XGBoost model on the test split: its AUC, into evaluation.json."""

import argparse
import json
import tarfile
import tempfile
from pathlib import Path

import pandas as pd
import xgboost as xgb


def main() -> None:
    """Read model and test split, write evaluation.json."""
    parser = argparse.ArgumentParser()
    for name in ("model", "test", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(given.model / "model.tar.gz") as packed:
            packed.extract("model.json", folder)
        booster = xgb.Booster(model_file=str(Path(folder, "model.json")))

    files = sorted(given.test.glob("*.csv"))
    rows = pd.concat([pd.read_csv(file, header=None) for file in files]).to_numpy("float64")
    ranks = pd.Series(booster.predict(xgb.DMatrix(rows[:, 1:]))).rank().to_numpy()
    ones = rows[:, 0] == 1
    pairs = ones.sum() * (~ones).sum()
    auc = (ranks[ones].sum() - ones.sum() * (ones.sum() + 1) / 2) / pairs
    # As SageMaker's registry shows it.
    quality = {"auc": {"value": float(auc), "standard_deviation": "NaN"}}
    found = {"binary_classification_metrics": quality, "rows": len(rows)}
    (given.output / "evaluation.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
