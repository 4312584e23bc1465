"""Train the repurchase model: a SageMaker script-mode training script.

It runs unchanged in SageMaker's XGBoost container (as entry point), in any container that follows
the SageMaker training contract, and on a laptop::

    SM_CHANNEL_TRAIN=train SM_CHANNEL_VALIDATION=validation SM_MODEL_DIR=model python train.py

A channel is a folder of CSV files without header or of Parquet files; the label (0 or 1) is the
first column, every other column is a numeric feature, an empty field or null is a missing value.

In: the folders SM_CHANNEL_TRAIN, SM_CHANNEL_VALIDATION and, if there is one, SM_CHANNEL_TEST.
Out: SM_MODEL_DIR/model.json, and metrics.json in SM_OUTPUT_DATA_DIR (else beside the model).

For each channel but the first it prints a line that a metric definition can read, for example
`test-auc=0.7097 base-rate=0.3239 rows=23853`.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import xgboost as xgb


class Channel(NamedTuple):
    """The rows of one channel: labels of shape (rows,), features of shape (rows, columns)."""

    labels: np.ndarray
    features: np.ndarray

    def matrix(self) -> xgb.DMatrix:
        """The rows in XGBoost's form, without column names: serving sends none."""
        return xgb.DMatrix(self.features, label=self.labels)


def read_channel(folder: str) -> Channel:
    """Read every CSV and Parquet file under a folder.

    Raises:
        SystemExit: there is no such file, a column is not numeric, or the label is not 0 and 1.
    """
    files = sorted(f for f in Path(folder).rglob("*") if f.suffix in (".csv", ".parquet"))
    if not files:
        raise SystemExit(f"{folder}: no .csv or .parquet file. Check the channel's S3 prefix.")
    rows = np.concatenate([_read_file(file) for file in files])
    labels, features = rows[:, 0], rows[:, 1:]
    if set(np.unique(labels)) != {0.0, 1.0}:
        raise SystemExit(
            f"{folder}: the first column must be the label and hold both 0 and 1; "
            f"it holds {np.unique(labels)[:5]}. Check the column order and the split."
        )
    return Channel(labels, features)


def _read_file(file: Path) -> np.ndarray:
    is_csv = file.suffix == ".csv"
    frame = pd.read_csv(file, header=None) if is_csv else pd.read_parquet(file)
    try:
        rows: np.ndarray = frame.to_numpy(dtype="float64", na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise SystemExit(
            f"{file}: {error}. Every column must be numeric, and a CSV file has no header."
        ) from error
    return rows


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: how often a 1 scores above a 0, ties counted half."""
    ranks = pd.Series(scores).rank().to_numpy()
    ones = labels.sum()
    zeros = len(labels) - ones
    return float((ranks[labels == 1].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def train(args: argparse.Namespace, channels: dict[str, Channel]) -> xgb.Booster:
    """Fit on the train channel until the AUC on the validation channel stops rising."""
    booster = xgb.train(
        {
            "objective": "binary:logistic",
            "eval_metric": "auc",
            "tree_method": "hist",
            "max_depth": args.max_depth,
            "eta": args.eta,
            "min_child_weight": args.min_child_weight,
            "subsample": args.subsample,
            "colsample_bytree": args.colsample_bytree,
            "seed": args.seed,
            "nthread": int(os.environ.get("SM_NUM_CPUS") or os.cpu_count() or 1),
        },
        channels["train"].matrix(),
        num_boost_round=args.num_round,
        evals=[(channels["validation"].matrix(), "validation")],
        early_stopping_rounds=args.early_stopping_rounds,
        verbose_eval=False,
    )
    # Without the rounds after the best one, so that whoever loads the file predicts the same.
    return booster[: booster.best_iteration + 1]


def evaluate(booster: xgb.Booster, channels: dict[str, Channel]) -> dict[str, float]:
    """AUC, base rate (share of ones) and rows of each channel, as `<channel>-<metric>`."""
    metrics: dict[str, float] = {}
    for name, channel in channels.items():
        metrics[f"{name}-auc"] = auc(channel.labels, booster.predict(channel.matrix()))
        metrics[f"{name}-base-rate"] = float(channel.labels.mean())
        metrics[f"{name}-rows"] = len(channel.labels)
    return metrics


def model_fn(model_dir: str) -> xgb.Booster:
    """Load the model: SageMaker's XGBoost container calls this when it starts an endpoint."""
    booster = xgb.Booster()
    booster.load_model(Path(model_dir) / "model.json")
    return booster


def parse_args() -> argparse.Namespace:
    """SageMaker passes hyperparameters as `--name value`; the names are XGBoost's own."""
    parser = argparse.ArgumentParser(description="Train the repurchase model.")
    parser.add_argument("--num_round", type=int, default=500, help="most trees to build")
    parser.add_argument("--early_stopping_rounds", type=int, default=20)
    parser.add_argument("--max_depth", type=int, default=4)
    parser.add_argument("--eta", type=float, default=0.1, help="learning rate")
    parser.add_argument("--min_child_weight", type=float, default=5.0)
    parser.add_argument("--subsample", type=float, default=0.8)
    parser.add_argument("--colsample_bytree", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--train", default=os.environ.get("SM_CHANNEL_TRAIN"))
    parser.add_argument("--validation", default=os.environ.get("SM_CHANNEL_VALIDATION"))
    parser.add_argument("--test", default=os.environ.get("SM_CHANNEL_TEST"))
    parser.add_argument("--model_dir", default=os.environ.get("SM_MODEL_DIR"))
    parser.add_argument("--output_data_dir", default=os.environ.get("SM_OUTPUT_DATA_DIR"))
    args = parser.parse_args()
    for name in ("train", "validation", "model_dir"):
        if not getattr(args, name):
            parser.error(f"--{name} is not set, and neither is its SM_ variable")
    return args


def main() -> None:
    """Train, evaluate, save."""
    args = parse_args()
    folders = {"train": args.train, "validation": args.validation, "test": args.test}
    channels = {name: read_channel(folder) for name, folder in folders.items() if folder}
    booster = train(args, channels)
    metrics = evaluate(booster, channels)
    for name in list(channels)[1:]:
        print(
            f"{name}-auc={metrics[f'{name}-auc']:.4f} "
            f"base-rate={metrics[f'{name}-base-rate']:.4f} rows={metrics[f'{name}-rows']}"
        )
    model_dir = Path(args.model_dir)
    output_dir = Path(args.output_data_dir or model_dir)
    for folder in (model_dir, output_dir):
        folder.mkdir(parents=True, exist_ok=True)
    booster.save_model(model_dir / "model.json")
    (output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    main()
