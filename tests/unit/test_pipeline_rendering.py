"""A pipeline's definition beside the one that AWS's own SDK made, and the checks of its graph.

`tests/support/sdk_pipeline.json` is a record: sdk_pipeline.py made it, and says how.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from feast_dynamo_ext.errors import ConfigError, RequestError
from feast_dynamo_ext.sagemaker.pipeline.declared_steps import pipeline_steps
from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import parse_pipeline
from feast_dynamo_ext.sagemaker.pipeline.rendering import render
from feast_dynamo_ext.sagemaker.pipeline.repo_parts import read_parts
from feast_dynamo_ext.sagemaker.pipeline.steps import Step, all_steps, check_graph, in_order

BY_SDK = Path(__file__).parents[1] / "support" / "sdk_pipeline.json"
REGISTRY = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
CASE = f"""
name: churn
role: arn:aws:iam::123456789012:role/pipeline
output: s3://bucket/pipelines/churn
image: {REGISTRY}/features:1
volume_gb: 40
max_runtime_s: 7200
environment: {{STAGE: test}}
cache: P7D
retry: {{attempts: 5, interval_s: 30}}
capture: {{sources: [purchases], scan: true}}
materialize: {{views: [orders, visits]}}
training_set:
  name: churned
  format: parquet
  version: 2026-04
train:
  script: train.py
  image: {REGISTRY}/xgboost:1
  hyperparameters: {{max_depth: 3}}
  instance_type: ml.m5.2xlarge
  instance_count: 2
  volume_gb: 50
  max_runtime_s: 1800
