"""A declared pipeline run on this machine: what runs again, what does not, and how it fails."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from churn_pipeline import (
    ALL,
    DAY,
    EVALUATE,
    PIPELINE,
    SET,
    START,
    TRAIN,
    applied,
    done,
    history,
    labels,
    make_repo,
    runner,
)
from click.testing import CliRunner
from repos import write_repo_yaml

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.errors import ConfigError, PipelineError
from feast_dynamo_ext.sagemaker import load_training_set, verify


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


def test_each_step_runs_once_for_what_it_is_made_of(run, repo, store, tmp_path):
    lines = []
    first = run(say=lines.append)
    assert done(first) == ALL
    assert first.metric == 3.0  # (1 + 3) / 2 + 1
    online = store.get_online_features(["orders:total"], [{"cid": 2}]).to_dict()
    assert online["total"] == [3.0]
    assert next(line for line in lines if line.startswith("Train")) == (
        "Train ... (never run before)"
    )
    assert any(line.startswith("Train: done in ") for line in lines)

    # The model, its set and its metric, as they would stand in the registry.
    package = json.loads(Path(first.package).read_text())
    assert package["metric"] == {"path": "metrics.mean[0].value", "value": 3.0}
    assert package["features"] == ["orders:total", "orders:orders"]
    assert (package["feature_service"], package["approval"]) == (
        "churn_v1",
        "PendingManualApproval",
    )
    aws = AwsSettings("us-east-1")
    assert verify(first.training_set, aws).ok
    assert load_training_set(first.training_set, aws).manifest.name == "churn"
    with tarfile.open(first.model) as archive:
        assert json.load(archive.extractfile("model.json")) == {"mean": 3.0}
        assert [member.mtime for member in archive] == [0]

    # Nothing new: only the decision is made again.
    assert done(run()) == []
    # Other hyperparameters: no new set.
    changed = PIPELINE.replace("add: 1", "add: 2")
    found = run(changed)
    assert done(found) == ["Train", "Evaluate", "CheckMetric", "RegisterModel"]
    assert (found.metric, found.training_set) == (4.0, first.training_set)
    assert done(run()) == ["Train", "Evaluate", "CheckMetric", "RegisterModel"]
    # Another way to measure: no new model.
    (repo / "evaluate.py").write_text(EVALUATE.replace('"rows"', '"count"'))
    assert done(run()) == ["Evaluate", "CheckMetric", "RegisterModel"]
    # A comment in the script: trained again to the same model, so nothing after it.
    (repo / "train.py").write_text(TRAIN + "# a comment\n")
    assert done(run()) == ["Train"]
    # Labels of the test split alone: a new set, no new model, and it is measured again.
    labels(repo, bought=0)
    assert done(run()) == ["BuildTrainingSet", "Evaluate", "RegisterModel"]
    # Other history: everything.
    history(repo / "orders", "a.parquet", 5.0, 3.0)
    found = run()
    assert done(found) == ALL
    assert found.metric == 5.0


def test_forced_steps_run_and_what_they_make_the_same_changes_nothing_else(run):
    run()
    assert done(run(force=("Train",))) == ["Train"]
    assert done(run(force=("BuildTrainingSet", "Materialize"))) == [
        *("Materialize", "BuildTrainingSet")
    ]
    with pytest.raises(
        ConfigError, match=r"no step `Trian` that runs here.* Did you mean `Train`"
    ):
        run(force=("Trian",))


def test_results_that_are_gone_or_changed_are_made_again(run, store, repo, tmp_path):
    first = run()
    Path(first.model).write_bytes(b"no archive")
    assert done(run()) == ["Train"]
    Path(first.training_set, "manifest.json").unlink()
    assert done(run()) == ["BuildTrainingSet"]
    Path(first.package).unlink()
    assert done(run()) == ["RegisterModel"]
    # What a killed run leaves of a step is not taken for its result.
    folder = Path(first.model).parent
    folder.rename(folder.with_name(f"{folder.name}.partial"))
    assert done(run()) == ["Train"]
    assert [path.suffix for path in folder.parent.iterdir()] == [""]


def test_a_step_that_fails_is_named_and_the_next_run_goes_on_there(run, repo, tmp_path):
    (repo / "train.py").write_text("print('began')\nraise SystemExit('no convergence')\n")
    with pytest.raises(
        PipelineError, match=r"Step Train of pipeline churn failed: (.*\n)+.*no conv"
    ) as e:
        run()
    assert e.value.step == "Train"
    # The log stays, and nothing that `feast apply` would import.
    assert len(list(tmp_path.glob("work/train/*.partial/ml/churn/log.txt"))) == 1
    assert list((tmp_path / "work").rglob("*.py")) == []
    (repo / "train.py").write_text(TRAIN)
    (repo / "evaluate.py").write_text("raise SystemExit('no metric')")
    with pytest.raises(PipelineError, match=r"Step Evaluate .*exit code 1(.*\n)+no metric"):
        run()
    (repo / "evaluate.py").write_text("")
    with pytest.raises(PipelineError, match=r"Step Evaluate .*wrote no evaluation.json"):
        run()
    (repo / "evaluate.py").write_text(EVALUATE)
    assert done(run()) == ["Evaluate", "CheckMetric", "RegisterModel"]
    (repo / "train.py").write_text("")
    with pytest.raises(PipelineError, match=r"Step Train .*left no file in SM_MODEL_DIR"):
        run()


def test_a_model_below_the_threshold_is_not_registered(run, tmp_path):
    low = PIPELINE.replace("at_least: 2.5", "at_least: 3.01")
    with pytest.raises(PipelineError, match=r"CheckMetric .* is 3 and has to be at least 3.01"):
        run(low)
    assert not (tmp_path / "work" / "packages").exists()
    assert done(run(PIPELINE.replace("at_least: 2.5", "at_most: 3"))) == [
        *("CheckMetric", "RegisterModel")
    ]
    with pytest.raises(PipelineError, match=r"CheckMetric .*has no `metrics.auc`"):
        run(PIPELINE.replace('"metrics.mean[0].value"', "metrics.auc"))
    with pytest.raises(PipelineError, match=r"CheckMetric .*no finite number"):
        run(PIPELINE.replace('"metrics.mean[0].value"', "metrics.mean"))


def test_rows_of_a_query_are_read_every_time_and_train_only_what_they_change(run, repo):
    query = (
        "SELECT cid, event_timestamp + to_days(unnest([5, 15, 25])) AS event_timestamp, "
        "orders AS bought FROM orders"
    )
    definition = SET.replace("{path: labels.parquet}", f"{{sql: '{query}'}}")
    (repo / "training_sets" / "churn.yaml").write_text(definition)
    assert done(run()) == ALL
    assert done(run()) == ["BuildTrainingSet"]


def test_views_whose_rows_were_torn_down_are_materialized_again(run, store):
    run()
    objects = [store.get_entity("customer"), store.get_feature_view("orders")]
    service = store.get_feature_service("churn_v1")
    store.teardown()
    objects[1].materialization_intervals = []
    store.apply([*objects, service])
    assert "Materialize" in done(run())


def test_a_program_that_prepares_runs_each_time_where_nobody_knows_what_it_reads(run, repo):
    code = "import pathlib, sys; print(sys.executable); pathlib.Path('seen').open('a').write('x')"
    text = f'{PIPELINE}prepare: {{command: [python, -c, "{code}"]}}\n'
    assert done(run(text)) == ["Prepare", *ALL]
    assert done(run(text)) == ["Prepare"]
    assert (repo / "seen").read_text() == "xx"
    with pytest.raises(PipelineError, match=r"Step Prepare .*nothing-there cannot be run"):
        run(f"{PIPELINE}prepare: {{command: [nothing-there]}}\n")
    with pytest.raises(PipelineError, match=r"python -c ended with exit code 3(.*\n)+lost"):
        run(f"{PIPELINE}prepare: {{command: [python, -c, 'print(\"lost\"); exit(3)']}}\n")


def test_a_captured_table_that_nobody_declares_is_refused(run):
    with pytest.raises(
        ConfigError, match=r"captures `odrers`, and the registry has no such source.*feast apply"
    ):
        run(f"{PIPELINE}capture: {{sources: [odrers]}}\n", capture=str)


def test_a_state_that_is_none_is_refused_with_words(run, tmp_path):
    run()
    state = tmp_path / "work" / "state.json"
    whole = state.read_bytes()
    for text in (b"{", b'{"version": 2}', b'{"version": 1, "steps": {}}', b"[]"):
        state.write_bytes(text)
        with pytest.raises(ConfigError, match=r"state.json is .*[Dd]elete"):
            run()
    state.write_bytes(whole)
    assert done(run()) == []


def test_a_model_is_registered_with_sagemaker_where_that_is_chosen(
    run, moto_endpoint, bucket, monkeypatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
    found = run(registry=True)
    client = boto3.client("sagemaker", region_name="us-east-1", endpoint_url=moto_endpoint)
    package = client.describe_model_package(ModelPackageName=found.package)
    assert package["ModelApprovalStatus"] == "PendingManualApproval"
    (container,) = package["InferenceSpecification"]["Containers"]
    s3 = boto3.client("s3", region_name="us-east-1", endpoint_url=moto_endpoint)

    def content(uri: str) -> bytes:
        key = uri.removeprefix(f"s3://{bucket}/")
        return s3.get_object(Bucket=bucket, Key=key)["Body"].read()

    assert content(container["ModelDataUrl"]) == Path(found.model).read_bytes()
    metadata = package["CustomerMetadataProperties"]
    manifest = Path(found.training_set, "manifest.json").read_bytes()
    assert content(metadata["manifest"]) == manifest
    assert metadata["feature_service"] == "churn_v1"
    assert metadata["metric"] == "3.0"
    statistics = package["ModelMetrics"]["ModelQuality"]["Statistics"]
    digest = hashlib.sha256(content(statistics["S3Uri"])).hexdigest()
    assert statistics["ContentDigest"] == f"sha256:{digest}"
    assert json.loads(content(statistics["S3Uri"]))["metrics"]["mean"] == [{"value": 3.0}]
    # Registered once.
    again = run(registry=True)
    assert (done(again), again.package) == ([], found.package)


def test_scripts_of_the_demo_and_the_page_train_and_measure_a_model(run, repo, store):
    xgboost = pytest.importorskip("xgboost")
    root = Path(__file__).parents[2]
    (repo / "train.py").write_bytes((root / "feature_repo" / "train.py").read_bytes())
    (repo / "evaluate.py").write_bytes((root / "feature_repo" / "evaluate.py").read_bytes())
    count = 60
    times = pa.array([START] * count, pa.timestamp("us", tz="UTC"))
    totals = [float(number % 7) for number in range(count)]
    columns = {"cid": range(count), "total": totals, "orders": range(count)}
    history = pa.table({name: list(values) for name, values in columns.items()})
    pq.write_table(history.append_column("event_timestamp", times), repo / "orders/a.parquet")
    days = [(5, 15, 25)[number % 3] for number in range(count)]
    rows = {
        "cid": list(range(count)),
        "event_timestamp": pa.array([START + d * DAY for d in days], times.type),
        "bought": [int(total > 3) for total in totals],
    }
    pq.write_table(pa.table(rows), repo / "labels.parquet")
    text = PIPELINE.replace("{add: 1}", "{num_round: 5, min_child_weight: 0}")
    text = text.replace('"metrics.mean[0].value"', "binary_classification_metrics.auc.value")
    found = run(text.replace("at_least: 2.5", "at_least: 0.9"))
    assert found.metric == 1.0  # what is bought follows from the total alone

    with tarfile.open(found.model) as archive:
        booster = xgboost.Booster(model_file=bytearray(archive.extractfile("model.json").read()))
    assert booster.num_features() == 2
    with pytest.raises(PipelineError, match=r"CheckMetric .* is 1 and has to be at most 0.5"):
        run(text.replace("at_least: 2.5", "at_most: 0.5"))


@pytest.fixture
def command(repo, store, tmp_path, moto_endpoint, monkeypatch):
    """The command in a repo whose registry is the store's."""
    write_repo_yaml(
        repo,
        registry=str(tmp_path / "registry.db"),
        online={"region": "us-east-1", "endpoint_url": moto_endpoint},
        offline={"region": "us-east-1"},
    )
    (repo / "pipelines").mkdir()
    (repo / "pipelines" / "churn.yaml").write_text(PIPELINE.replace("BUCKET", "bucket"))

    def command(*arguments: str):
        return CliRunner().invoke(main, [*arguments, "-c", str(repo)])

    return command


