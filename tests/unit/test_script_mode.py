from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import ConfigError, TrainingSetError
from feast_dynamo_ext.sagemaker import (
    Provenance,
    TimeSplit,
    TrainingSet,
    run_locally,
    write_training_set,
)

if TYPE_CHECKING:
    from pathlib import Path

REPORT = """
import json, os, pathlib, sys
import sibling
seen = {
    "argv": sys.argv[1:],
    "env": {name: value for name, value in os.environ.items() if name.startswith("SM_")},
    "train": sorted(path.name for path in pathlib.Path(os.environ["SM_CHANNEL_TRAIN"]).iterdir()),
    "sibling": sibling.NAME,
}
pathlib.Path(os.environ["SM_MODEL_DIR"], "model.json").write_text(json.dumps(seen))
print("trained")
"""

TRAIN_XGBOOST = """
import argparse, os
import xgboost

arguments = argparse.ArgumentParser()
arguments.add_argument("--max_depth", type=int)
arguments.add_argument("--num_round", type=int)
arguments.add_argument("--train", default=os.environ["SM_CHANNEL_TRAIN"])
arguments.add_argument("--validation", default=os.environ["SM_CHANNEL_VALIDATION"])
arguments.add_argument("--model_dir", default=os.environ["SM_MODEL_DIR"])
given = arguments.parse_args()

import pandas

def matrix(folder):
    frame = pandas.read_csv(os.path.join(folder, "part-00000.csv"), header=None)
    return xgboost.DMatrix(frame.iloc[:, 1:], label=frame.iloc[:, 0])

parameters = {"objective": "binary:logistic", "max_depth": given.max_depth, "nthread": 1}
watched = {}
model = xgboost.train(
    parameters, matrix(given.train), given.num_round,
    evals=[(matrix(given.validation), "validation")], evals_result=watched, verbose_eval=False,
)
model.save_model(os.path.join(given.model_dir, "model.json"))
print("logloss fell:", watched["validation"]["logloss"][-1] < watched["validation"]["logloss"][0])
"""


@pytest.fixture
def training_set(tmp_path) -> TrainingSet:
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    times = [start + timedelta(hours=hour) for hour in range(300)]
    table = pa.table(
        {
            "id": range(300),
            "event_timestamp": times,
            "y": [hour % 7 > 3 for hour in range(300)],
            "x": [hour % 7 for hour in range(300)],
            "noise": [None if hour % 5 == 0 else hour * 31 % 17 for hour in range(300)],
        }
    )
    return write_training_set(
        table,
        label="y",
        event_timestamp="event_timestamp",
        entity_columns=["id"],
        features=["x", "noise"],
        output=str(tmp_path / "set"),
        split=TimeSplit(times[200], times[250]),
        aws=AwsSettings(),
        provenance=Provenance("shop", (), {}, (), ""),
    )


def script(tmp_path: Path, text: str) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "sibling.py").write_text("NAME = 'beside the script'")
    path = folder / "train.py"
    path.write_text(text)
    return path


def test_the_script_finds_the_contract_of_the_training_toolkit(
    tmp_path, training_set, monkeypatch, capsys
):
    monkeypatch.setenv("SM_CHANNEL_LEFTOVER", "/somewhere")
    run = run_locally(
        script(tmp_path, REPORT),
        training_set,
        model_dir=tmp_path / "model",
        hyperparameters={
            "max_depth": 5,
            "objective": "binary:logistic",
            "n": None,
            "flag": True,
            "metrics": ["auc"],
            "limits": {"b": 2, "a": 1},
            "sagemaker_program": "train.py",
        },
        work_dir=tmp_path / "work",
    )
    seen = json.loads((run.model_dir / "model.json").read_text())
    assert seen["sibling"] == "beside the script"
    assert seen["train"] == ["part-00000.csv"]
    # As `sagemaker-training` 5.1.4 passes the same hyperparameters.
    assert seen["argv"] == [
        "--flag", "True",
        "--limits", "a=1,b=2",
        "--max_depth", "5",
        "--metrics", "['auc']",
        "-n", "",
        "--objective", "binary:logistic",
    ]  # fmt: skip
    environment = seen["env"]
    cpus = environment.pop("SM_NUM_CPUS")
    assert int(cpus) >= 1
    assert json.loads(environment.pop("SM_USER_ARGS")) == seen["argv"]
    assert environment == {
        "SM_CHANNELS": '["train","validation"]',
        "SM_CHANNEL_TRAIN": str(tmp_path / "work/input/data/train"),
        "SM_CHANNEL_VALIDATION": str(tmp_path / "work/input/data/validation"),
        "SM_CURRENT_HOST": "algo-1",
        "SM_HOSTS": '["algo-1"]',
        "SM_HPS": (
            '{"flag":true,"limits":{"a":1,"b":2},"max_depth":5,"metrics":["auc"],"n":null,'
            '"objective":"binary:logistic"}'
        ),
        "SM_HP_FLAG": "true",
        "SM_HP_LIMITS": '{"a":1,"b":2}',
        "SM_HP_MAX_DEPTH": "5",
        "SM_HP_METRICS": '["auc"]',
        "SM_HP_N": "",
        "SM_HP_OBJECTIVE": "binary:logistic",
        "SM_INPUT_DIR": str(tmp_path / "work/input"),
        "SM_MODEL_DIR": str(tmp_path / "model"),
        "SM_MODULE_NAME": "train",
        "SM_NUM_GPUS": "0",
        "SM_OUTPUT_DATA_DIR": str(tmp_path / "work/output/data"),
        "SM_OUTPUT_DIR": str(tmp_path / "work/output"),
        "SM_USER_ENTRY_POINT": "train.py",
    }
    assert run.output_data_dir.is_dir()
    assert run.last_lines == ("trained",)
    assert capsys.readouterr().out == "trained\n"


