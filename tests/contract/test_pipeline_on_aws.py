"""A pipeline and its schedule on moto: made by the command, changed only where they differ."""

from __future__ import annotations

import json

import boto3
import pytest
from click.testing import CliRunner
from repos import write_repo_yaml

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.errors import AwsError, ConfigError
from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import read_pipeline
from feast_dynamo_ext.sagemaker.pipeline.schedule import (
    check_expression,
    start_pipeline,
    upsert_schedule,
)

REGION = "us-east-1"
SET = """
feature_service: churn_v1
entity_rows: {path: labels.parquet}
label: bought
split: {rule: time, validation_from: 2026-01-11, test_from: 2026-01-21}
output: training
"""
PIPELINE = """
name: churn-NUMBER
role: arn:aws:iam::123456789012:role/pipeline
output: s3://BUCKET/churn/
image: features:1
training_set: {name: churn}
train: {script: train.py, image: "xgboost:1"}
evaluate: {script: evaluate.py}
condition: {metric: auc, at_least: 0.7}
package: {group: churn, image: "serve:1"}
deploy: {endpoint: churn}
schedule:
  expression: cron(0 6 ? * MON-FRI *)
  role: arn:aws:iam::123456789012:role/scheduler
  timezone: Europe/Berlin
"""


@pytest.fixture
def repo(tmp_path, bucket):
    write_repo_yaml(tmp_path)
    (tmp_path / "training_sets").mkdir()
    (tmp_path / "training_sets" / "churn.yaml").write_text(SET)
    (tmp_path / "pipelines").mkdir()
    text = PIPELINE.replace("BUCKET", bucket).replace("NUMBER", bucket[-8:])
    (tmp_path / "pipelines" / "churn.yaml").write_text(text)
    (tmp_path / "train.py").write_text("print(1)\n")
    (tmp_path / "evaluate.py").write_text("print(2)\n")
    return tmp_path


@pytest.fixture
def command(repo, moto_endpoint, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
    monkeypatch.setenv("AWS_REGION", REGION)

    def command(name: str, *more: str) -> str:
        names = [name] if name == "refresh" else ["pipeline", name]
        found = CliRunner().invoke(main, [*names, "churn", "-c", str(repo), *more])
        assert found.exit_code == 0, found.output
        return found.stdout

    return command


@pytest.fixture
def clients(moto_endpoint):
    return {
        name: boto3.client(name, region_name=REGION, endpoint_url=moto_endpoint)
        for name in ("sagemaker", "scheduler", "s3")
    }


def test_a_pipeline_is_made_changed_and_left_as_it_is(command, repo, clients, bucket):
    name = read_pipeline(repo, "churn").name
    assert command("upsert") == f"Pipeline {name}: created.\n"
    found = clients["sagemaker"].describe_pipeline(PipelineName=name)
    assert found["RoleArn"] == "arn:aws:iam::123456789012:role/pipeline"
    rendered = json.loads(command("render"))
    assert json.loads(found["PipelineDefinition"]) == rendered
    groups = clients["sagemaker"].list_model_package_groups()["ModelPackageGroupSummaryList"]
    assert "churn" in {group["ModelPackageGroupName"] for group in groups}

    # The scripts are where the definition says.
    (evaluate,) = [step for step in rendered["Steps"] if step["Name"] == "Evaluate"]
    code = evaluate["Arguments"]["ProcessingInputs"][0]["S3Input"]["S3Uri"]
    key = code.removeprefix(f"s3://{bucket}/")
    body = clients["s3"].get_object(Bucket=bucket, Key=key)["Body"].read()
    assert body == b"print(2)\n"
    (train,) = [step for step in rendered["Steps"] if step["Name"] == "Train"]
    packed = train["Arguments"]["HyperParameters"]["sagemaker_submit_directory"]
    clients["s3"].head_object(Bucket=bucket, Key=packed.removeprefix(f"s3://{bucket}/"))

    assert json.loads(command("upsert", "--json"))["outcome"] == "unchanged"
    (repo / "evaluate.py").write_text("print(3)\n")
    assert command("upsert") == f"Pipeline {name}: changed.\n"
    found = clients["sagemaker"].describe_pipeline(PipelineName=name)
    assert json.loads(found["PipelineDefinition"]) == json.loads(command("render"))


def test_a_pipeline_is_started_with_values_of_its_parameters(command, repo, clients):
    command("upsert")
    arn = json.loads(command("start", "--json", "-p", "Threshold=0.8"))["execution"]
    name = read_pipeline(repo, "churn").name
    found = clients["sagemaker"].list_pipeline_executions(PipelineName=name)
    assert [each["PipelineExecutionArn"] for each in found["PipelineExecutionSummaries"]] == [arn]
    given = clients["sagemaker"].list_pipeline_parameters_for_execution(PipelineExecutionArn=arn)
    assert given["PipelineParameters"] == [{"Name": "Threshold", "Value": "0.8"}]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("Treshold=1", "no parameter `Treshold`. Did you mean `Threshold`"),
        ("Threshold", "`Threshold` is no parameter. Write it as NAME=VALUE"),
        ("Threshold=high", "Threshold is `high`, and has to be a number"),
    ],
)
def test_values_that_a_pipeline_does_not_take_are_refused(given, error, repo):
    found = CliRunner().invoke(main, ["pipeline", "start", "churn", "-c", str(repo), "-p", given])
    assert (found.exit_code, error in found.stderr) == (1, True)


