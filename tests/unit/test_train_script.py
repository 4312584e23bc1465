"""train.py under SageMaker's training contract: folders and hyperparameters in, model out."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[2] / "feature_repo" / "train.py"


pytestmark = pytest.mark.slow  # each training is a process of its own


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_script", SCRIPT)
    sys.modules["train_script"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["train_script"]


def example(rows, seed):
    """Label first; the first feature decides most of it, the second is noise with gaps."""
    random_numbers = np.random.default_rng(seed)
    signal, noise = random_numbers.normal(size=(2, rows))
    label = (signal + random_numbers.normal(size=rows) > 0.5).astype("int64")
    noise[::7] = np.nan
    return pd.DataFrame({"label": label, "signal": signal, "noise": noise})


def write_channels(root, kind, names=("train", "validation", "test")):
    for seed, name in enumerate(names):
        (root / name).mkdir()
        for part, frame in enumerate(np.array_split(np.arange(600), 2)):
            rows = example(600, seed).iloc[frame]
            if kind == "csv":
                rows.to_csv(root / name / f"part-{part}.csv", header=False, index=False)
            else:
                rows.to_parquet(root / name / f"part-{part}.parquet", index=False)


def run_train(root, *hyperparameters, names=("train", "validation", "test")):
    """Run the script as SageMaker does: channels and folders in SM_ variables."""
    contract = {f"SM_CHANNEL_{name.upper()}": str(root / name) for name in names}
    contract |= {"SM_MODEL_DIR": str(root / "model"), "SM_NUM_CPUS": "1"}
    contract |= {"SM_OUTPUT_DATA_DIR": str(root / "output")}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SM_")}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *hyperparameters],
        env=inherited | contract,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_training_beats_the_base(script, tmp_path, kind):
    write_channels(tmp_path, kind)
    run = run_train(tmp_path, "--eta", "0.2", "--num_round", "50")
    assert run.returncode == 0, run.stderr
    line = re.compile(r"^test-auc=(0\.\d{4}) base-rate=(0\.\d{4}) rows=(\d+)$", re.MULTILINE)
    auc, base_rate, rows = map(float, line.search(run.stdout).groups())
    assert auc > 0.75  # 0.5 would be no model at all
    assert rows == 600
    metrics = json.loads((tmp_path / "output" / "metrics.json").read_text())
    assert round(metrics["test-auc"], 4) == auc
    assert round(metrics["test-base-rate"], 4) == base_rate
    assert base_rate == round(example(600, 2)["label"].mean(), 4)

    # The file alone gives the same model: that is what an endpoint loads.
    assert [file.name for file in (tmp_path / "model").iterdir()] == ["model.json"]
    test = script.read_channel(str(tmp_path / "test"))
    scores = script.model_fn(str(tmp_path / "model")).predict(test.matrix())
    assert script.auc(test.labels, scores) == pytest.approx(metrics["test-auc"], abs=1e-12)


def test_csv_and_parquet_train_the_same_model(tmp_path):
    models = []
    for kind in ("csv", "parquet"):
        root = tmp_path / kind
        root.mkdir()
        write_channels(root, kind)
        assert run_train(root, "--num_round", "5").returncode == 0
        models.append((root / "model" / "model.json").read_bytes())
    assert models[0] == models[1]


def test_the_test_channel_is_optional(tmp_path):
    names = ("train", "validation")
    write_channels(tmp_path, "csv", names)
    run = run_train(tmp_path, "--num_round", "5", names=names)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("validation-auc=")
    assert "test-auc" not in run.stdout


def test_a_hyperparameter_that_does_not_exist_is_refused(tmp_path):
    write_channels(tmp_path, "csv", ("train", "validation"))
    run = run_train(tmp_path, "--depth", "5", names=("train", "validation"))
    assert run.returncode == 2
    assert "unrecognized arguments: --depth 5" in run.stderr


def test_a_missing_channel_is_named(tmp_path):
    run = run_train(tmp_path, names=("train",))
    assert run.returncode == 2
    assert "--validation is not set, and neither is its SM_ variable" in run.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no \.csv or \.parquet file"),
        ("label,signal\n0,1.5\n1,2.5\n", "a CSV file has no header"),
        ("0,1.5\n0,2.5\n", "must be the label and hold both 0 and 1"),
        ("1.5,0\n2.5,1\n", "must be the label and hold both 0 and 1"),
    ],
)
def test_a_channel_that_cannot_be_trained_on_is_refused(script, tmp_path, content, message):
    if content is not None:
        (tmp_path / "part.csv").write_text(content)
    with pytest.raises(SystemExit, match=message):
        script.read_channel(str(tmp_path))


def test_an_empty_field_is_a_missing_value(script, tmp_path):
    (tmp_path / "part.csv").write_text("0,1.5,\n1,,2.5\n")
    channel = script.read_channel(str(tmp_path))
    np.testing.assert_array_equal(channel.features, [[1.5, np.nan], [np.nan, 2.5]])
    np.testing.assert_array_equal(channel.labels, [0.0, 1.0])


def test_auc_counts_pairs(script):
    labels = np.array([0, 0, 1, 1])
    assert script.auc(labels, np.array([0.1, 0.4, 0.35, 0.8])) == 0.75  # 3 of 4 pairs in order
    assert script.auc(labels, np.array([0.1, 0.4, 0.4, 0.8])) == 0.875  # a tie counts half
    assert script.auc(labels, np.array([0.8, 0.7, 0.2, 0.1])) == 0.0
