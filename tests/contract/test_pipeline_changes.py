"""A local run after any change of what its steps read, after a kill, and beside another run."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
from pathlib import Path

import pytest
from churn_pipeline import (
    ALL,
    EVALUATE,
    PIPELINE,
    SET,
    TRAIN,
    applied,
    done,
    history,
    labels,
    make_repo,
    runner,
)

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.sagemaker.pipeline.step_state import FileHashes

pytestmark = pytest.mark.slow


@pytest.fixture
def repo(tmp_path) -> Path:
    return make_repo(tmp_path / "repo")


@pytest.fixture
def store(open_store, repo, moto_endpoint):
    store = open_store(online={"region": "us-east-1", "endpoint_url": moto_endpoint})
    yield applied(store, repo)
    store.teardown()


@pytest.fixture
def run(repo, store, tmp_path, moto_endpoint, bucket):
    aws = AwsSettings("us-east-1", moto_endpoint)
    return runner(repo, store, tmp_path / "work", aws, bucket)


SEEDS = range(1, 1 + max(1, int(float(os.environ.get("FUZZ_TIMES", "1")))))
# What may change, with the values that it takes; the first is what a repo begins with.
INPUTS = {
    "first total": (1.0, 5.0, 9.0),
    "second total": (3.0, 7.0),
    "train label": (1, 0),
    "test label": (1, 0),
    "view": ("", "one comment", "another"),
    "set": ("[csv]", "[csv, parquet]"),
    "train script": ("", "# a comment\n"),
    "evaluation script": ("rows", "count"),
    "hyperparameter": (1, 2),
    "runtime": (3600, 7200),
    "image": ("features:1", "features:2"),
    "train image": ("xgboost:1", "xgboost:2"),
    "evaluation image": ("evaluate:1", "evaluate:2"),
    "serving image": ("serve:1", "serve:2"),
    "threshold": (-2.5, -3.5),
    "variable": ("a", "b"),
    "library": (None, "1.0", "1.1"),
    "output": ("churn", "elsewhere"),
}


def expected_keys(now: dict) -> dict[str, object]:
    """What each step is made of, by what the scripts do and SageMaker's steps depend on."""
    totals = (now["first total"], now["second total"])
    labels = (now["train label"], now["test label"])
    model = (totals[0] + totals[1]) / 2 + now["hyperparameter"]
    evaluation = (model, now["evaluation script"])
    of_set = (totals, labels, now["view"], now["set"])
    keys = {
        "Materialize": (totals, now["view"], now["image"]),
        "BuildTrainingSet": (of_set, now["image"]),
        "Train": (
            *(totals, now["train label"], now["train script"], now["hyperparameter"]),
            *(now["runtime"], now["train image"]),
        ),
        "Evaluate": (
            *(model, totals[1], now["test label"], now["evaluation script"]),
            *(now["evaluation image"], now["variable"]),
        ),
        "RegisterModel": (of_set, model, evaluation, now["serving image"]),
    }
    checked = {"CheckMetric": (evaluation, now["threshold"])}
    return {step: (key, now["library"]) for step, key in keys.items()} | checked


class Changing:
    """A repo of which anything may change, and its pipeline's text."""

    def __init__(self, repo: Path, store, packages: Path) -> None:
        self.repo, self.store, self.packages = repo, store, packages
        self.now = {name: values[0] for name, values in INPUTS.items()}

    def write(self, before: dict | None) -> str:
        now = self.now
        changed = {name for name in now if before is None or before[name] != now[name]}
        if changed & {"first total", "second total"}:
            # Of the same size, and with the time of before: the content alone tells.
            file = self.repo / "orders" / "a.parquet"
            seen = file.stat()
            history(file.parent, file.name, now["first total"], now["second total"])
            os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        if changed & {"train label", "test label"}:
            labels(self.repo, bought=now["test label"], first=now["train label"])
        if "view" in changed:
            applied(self.store, self.repo, description=now["view"])
        (self.repo / "train.py").write_text(TRAIN + now["train script"])
        evaluation = EVALUATE.replace('"rows"', f'"{now["evaluation script"]}"')
        (self.repo / "evaluate.py").write_text(evaluation)
        declared = SET.replace("formats: [csv]", f"formats: {now['set']}")
        (self.repo / "training_sets" / "churn.yaml").write_text(declared)
        for found in self.packages.glob("*.dist-info"):
            (found / "METADATA").unlink()
            found.rmdir()
        if now["library"] is not None:
            info = self.packages / f"anything-{now['library']}.dist-info"
            info.mkdir()
            metadata = f"Metadata-Version: 2.1\nName: anything\nVersion: {now['library']}\n"
            (info / "METADATA").write_text(metadata)
        changes = {
            "add: 1}": f"add: {now['hyperparameter']}}}, max_runtime_s: {now['runtime']}",
            "xgboost:1": now["train image"],
            "evaluate.py}": f'evaluate.py, image: "{now["evaluation image"]}"}}',
            "serve:1": now["serving image"],
            "features:1": now["image"],
            "at_least: 2.5": f"at_least: {now['threshold']}",
            "BUCKET/churn": f"BUCKET/{now['output']}",
        }
        text = f"{PIPELINE}environment: {{ANY: {now['variable']}}}\n"
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        return text