def test_a_pipeline_that_is_not_there_is_neither_started_nor_scheduled(repo, moto_endpoint):
    aws = AwsSettings(REGION, moto_endpoint)
    with pytest.raises(AwsError, match="never-made"):
        start_pipeline("never-made", {}, aws)
    with pytest.raises(AwsError, match=read_pipeline(repo, "churn").name):
        upsert_schedule(read_pipeline(repo, "churn"), aws)


def test_a_pipeline_and_its_schedule_are_made_changed_and_left_as_they_are(command, repo, clients):
    def schedule(*more: str) -> tuple[str, str]:
        found = json.loads(command("refresh", "--json", "--schedule", *more))
        return found["pipeline_outcome"], found["schedule_outcome"]

    name = read_pipeline(repo, "churn").name
    assert command("refresh", "--schedule") == (
        f"Pipeline {name}: created. Schedule cron(0 6 ? * MON-FRI *): created.\n"
    )
    arn = clients["sagemaker"].describe_pipeline(PipelineName=name)["PipelineArn"]
    found = clients["scheduler"].get_schedule(Name=name)
    assert found["ScheduleExpression"] == "cron(0 6 ? * MON-FRI *)"
    assert found["ScheduleExpressionTimezone"] == "Europe/Berlin"
    assert found["State"] == "ENABLED"
    assert found["Target"]["Arn"] == arn
    assert found["Target"]["RoleArn"] == "arn:aws:iam::123456789012:role/scheduler"
    assert schedule() == ("unchanged", "unchanged")

    # What is said on the command line goes before what is declared.
    assert schedule("rate(1 day)") == ("unchanged", "changed")
    role = "arn:aws:iam::123456789012:role/another"
    assert schedule("rate(1 day)", "--role", role) == ("unchanged", "changed")
    found = clients["scheduler"].get_schedule(Name=name)
    assert (found["ScheduleExpression"], found["Target"]["RoleArn"]) == ("rate(1 day)", role)
    file = repo / "pipelines" / "churn.yaml"
    file.write_text(file.read_text() + "  enabled: false\n")
    (repo / "evaluate.py").write_text("print(3)\n")
    assert schedule("rate(1 day)") == ("changed", "changed")
    found = clients["scheduler"].get_schedule(Name=name)
    assert (found["ScheduleExpression"], found["State"]) == ("rate(1 day)", "DISABLED")
    assert schedule("rate(1 day)") == ("unchanged", "unchanged")

    assert command("refresh", "--remove").startswith(f"Schedule {name}: removed. The pipeline")
    assert command("refresh", "--remove").startswith(f"Schedule {name}: not there. ")
    there = clients["scheduler"].list_schedules(NamePrefix=name)["Schedules"]
    assert [each["Name"] for each in there] == []
    assert clients["sagemaker"].describe_pipeline(PipelineName=name)["PipelineArn"] == arn


def test_a_schedule_that_cannot_be_is_refused_before_anything_is_sent(repo, monkeypatch):
    # Nothing listens there.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    file = repo / "pipelines" / "churn.yaml"
    whole = file.read_text()
    without = whole[: whole.index("schedule:")]

    def refused(*arguments: str) -> str:
        command = ["refresh", "churn", "-c", str(repo), "--schedule", *arguments]
        found = CliRunner().invoke(main, command)
        assert found.exit_code == 1
        return found.stderr

    assert "`rate(1 days)`: EventBridge takes rate(1 day)" in refused("rate(1 days)")
    assert "`schedule.role` is `x`, but must be the ARN" in refused("rate(1 day)", "--role", "x")
    file.write_text(whole.replace("Europe/Berlin", "Europe/Berln"))
    assert "no time zone `Europe/Berln`. Did you mean `Europe/Berlin`" in refused()
    file.write_text(without)
    assert "when is not said. Give it" in refused()
    assert "role is not said" in refused("rate(1 day)")