def test_the_test_channel_is_there_when_asked_for(tmp_path, training_set):
    run = run_locally(
        script(tmp_path, "import os; print(os.listdir(os.environ['SM_CHANNEL_TEST']))"),
        training_set,
        model_dir=tmp_path / "model",
        hyperparameters={},
        work_dir=tmp_path / "work",
        format="parquet",
        splits=("train", "validation", "test"),
    )
    assert run.last_lines == ("['part-00000.parquet']",)
    assert sorted(run.channels) == ["test", "train", "validation"]


@pytest.mark.slow
def test_a_real_model_is_trained_from_the_files(tmp_path, training_set):
    run = run_locally(
        script(tmp_path, TRAIN_XGBOOST),
        training_set,
        model_dir=tmp_path / "model",
        hyperparameters={"max_depth": 3, "num_round": 10},
        work_dir=tmp_path / "work",
        log=tmp_path / "train.log",
    )
    assert run.last_lines[-1] == "logloss fell: True"
    assert (tmp_path / "model" / "model.json").stat().st_size > 0
    assert (tmp_path / "train.log").read_text().endswith("logloss fell: True\n")


def test_a_script_that_fails_is_an_error_with_the_end_of_its_output(
    tmp_path, training_set, capsys
):
    text = (
        "import sys\nfor n in range(30): print('line', n)\nprint('bad', file=sys.stderr)\nexit(3)"
    )
    with pytest.raises(TrainingSetError) as error:
        run_locally(
            script(tmp_path, text),
            training_set,
            model_dir=tmp_path / "model",
            hyperparameters={},
            work_dir=tmp_path / "work",
        )
    message = str(error.value)
    assert message.startswith("train.py ended with exit code 3. The end of its output:\nline 11\n")
    assert message.endswith("line 29\nbad")
    assert "line 0\n" in capsys.readouterr().out


class BrokenPipe:
    def write(self, text: str) -> int:
        raise BrokenPipeError("nobody reads")

    def flush(self) -> None:
        raise AssertionError("not reached")


@pytest.mark.timeout(60)
def test_a_script_does_not_outlive_the_reader_of_its_output(tmp_path, training_set, monkeypatch):
    monkeypatch.setattr(sys, "stdout", BrokenPipe())
    with pytest.raises(BrokenPipeError):
        run_locally(
            script(tmp_path, "print('first'); import signal; signal.pause()"),
            training_set,
            model_dir=tmp_path / "model",
            hyperparameters={},
            work_dir=tmp_path / "work",
        )


def test_a_script_that_is_not_there_is_named(tmp_path, training_set):
    options = {"model_dir": tmp_path / "model", "work_dir": tmp_path / "work"}
    with pytest.raises(TrainingSetError, match=r"There is no training script .*nowhere\.py"):
        run_locally(tmp_path / "nowhere.py", training_set, hyperparameters={}, **options)


def test_hyperparameters_sagemaker_would_refuse_are_refused_here(tmp_path, training_set):
    with pytest.raises(ConfigError, match="2501 characters"):
        run_locally(
            script(tmp_path, REPORT),
            training_set,
            model_dir=tmp_path / "model",
            hyperparameters={"x": "a" * 2501},
            work_dir=tmp_path / "work",
        )
    assert not (tmp_path / "work").exists()