evaluate: {{script: evaluate.py}}
condition: {{metric: metrics.auc.value, at_least: 0.7}}
package: {{group: churn, image: {REGISTRY}/serve:1}}
deploy: {{endpoint: churn-live, instance_count: 2}}
prepare: {{command: [python, features.py], files: [features.py]}}
"""


SET = """
feature_service: churn_v1
entity_rows: {path: labels.parquet}
label: churned
split: {rule: time, validation_from: 2026-03-01, test_from: 2026-04-01}
output: training
"""


def declared(text: str = CASE) -> Any:
    return parse_pipeline(text, "pipelines/churn.yaml")


@pytest.fixture
def repo(tmp_path):
    (tmp_path / "training_sets").mkdir()
    (tmp_path / "training_sets" / "churned.yaml").write_text(SET)
    (tmp_path / "train.py").write_text("print('trains')\n")
    (tmp_path / "evaluate.py").write_text("print('evaluates')\n")
    return tmp_path


@pytest.fixture
def parts(repo):
    return read_parts(declared(), repo)


def filled(value: Any) -> Any:
    """JSON without members that are empty, of which the SDK writes some."""
    if isinstance(value, dict):
        inner = {name: filled(item) for name, item in value.items()}
        return {name: item for name, item in inner.items() if item not in (None, {}, [])}
    return [filled(item) for item in value] if isinstance(value, list) else value


def by_name(steps: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {}
    for step in steps:
        arguments = step["Arguments"]
        found[step["Name"]] = step | {
            "Arguments": {k: v for k, v in arguments.items() if k not in ("IfSteps", "ElseSteps")}
        }
        found |= by_name([*arguments.get("IfSteps", []), *arguments.get("ElseSteps", [])])
    return found


def rendered(parts) -> dict[str, Any]:
    text = json.dumps(render(declared(), parts))
    training, evaluation = (
        uri.split("/code/")[1].split("/")[0]
        for uri in (parts.training_uri("x"), parts.evaluation_uri("x"))
    )
    return json.loads(text.replace(training, "aaaa").replace(evaluation, "bbbb"))


SDK = filled(json.loads(BY_SDK.read_text()))


@pytest.mark.parametrize("name", by_name(SDK["Steps"]))
def test_a_step_is_what_the_sdk_makes_of_the_same(name, parts):
    ours = by_name(filled(rendered(parts))["Steps"])
    assert ours[name] == by_name(SDK["Steps"])[name]


def test_all_else_is_what_the_sdk_makes_of_the_same(parts):
    ours = filled(rendered(parts))
    assert [*by_name(ours["Steps"])] == [*by_name(SDK["Steps"])]
    assert ours | {"Steps": 0} == SDK | {"Steps": 0}


def test_a_small_pipeline_has_no_more_than_it_declares(parts):
    lines = [
        line
        for line in CASE.splitlines()
        if not line.startswith(("cache", "retry", "capture", "prepare", "materialize", "deploy"))
        and "version:" not in line
    ]
    definition = render(declared("\n".join(lines)), parts)
    assert [*by_name(definition["Steps"])] == [
        *("BuildTrainingSet", "Train", "Evaluate", "CheckMetric", "RegisterModel"),
        "MetricTooLow",
    ]
    build = by_name(definition["Steps"])["BuildTrainingSet"]
    assert "DependsOn" not in build
    assert "CacheConfig" not in json.dumps(definition)
    assert "RetryPolicies" not in json.dumps(definition)
    # Every execution builds a set of its own.
    arguments = build["Arguments"]["AppSpecification"]["ContainerArguments"]
    assert arguments[arguments.index("--output") + 1]["Std:Join"]["Values"] == [
        "s3://bucket/pipelines/churn/sets",
        {"Get": "Execution.PipelineExecutionId"},
    ]


def test_the_same_pipeline_is_the_same_text_whenever_it_is_rendered(parts, repo):
    once = json.dumps(render(declared(), parts))
    assert json.dumps(render(declared(), read_parts(declared(), repo))) == once
    (repo / "train.py").write_text("print('trains otherwise')\n")
    assert json.dumps(render(declared(), read_parts(declared(), repo))) != once


def changed(steps, which: str, **changes) -> tuple[Step, ...]:
    def inner(step: Step) -> Step:
        step = dataclasses.replace(
            step,
            if_steps=tuple(map(inner, step.if_steps)),
            else_steps=tuple(map(inner, step.else_steps)),
        )
        return dataclasses.replace(step, **changes) if step.name == which else step

    return tuple(map(inner, steps))


NAMES = (
    "ProcessingInstanceType",
    "TrainInstanceType",
    "Threshold",
    "ApprovalStatus",
    "SetVersion",
)


@pytest.mark.parametrize(
    ("step", "changes", "error"),
    [
        ("Train", {"name": "Evaluate"}, "more than one step Evaluate"),
        ("Train", {"name": "T_rain"}, "`T_rain` cannot be a step's name"),
        ("Train", {"depends_on": ("Bild",)}, "depends on Bild, and there is no such step"),
        ("Evaluate", {"property_files": ()}, "Steps.Evaluate.PropertyFiles.Evaluation"),
        ("Capture", {"depends_on": ("Train",)}, "wait for each other: Capture, Prepare, Mat"),
        ("Train", {"depends_on": ("RegisterModel",)}, "wait for each other"),
        ("MetricTooLow", {"arguments": {"ErrorMessage": {"Get": "Parameters.Treshold"}}},
         "refers to Parameters.Treshold"),
        ("MetricTooLow", {"arguments": {"ErrorMessage": {"Get": "Execution.Name"}}},
         "refers to Execution.Name"),
        ("MetricTooLow", {"arguments": {"ErrorMessage": {"Get": "Steps.Train"}}},
         "refers to Steps.Train"),
    ],
)  # fmt: skip
def test_a_graph_that_sagemaker_could_not_run_is_refused(step, changes, error, parts):
    steps = changed(pipeline_steps(declared(), parts), step, **changes)
    with pytest.raises(ConfigError, match=error):
        check_graph("churn", steps, NAMES)


def test_each_step_comes_after_all_that_it_needs(parts):
    steps = [*all_steps(pipeline_steps(declared(), parts))]
    names = [step.name for step in steps]
    assert in_order("churn", steps[::-1]) != names[::-1]
    assert in_order("churn", steps) == [
        *("Capture", "Prepare", "Materialize", "BuildTrainingSet", "Train", "Evaluate"),
        *("CheckMetric", "RegisterModel", "CreateModel", "CreateEndpointConfig", "DeployEndpoint"),
        "MetricTooLow",
    ]


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("ml.m5.large", "", ""),
        ("volume_gb: 40", "volume_gb: 70000", "step Capture .*VolumeSizeInGB"),
        ("max_depth: 3", f"max_depth: {'x' * 2501}", "2501 characters"),
        ("instance_count: 2}", "instance_count: 9223372036854775807}", "InitialInstanceCount"),
        ("STAGE: test", "'a b': test", "step Capture .*Environment"),
        (
            "group: churn,",
            "group: churn, instance_types: [ml.m5.lerge],",
            "RegisterModel.*ml.m5.la",
        ),
    ],
)
def test_what_awss_model_does_not_allow_is_refused_with_its_step(old, new, error, parts):
    if not error:
        assert render(declared(), parts)["Version"] == "2020-12-01"
        return
    assert old in CASE
    with pytest.raises((RequestError, ConfigError), match=error):
        render(declared(CASE.replace(old, new)), parts)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("name: churn", "nam: churn", r"line 2: there is no setting `nam`. Did you mean"),
        ("volume_gb: 50", "volume: 50", r"line \d+: there is no setting `train.volume`"),
        ("volume_gb: 40", "volume_gb: much", r"line 6: `volume_gb` is `much`, but must be"),
        ("  name: churned\n", "", r"line 14: `training_set.name` is missing"),
        ("script: evaluate.py", "", r"line 25: `evaluate.script` is missing"),
        ("attempts: 5", "attempts: 0", r"line 10: `retry.attempts` is `0`"),
        ("at_least: 0.7", "at_least: .nan", r"line 26: `condition.at_least` is `nan`"),
        (", at_least: 0.7", "", r"`condition` needs `at_least` or `at_most`"),
        ("  version: 2026-04\n", "", r"`cache` needs `training_set.version`"),
        ("evaluate: {script: evaluate.py}", "evaluate: x", r"line 25: `evaluate` must be a"),
        ("cache: P7D", "cache: 7d", r"line 9: `cache` is `7d`, but must be an ISO 8601"),
        ("cache: P7D", "name: again", r"line 9: `name` stands in line 2 already"),
        ("cache: P7D", "cache: [", r"line \d+: it is no yaml"),
        ("cache: P7D", "cache: 2026-02-30", r"line 9: .*2026-02-30"),
        ("cache: P7D", "cache: !!int x", r"line 9: "),
        ("cache: P7D", "cache: &a [*a]", r"line 9: it holds an alias of itself"),
        ("cache: P7D", "[a]: 1", r"line 9: "),
        ("s3://bucket/pipelines/churn", "/srv/churn", r"line 4: `output` is `/srv/churn`"),
        ("format: parquet", "format: orc", r"line 15: `training_set.format` is `orc`"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_file_and_line(old, new, error):
    assert old in CASE
    with pytest.raises(ConfigError, match=error):
        declared(CASE.replace(old, new))


def test_yamls_own_merging_is_read():
    merged = CASE.replace("evaluate: {script: evaluate.py}", "<<: {evaluate: {script: e.py}}")
    assert declared(merged).evaluate.script == "e.py"
    with pytest.raises(ConfigError, match=r"line 2: `evaluate.script` is missing"):
        declared(merged.replace("script: e.py", ""))


def test_scripts_that_are_not_there_or_elsewhere_are_named(tmp_path):
    with pytest.raises(ConfigError, match="There is no training script"):
        read_parts(declared(), tmp_path)
    (tmp_path / "train.py").touch()
    with pytest.raises(ConfigError, match=r"evaluate.py cannot be read"):
        read_parts(declared(), tmp_path)
    outside = CASE.replace("script: train.py", "script: train.py\n  source: src")
    with pytest.raises(ConfigError, match="is not in its source"):
        read_parts(declared(outside), tmp_path)


def test_a_folder_is_packed_whole(repo):
    (repo / "src").mkdir()
    (repo / "src" / "train.py").write_text("import other")
    text = CASE.replace("script: train.py", "script: src/train.py\n  source: src")
    alone = read_parts(declared(text), repo)
    (repo / "src" / "other.py").touch()
    both = read_parts(declared(text), repo)
    assert both.training.entry == "train.py"
    assert both.training.sha256 != alone.training.sha256
    assert SimpleNamespace(**by_name(render(declared(text), both)["Steps"])["Train"]).Type


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("output:", "formats: [recordio]\noutput:", "reads parquet, .* is written as recordio"),
        (", test_from: 2026-04-01", "", "evaluates on the test split"),
        ("label: churned", "lable: churned", r"churned.yaml, line 4"),
    ],
)
def test_a_set_that_a_pipeline_cannot_read_is_refused(old, new, error, repo):
    (repo / "training_sets" / "churned.yaml").write_text(SET.replace(old, new))
    with pytest.raises(ConfigError, match=error):
        read_parts(declared(), repo)


def test_a_set_that_is_not_declared_is_refused(repo):
    with pytest.raises(ConfigError, match=r"no training set `churnd`. Did you mean `churned`"):
        read_parts(declared(CASE.replace("name: churned", "name: churnd")), repo)


def test_the_pipeline_on_the_page_is_one(repo):
    snippet = Path(__file__).parents[2] / "docs" / "snippets" / "pipeline.yaml"
    (repo / "training_sets" / "churned.yaml").rename(repo / "training_sets" / "churn.yaml")
    declaration = parse_pipeline(snippet.read_text(), "pipelines/churn.yaml")
    definition = render(declaration, read_parts(declaration, repo))
    assert [step["Name"] for step in definition["Steps"]] == [
        *("Capture", "Prepare", "Materialize", "BuildTrainingSet", "Train", "Evaluate"),
        "CheckMetric",
    ]
