"""A pipeline and its schedule on AWS: made or changed so that each is as declared, and started."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, available_timezones

from feast_dynamo_ext import aws as aws_access
from feast_dynamo_ext.errors import ConfigError, ResourceNotFoundError
from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import Schedule
from feast_dynamo_ext.sagemaker.pipeline.registration import make_group, sagemaker_client
from feast_dynamo_ext.sagemaker.pipeline.rendering import definition_text, render
from feast_dynamo_ext.sagemaker.pipeline.repo_parts import upload_code
from feast_dynamo_ext.sagemaker.request_check import check_request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import PipelineDeclaration
    from feast_dynamo_ext.sagemaker.pipeline.repo_parts import RepoParts

RATE = re.compile(r"rate\((\d+) (minute|hour|day)(s?)\)")
CRON = re.compile(r"cron\((.+)\)")
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minutes", 0, 59, ()),
    ("hours", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, MONTHS),
    ("day of week", 1, 7, DAYS),
    ("year", 1970, 2199, ()),
)
FORM = "Write it as rate(1 day) or as cron(minutes hours day-of-month month day-of-week year)."


def check_expression(expression: str) -> None:
    """Refuse a schedule that EventBridge Scheduler would refuse, or that never starts anything.

    Raises:
        ConfigError: naming what is wrong with it.
    """
    rate, cron = RATE.fullmatch(expression), CRON.fullmatch(expression)
    if rate:
        _check_rate(expression, int(rate[1]), rate[2], rate[3])
    elif cron:
        _check_cron(expression, cron[1])
    else:
        raise ConfigError(f"`{expression}` is no schedule. {FORM}")


def _check_rate(expression: str, value: int, unit: str, plural: str) -> None:
    if value < 1:
        raise ConfigError(f"`{expression}`: the least is rate(1 minute).")
    right = unit if value == 1 else f"{unit}s"
    if unit + plural != right:
        raise ConfigError(f"`{expression}`: EventBridge takes rate({value} {right}).")


def _check_cron(expression: str, text: str) -> None:
    values = text.split(" ")
    if len(values) != len(FIELDS):
        raise ConfigError(f"`{expression}` has {len(values)} fields, and a cron has 6. {FORM}")
    for value, (name, least, most, names) in zip(values, FIELDS, strict=True):
        for part in value.split(","):
            if not _is_cron_part(part, name, least, most, names):
                known = f", {names[0]} to {names[-1]}" if names else ""
                raise ConfigError(
                    f"`{expression}`: `{part}` is no {name}. It takes {least} to {most}{known}, "
                    "with `,`, `-`, `/` and `*`"
                    + ("; `?`, `L`, `W`, `#` where EventBridge says." if "day" in name else ".")
                )
    if (values[2] == "?") == (values[4] == "?"):
        raise ConfigError(
            f"`{expression}`: one of day of month and day of week is `?`, and not both."
        )


def _is_cron_part(part: str, name: str, least: int, most: int, names: tuple[str, ...]) -> bool:
    if name.startswith("day"):
        if part in ("?", "L") or (part, name) == ("LW", "day of month"):
            return True
        part = _day(part, name)
    span, slash, step = part.partition("/")
    if slash and not (step.isdigit() and 1 <= int(step) <= most):
        return False
    if span == "*":
        return True
    first, dash, last = span.partition("-")
    numbers = [_number(text, least, most, names) for text in ((first, last) if dash else (first,))]
    if any(number is None for number in numbers):
        return False
    return not dash or (numbers[0] or 0) <= (numbers[1] or 0)


def _day(part: str, name: str) -> str:
    """A day without what says which of them: the nearest weekday, the last, the first to fifth."""
    if name == "day of month":
        return part[:-1] if re.fullmatch(r"\d+W", part) else part
    nth = re.fullmatch(r"(\d|[A-Za-z]{3})(L|#[1-5])", part)
    return nth[1] if nth else part


def _number(text: str, least: int, most: int, names: tuple[str, ...]) -> int | None:
    if text.upper() in names:
        return names.index(text.upper()) + 1
    return int(text) if text.isascii() and text.isdigit() and least <= int(text) <= most else None


def upsert_pipeline(declaration: PipelineDeclaration, parts: RepoParts, aws: AwsSettings) -> str:
    """Put the scripts and the definition there: made, or changed where it is another.

    Returns:
        `created`, `changed` or `unchanged`.

    Raises:
        ConfigError: a definition that SageMaker could not run.
        AwsError: AWS refused.
    """
    text = definition_text(render(declaration, parts))
    request = {
        "PipelineName": declaration.name,
        "PipelineDefinition": text,
        "RoleArn": declaration.role,
    }
    token = hashlib.sha256(json.dumps(request).encode()).hexdigest()
    subject = f"pipeline `{declaration.name}`"
    check_request("CreatePipeline", {**request, "ClientRequestToken": token}, subject=subject)
    client = sagemaker_client(aws)
    upload_code(declaration, parts, aws)
    make_group(declaration.package.group, client)
    with aws_access.translated("sagemaker", subject):
        there = {
            found["PipelineName"]
            for page in client.get_paginator("list_pipelines").paginate(
                PipelineNamePrefix=declaration.name
            )
            for found in page["PipelineSummaries"]
        }
        if declaration.name not in there:
            client.create_pipeline(**request, ClientRequestToken=token)
            return "created"
        found = client.describe_pipeline(PipelineName=declaration.name)
        is_same = found["RoleArn"] == declaration.role
        if is_same and json.loads(found["PipelineDefinition"]) == json.loads(text):
            return "unchanged"
        client.update_pipeline(**request)
    return "changed"


def start_pipeline(
    name: str, parameters: Mapping[str, str], aws: AwsSettings, token: str | None = None
) -> str:
    """Start a pipeline that was put there before.

    Args:
        name: the pipeline's.
        parameters: values in place of its defaults.
        aws: how to reach SageMaker.
        token: the same token starts one execution only; 32 to 128 letters, digits and hyphens.

    Returns:
        The execution's ARN.

    Raises:
        RequestError: values that SageMaker does not take.
        AwsError: SageMaker refused, or knows no such pipeline.
    """
    request: dict[str, Any] = {
        "PipelineName": name,
        "PipelineParameters": [{"Name": key, "Value": value} for key, value in parameters.items()],
    }
    if token is not None:
        request["ClientRequestToken"] = token
    subject = f"pipeline `{name}`"
    check_request("StartPipelineExecution", request, subject=subject)
    client = aws_access.client("sagemaker", aws)
    with aws_access.translated("sagemaker", subject):
        arn: str = client.start_pipeline_execution(**request)["PipelineExecutionArn"]
    return arn


def scheduled(
    declaration: PipelineDeclaration, expression: str | None, role: str | None
) -> PipelineDeclaration:
    """A pipeline with another schedule than it declares.

    Args:
        declaration: the pipeline.
        expression: when it is started; None as declared.
        role: ARN of what EventBridge Scheduler starts it with; None as declared.

    Raises:
        ConfigError: neither says when, or with which role; or that is none.
    """
    there = declaration.schedule
    given: dict[str, Any] = {} if there is None else there.model_dump()
    given |= {} if expression is None else {"expression": expression}
    given |= {} if role is None else {"role": role}
    subject = f"The schedule of pipeline {declaration.name}"
    if "expression" not in given:
        raise ConfigError(
            f"{subject}: when is not said. Give it, as in `--schedule "
            '"rate(1 day)"`, or declare it as `schedule.expression`.'
        )
    if "role" not in given:
        raise ConfigError(
            f"{subject}: the role is not said that EventBridge Scheduler starts the pipeline "
            "with. Give it with `--role`, or declare it as `schedule.role`; its policy is in "
            "`feast-dynamo docs iam`."
        )
    schedule = Schedule.model_validate(given, context={"subject": subject, "prefix": "schedule."})
    return declaration.model_copy(update={"schedule": schedule})


def check_schedule(declaration: PipelineDeclaration) -> None:
    """Refuse a schedule that EventBridge Scheduler would refuse, whatever pipeline it starts.

    Raises:
        ConfigError, RequestError: as `upsert_schedule`.
    """
    anywhere = "arn:aws:sagemaker:us-east-1:123456789012:pipeline/"
    schedule_request(declaration, f"{anywhere}{declaration.name.lower()}")


def schedule_request(declaration: PipelineDeclaration, pipeline_arn: str) -> dict[str, Any]:
    """The request of EventBridge Scheduler's CreateSchedule and UpdateSchedule.

    Raises:
        ConfigError: no schedule is declared, or it is none.
        RequestError: what AWS's service model does not allow.
    """
    schedule = declared_schedule(declaration)
    check_expression(schedule.expression)
    request = {
        "Name": declaration.name,
        "ScheduleExpression": schedule.expression,
        "ScheduleExpressionTimezone": schedule.timezone,
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "Target": {
            "Arn": pipeline_arn,
            "RoleArn": schedule.role,
            "SageMakerPipelineParameters": {},
        },
        "State": "ENABLED" if schedule.enabled else "DISABLED",
    }
    subject = f"the schedule of pipeline `{declaration.name}`"
    check_request("CreateSchedule", request, service="scheduler", subject=subject)
    return request


def declared_schedule(declaration: PipelineDeclaration) -> Schedule:
    """The schedule of a pipeline.

    Raises:
        ConfigError: it has none, or no such time zone.
    """
    schedule = declaration.schedule
    if schedule is None:
        raise ConfigError(
            f"Pipeline {declaration.name} declares no `schedule`. Add one, for example "
            "`schedule: {expression: rate(1 day), role: arn:aws:iam::...}`."
        )
    if schedule.timezone not in available_timezones():
        from feast_dynamo_ext.config import did_you_mean

        hint = did_you_mean(schedule.timezone, ["UTC", *available_timezones()], "Known")
        raise ConfigError(f"There is no time zone `{schedule.timezone}`. {hint[:200]}")
    ZoneInfo(schedule.timezone)
    return schedule


def upsert_schedule(declaration: PipelineDeclaration, aws: AwsSettings) -> str:
    """Have EventBridge Scheduler start a pipeline that was put there before.

    Returns:
        `created`, `changed` or `unchanged`.

    Raises:
        ConfigError: no schedule, or one that never starts anything.
        AwsError: AWS refused, or knows no such pipeline.
    """
    declared_schedule(declaration)
    client = aws_access.client("sagemaker", aws)
    with aws_access.translated("sagemaker", f"pipeline `{declaration.name}`"):
        arn = client.describe_pipeline(PipelineName=declaration.name)["PipelineArn"]
    request = schedule_request(declaration, arn)
    scheduler = aws_access.client("scheduler", aws)
    subject = f"schedule `{declaration.name}`"
    found = _schedule_of(declaration.name, scheduler)
    if found is None:
        with aws_access.translated("scheduler", subject):
            scheduler.create_schedule(**request)
        return "created"
    target = {name: found["Target"].get(name) for name in request["Target"]}
    seen = {name: found.get(name) for name in request} | {"Target": target}
    target["SageMakerPipelineParameters"] = target["SageMakerPipelineParameters"] or {}
    if seen == request:
        return "unchanged"
    with aws_access.translated("scheduler", subject):
        scheduler.update_schedule(**request)
    return "changed"


def remove_schedule(name: str, aws: AwsSettings) -> str:
    """Take the schedule of a pipeline away; the pipeline stays.

    Returns:
        `removed`, or `not there`.

    Raises:
        ConfigError: the schedule of that name starts something else.
        AwsError: AWS refused.
    """
    scheduler = aws_access.client("scheduler", aws)
    if _schedule_of(name, scheduler) is None:
        return "not there"
    with aws_access.translated("scheduler", f"schedule `{name}`"):
        scheduler.delete_schedule(Name=name)
    return "removed"


def _schedule_of(name: str, scheduler: Any) -> dict[str, Any] | None:
    """The schedule of a pipeline as it is; None where there is none.

    Raises:
        ConfigError: the schedule of that name starts something else.
        AwsError: AWS refused.
    """
    try:
        with aws_access.translated("scheduler", f"schedule `{name}`"):
            found: dict[str, Any] = scheduler.get_schedule(Name=name)
    except ResourceNotFoundError:
        return None
    # SageMaker's ARNs have names of pipelines in lower case.
    if not found["Target"]["Arn"].lower().endswith(f":pipeline/{name.lower()}"):
        raise ConfigError(
            f"The schedule `{name}` of EventBridge Scheduler starts {found['Target']['Arn']}, "
            f"which is not the pipeline {name}: it is left as it is. Rename the pipeline, or that "
            "schedule."
        )
    return found