def test_the_command_runs_a_pipeline_and_says_what_each_step_did(command, repo):
    found = command("refresh", "churn", "--json")
    assert found.exit_code == 0, found.stderr
    data = json.loads(found.stdout)
    assert [step["name"] for step in data["steps"]] == ALL
    assert {(step["outcome"], step["why"]) for step in data["steps"]} == {
        ("done", "never run before")
    }
    assert data["metric"] == 3.0
    assert data["metrics"] == {
        "metrics.mean[0].value": {"before": None, "now": 3.0},
        "metrics.rows": {"before": None, "now": 1},
    }
    assert Path(data["package"]).is_relative_to(repo / ".pipelines" / "churn")

    # The only pipeline need not be named.
    history(repo / "orders", "a.parquet", 3.0, 3.0)
    found = command("refresh", "--force", "Evaluate")
    assert "Train ... (changed: rows to train on)" in found.stderr
    assert "Train: done in " in found.stderr
    heads, _, *steps, _, _, _, mean, rows, _, last = found.stdout.splitlines()
    assert heads.split() == ["step", "outcome", "time", "why"]
    assert [" ".join(line.split()[:2]) for line in steps] == [f"{step} done" for step in ALL]
    assert steps[0].endswith("changed: the history of orders")
    assert steps[3].endswith("forced")
    assert mean.split() == ["metrics.mean[0].value", "3", "4", "+1"]
    assert rows.split() == ["metrics.rows", "1", "1", "0"]
    assert last.startswith("6 of 6 steps run. Registered: ")
    found = command("refresh")
    assert "Train: skipped, nothing that it reads has changed" in found.stderr
    assert "\n0 of 6 steps run. Registered: " in found.stdout

    (repo / "train.py").write_text("raise SystemExit('no convergence')")
    found = command("refresh", "churn")
    assert found.exit_code == 1
    last = found.stderr.splitlines()[-1]
    assert last.startswith(
        "error: Step Train of pipeline churn failed: Training job `churn` failed"
    )
    assert last.endswith("no convergence")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--remove", "--force", "Train"), "--remove goes with no other choice"),
        (("--role", "arn:aws:iam::123456789012:role/x"), "--role is of --schedule"),
        (("--schedule", "rate(1 day)", "--registry"), "are of a run on this machine"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(arguments, error):
    found = CliRunner().invoke(main, ["refresh", "churn", *arguments])
    assert (found.exit_code, error in " ".join(found.stderr.split())) == (2, True)


def test_a_repo_of_several_pipelines_wants_a_name(command, repo):
    (repo / "pipelines" / "other.yaml").write_text("")
    assert "pipelines has 2: churn, other. Name one." in command("refresh").stderr
    for file in (repo / "pipelines").iterdir():
        file.unlink()
    assert (
        "pipelines has no pipeline. Declare one there, in a file NAME.yaml."
        in command("refresh").stderr
    )


def test_a_step_prepares_where_sagemaker_runs_it(command, repo):
    file = repo / "pipelines" / "churn.yaml"
    assert "churn declares no `prepare`" in command("pipeline", "prepare", "churn").stderr
    text = file.read_text()
    code = "import pathlib; pathlib.Path('made').touch(); exit(CODE)"
    for number, exit_code in ((0, 0), (3, 1)):
        command_line = f'[python, -c, "{code.replace("CODE", str(number))}"]'
        file.write_text(f"{text}prepare: {{command: {command_line}}}\n")
        found = command("pipeline", "prepare", "churn")
        assert found.exit_code == exit_code
        (repo / "made").unlink()
    assert "python -c ended with exit code 3" in found.stderr


def test_the_step_of_the_set_builds_it_says_what_it_is_and_takes_it_again(command, repo, tmp_path):
    output, summary = str(tmp_path / "set"), tmp_path / "out" / "training-set.json"
    build = (
        *("pipeline", "build-set", "churn", "--output", output),
        *("--summary", str(summary), "--if-absent"),
    )
    found = command(*build)
    assert (found.exit_code, found.stdout) == (0, f"{output}: 4 rows\n"), found.stderr
    manifest = Path(output, "manifest.json").read_bytes()
    said = json.loads(summary.read_text())
    assert said == {
        "output": output,
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        "rows": {"train": 2, "validation": 1, "test": 1},
    }
    # Taken again although the history has grown; without the flag, or declared otherwise, refused.
    history(repo / "orders", "b.parquet", 7.0, 7.0)
    summary.unlink()
    assert command(*build).exit_code == 0
    assert json.loads(summary.read_text()) == said
    assert "holds a training set already" in command(*build[:-1]).stderr
    file = repo / "training_sets" / "churn.yaml"
    file.write_text(SET.replace("2026-01-21", "2026-01-22"))
    assert "Give `training_set.version` another value" in command(*build).stderr
    assert Path(output, "manifest.json").read_bytes() == manifest