def test_a_schedule_of_that_name_that_starts_something_else_stays(repo, clients, command):
    name = read_pipeline(repo, "churn").name
    function = "arn:aws:lambda:us-east-1:123456789012:function:mine"
    clients["scheduler"].create_schedule(
        Name=name,
        ScheduleExpression="rate(5 minutes)",
        FlexibleTimeWindow={"Mode": "OFF"},
        Target={"Arn": function, "RoleArn": "arn:aws:iam::123456789012:role/scheduler"},
    )
    for choice in ("--schedule", "--remove"):
        found = CliRunner().invoke(main, ["refresh", "churn", "-c", str(repo), choice])
        assert found.exit_code == 1
        assert f"starts {function}, which is not the pipeline {name}" in found.stderr
    assert clients["scheduler"].get_schedule(Name=name)["ScheduleExpression"] == "rate(5 minutes)"


# The examples of EventBridge Scheduler's user guide, and others of its rules.
@pytest.mark.parametrize(
    "expression",
    [
        *("rate(1 minute)", "rate(5 minutes)", "rate(1 hour)", "rate(24 hours)", "rate(7 days)"),
        *("cron(15 10 ? * 6L 2022-2023)", "cron(0 10 * * ? *)", "cron(15 12 * * ? *)"),
        *("cron(0 18 ? * MON-FRI *)", "cron(0 8 1 * ? *)", "cron(0/15 * * * ? *)"),
        *("cron(0/10 * ? * MON-FRI *)", "cron(0/5 8-17 ? * MON-FRI *)", "cron(0 9 ? * 2#1 *)"),
        *("cron(0 0 L * ? *)", "cron(0 0 3W * ? *)", "cron(0 0 LW JAN,JUL ? *)"),
        *("cron(0 0 ? * FRI#2 *)", "cron(0 0 1-7/2 */3 ? 2030/2)", "cron(0 0 ? * L *)"),
    ],
)
def test_schedules_of_awss_rules_are_taken(expression):
    check_expression(expression)


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("every day", "is no schedule"),
        ("rate(0 days)", "the least is"),
        ("rate(1 days)", r"takes rate\(1 day\)"),
        ("rate(2 day)", r"takes rate\(2 days\)"),
        ("rate(1.5 hours)", "is no schedule"),
        ("rate(3 weeks)", "is no schedule"),
        ("cron(0 6 * * *)", "has 5 fields"),
        ("cron(0 6 * * * *)", "one of day of month and day of week"),
        ("cron(0 6 ? * ? *)", "one of day of month and day of week"),
        ("cron(60 6 * * ? *)", "`60` is no minutes"),
        ("cron(0 24 * * ? *)", "`24` is no hours"),
        ("cron(0 6 32 * ? *)", "`32` is no day of month"),
        ("cron(0 6 * 13 ? *)", "`13` is no month"),
        ("cron(0 6 ? * 8 *)", "`8` is no day of week"),
        ("cron(0 6 ? * 0 *)", "`0` is no day of week"),
        ("cron(0 6 ? * MON#6 *)", "`MON#6` is no day of week"),
        ("cron(0 6 * * ? 1969)", "`1969` is no year"),
        ("cron(0 6 ? * FRI-MON *)", "`FRI-MON` is no day of week"),
        ("cron(5-1 6 * * ? *)", "`5-1` is no minutes"),
        ("cron(0/0 6 * * ? *)", "`0/0` is no minutes"),
        ("cron(0 ? * * ? *)", "`\\?` is no hours"),
        ("cron(0  6 * * ? *)", "has 7 fields"),
        ("cron(L 6 * * ? *)", "`L` is no minutes"),
        ("cron(1,,2 6 * * ? *)", "`` is no minutes"),
        ("cron(\u0661 6 * * ? *)", "is no minutes"),
    ],
)
def test_schedules_that_aws_would_refuse_are_refused_here(expression, error):
    with pytest.raises(ConfigError, match=error):
        check_expression(expression)