@pytest.mark.parametrize("seed", SEEDS)
def test_what_depends_on_a_change_runs_again_and_nothing_else(
    seed, run, repo, store, tmp_path, monkeypatch
):
    chance = random.Random(seed)  # noqa: S311 - the same for the same seed
    packages = tmp_path / "packages"
    packages.mkdir()
    monkeypatch.syspath_prepend(str(packages))
    changing = Changing(repo, store, packages)
    text = changing.write(None)
    assert done(run(text)) == ALL
    names = chance.sample(sorted(INPUTS), k=len(INPUTS))
    for number in range(0, len(names), 2):
        before = dict(changing.now)
        for name in names[number : number + 2]:
            others = [value for value in INPUTS[name] if value != changing.now[name]]
            changing.now[name] = chance.choice(others)
        text = changing.write(before)
        was, now = expected_keys(before), expected_keys(changing.now)
        expected = [step for step in ALL if was.get(step) != now.get(step)]
        assert done(run(text)) == expected, names[number : number + 2]
        assert done(run(text)) == []


def test_a_file_that_is_written_again_as_it_was_changes_nothing(run, repo):
    run()
    history(repo / "orders", "a.parquet", 1.0, 3.0)
    labels(repo)
    os.utime(repo / "orders" / "a.parquet", ns=(1, 1))
    assert done(run()) == []


def test_hashes_that_cannot_be_read_are_taken_again(run, repo, tmp_path):
    run()
    # Files of a moment ago are hashed again; these are of long before.
    hashes = tmp_path / "work" / "hashes.json"
    known = json.loads(hashes.read_text()) if hashes.exists() else {}
    assert all(len(state) == 5 for state in known.values())
    for text in ("{", "[]", '{"x": 1}', json.dumps({path: ["no", "hash"] for path in known})):
        hashes.write_text(text)
        assert done(run()) == []


def test_a_hash_is_kept_for_a_file_that_is_as_it_was(tmp_path):
    settled = Path(pytest.__file__)  # it was installed more than two seconds ago
    right = hashlib.sha256(settled.read_bytes()).hexdigest()
    hashes = FileHashes(tmp_path, AwsSettings())
    assert hashes.sha256(settled) == right
    fresh = tmp_path / "fresh"
    fresh.write_bytes(b"now")
    assert hashes.sha256(fresh) == hashlib.sha256(b"now").hexdigest()
    hashes.keep()
    kept = json.loads((tmp_path / "hashes.json").read_text())
    assert [*kept] == [str(settled)]
    # Another hash in its place is taken for as long as the disk says that nothing has changed.
    kept[str(settled)][-1] = "of before"
    (tmp_path / "hashes.json").write_text(json.dumps(kept))
    assert FileHashes(tmp_path, AwsSettings()).sha256(settled) == "of before"
    for state in range(4):
        other = [value + (place == state) for place, value in enumerate(kept[str(settled)][:-1])]
        (tmp_path / "hashes.json").write_text(json.dumps({str(settled): [*other, "of before"]}))
        assert FileHashes(tmp_path, AwsSettings()).sha256(settled) == right


WAITS = """
import os, pathlib, signal
folder = pathlib.Path(FOLDER)
if (folder / "wait").exists():
    (folder / "fifo").write_text(str(os.getpid()))
    signal.pause()
"""


def test_a_killed_step_is_run_again_and_two_runs_do_not_mix(run, repo, tmp_path):
    run()
    (repo / "train.py").write_text(WAITS.replace("FOLDER", repr(str(tmp_path))) + TRAIN)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "wait").touch()
    killed = multiprocessing.get_context("fork").Process(target=run)
    killed.start()
    script = int((tmp_path / "fifo").read_text())
    with pytest.raises(ConfigError, match=rf"under way in .*work \(process {killed.pid}, begun 2"):
        run()
    killed.kill()
    killed.join()
    try:
        # The script outlives the run; another one does not meet it.
        (tmp_path / "wait").unlink()
        partial = list((tmp_path / "work" / "train").glob("*.partial"))
        assert len(partial) == 1
        assert done(run()) == ["Train"]
        assert list((tmp_path / "work" / "train").glob("*.partial")) == []
    finally:
        os.kill(script, signal.SIGKILL)
    assert done(run()) == []
