"""What commands share: the feature repo, its store and views, and how they answer.

The answer goes to stdout. What a person should know besides goes to stderr, so that stdout stays
the answer alone and can be piped or evaluated.

Feast is imported when a command needs it: it takes seconds, and `--help` should not.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import warnings
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from tabulate import tabulate

from feast_dynamo_ext._feast import feasts_errors, registry_errors
from feast_dynamo_ext.errors import (
    ConfigError,
    FeastDynamoError,
    ViewsFailedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from feast import FeatureStore

    from feast_dynamo_ext.aws import AwsSettings


Command = TypeVar("Command", bound="Callable[..., Any]")


@dataclass(frozen=True)
class Output:
    """Where a command's answer goes: `as_json` is what the caller asked for with --json."""

    as_json: bool = False

    def show(self, data: Any, text: str) -> None:
        """Print the answer: `data`, of JSON's own types, or `text`."""
        click.echo(json.dumps(data, indent=2) if self.as_json else text)

    def note(self, text: str) -> None:
        """Tell a person something besides the answer."""
        click.echo(text, err=True)


class InOrder(click.Group):
    """A group that lists its commands in the order in which a newcomer needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's interface
        """The commands as they were added."""
        return list(self.commands)


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as a text table; values are printed as they are."""
    return str(tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True))


def json_option(command: Command) -> Command:
    """Give a command `--json`, and its choice as the parameter `output`."""
    return click.option(
        "--json",
        "output",
        is_flag=True,
        callback=lambda _context, _option, chosen: Output(chosen),
        help="Print JSON instead of text.",
    )(command)


DAYS = (datetime(2000, 1, 1), datetime(2004, 2, 2))  # noqa: DTZ001 - the text may have a zone
EXAMPLE = "Write it as 2026-01-31, 2026-01-31T12:00:00 (UTC) or 2026-01-31T12:00:00+01:00."
NO_REPO = "Run this in a feature repo, or name one: --chdir PATH."

# Where Feast looks for feature_store.yaml besides the folder: a path, or the file itself.
YAML_PATH_VARIABLE = "FEAST_FS_YAML_FILE_PATH"
YAML_VARIABLE = "FEATURE_STORE_YAML_BASE64"

repo_option = click.option(
    "--chdir",
    "-c",
    "repo",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=".",
    envvar="FEATURE_REPO_DIR_ENV_VAR",
    show_default="the current one",
    help="Folder of the feature repo, as of `feast --chdir`.",
)

region_option = click.option(
    "--region",
    metavar="NAME",
    help="AWS region, in place of the one that is configured.",
)

views_option = click.option(
    "--views",
    "-v",
    multiple=True,
    metavar="NAMES",
    callback=lambda _context, _option, given: names_in(given),
    help="Feature views, separated by commas or each with a -v of its own. Default: all of them.",
)


def names_in(given: Sequence[str]) -> tuple[str, ...]:
    """The names in what was given, each once."""
    names = [name.strip() for text in given for name in text.split(",")]
    return tuple(dict.fromkeys(filter(None, names)))


times_argument = click.argument(
    "times",
    nargs=-1,
    metavar="[START_TS] [END_TS]",
    callback=lambda _context, _argument, given: tuple(map(time_in, given)),
)


def time_in(text: str) -> datetime:
    """A date, or date and time, as `feast materialize` takes it; without an offset it is UTC.

    Raises:
        click.BadParameter: it is none, or names no full date.
    """
    from dateutil import parser

    try:
        with warnings.catch_warnings():
            # Of a zone's name that it does not know, which it would leave out.
            warnings.simplefilter("error", parser.UnknownTimezoneWarning)
            # What the text leaves out is taken from there, so these differ if it is the day.
            first, second = (parser.parse(text, default=day) for day in DAYS)
    except parser.UnknownTimezoneWarning as error:
        raise click.BadParameter(f"`{text}`: its time zone is not known. {EXAMPLE}") from error
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"`{text}` is no time: {error}. {EXAMPLE}") from error
    if first != second:
        raise click.BadParameter(f"`{text}` names no full date. {EXAMPLE}")
    from feast_dynamo_ext.timestamps import assume_utc

    return assume_utc(first)


SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(i?))?B")
AGE = re.compile(r"(\d+)([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class FiniteFloat(click.FloatRange):
    """A number of a range; `nan` is in each range of click's, and `inf` in most."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """It.

        Raises:
            click.BadParameter: it is none.
        """
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{value} is no finite number.", param, ctx)
        return found


def size_in(text: str) -> int:
    """Bytes of a size such as 256MB, 1.5 GiB.

    Raises:
        click.BadParameter: it is none.
    """
    found = SIZE.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"`{text}` is no size. Write it as 256MB or 1GiB.")
    number, letter, binary = found.groups()
    power = "KMGT".index(letter) + 1 if letter else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


def age_in(text: str) -> float:
    """Seconds of an age such as 24h or 7d.

    Raises:
        click.BadParameter: it is none.
    """
    found = AGE.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"`{text}` is no age. Write it as 90s, 30m, 24h or 7d.")
    return float(int(found[1]) * SECONDS[found[2]])


def age_s(_context: Any, _option: Any, text: str | None) -> int | None:
    """The callback of an option that takes an age: seconds, or None."""
    return None if text is None else int(age_in(text))


def pairs(_context: Any, _option: Any, given: Sequence[str]) -> dict[str, str]:
    """The callback of an option that takes KEY=VALUE, several times.

    Raises:
        click.BadParameter: one is no such pair, or of a key that is given twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"`{text}` is not KEY=VALUE.")
        if name in found:
            raise click.BadParameter(f"`{name}` is given twice.")
        found[name] = value
    return found


def is_repo(repo: Path) -> bool:
    """Whether Feast finds a feature_store.yaml there, or by the environment."""
    return _yaml_path(repo).exists() or bool(os.environ.get(YAML_VARIABLE))


def check_repo(repo: Path) -> None:
    """See to it that Feast finds a feature repo there.

    Raises:
        ConfigError: it does not.
    """
    if not is_repo(repo):
        path = _yaml_path(repo)
        raise ConfigError(f"There is no {path.name} in {path.parent}. {NO_REPO}")


def _yaml_path(repo: Path) -> Path:
    return Path(os.environ.get(YAML_PATH_VARIABLE, repo.absolute() / "feature_store.yaml"))


def open_store(repo: Path) -> FeatureStore:
    """The feature store of a repo, as the `feast` command opens it.

    Raises:
        ConfigError: there is no feature_store.yaml, or Feast cannot use what it says.
    """
    check_repo(repo)
    folder, path = repo.absolute(), _yaml_path(repo)
    from feast_dynamo_ext import _feast

    with _yaml_errors(path), feasts_errors():
        store = _feast.open_feature_store(folder, path.absolute())
        # Both are looked at when they are first used; a mistake is of the file, so it is said now.
        _ = store.config.online_store, store.config.offline_store
    return store


@contextlib.contextmanager
def _yaml_errors(path: Path) -> Iterator[None]:
    """Turn what a wrong feature_store.yaml raises into one sentence."""
    import yaml
    from feast.repo_config import FeastConfigError
    from pydantic import ValidationError

    try:
        yield
    except FeastConfigError as error:
        found = error.__context__
        problems = str(found)
        if isinstance(found, ValidationError):
            problems = "; ".join(
                f"`{'.'.join(map(str, problem['loc']))}`: {problem['msg']}"
                for problem in found.errors(include_input=False, include_url=False)
            )
        raise ConfigError(f"{path}: {problems}.") from error
    except (yaml.YAMLError, TypeError) as error:
        raise ConfigError(f"{path} is no YAML of keys and values: {error}") from error


@dataclass(frozen=True)
class AwsAccess:
    """How a command reaches AWS.

    Attributes:
        s3: as the block of the offline store says.
        services: all else, with its region, profile and role; the block's endpoint is that of S3.
    """

    s3: AwsSettings
    services: AwsSettings


def aws_access(repo: Path | None = None, region: str | None = None) -> AwsAccess:
    """How AWS is reached: as a repo with our store says, else as the environment does.

    Args:
        repo: the feature repo's folder; None for commands that need none.
        region: of the command's option, in place of both.

    Raises:
        ConfigError: a feature_store.yaml that Feast cannot use.
    """
    from feast_dynamo_ext.aws import AwsSettings

    found = AwsSettings()
    if repo is not None and is_repo(repo):
        settings = getattr(open_store(repo).config.offline_store, "aws", None)
        found = settings() if settings is not None else found
    return _in_region(found, region)


def aws_of(store: FeatureStore, region: str | None = None) -> AwsAccess:
    """How AWS is reached as an open store says.

    Raises:
        ConfigError: its offline store is another one.
    """
    settings = getattr(store.config.offline_store, "aws", None)
    if settings is None:
        raise ConfigError(
            f"The offline store of this repo is `{store.config.offline_store.type}`, which has no "
            "training sets. Set `type: feast_dynamo_ext.S3ParquetOfflineStore`."
        )
    return _in_region(settings(), region)


def _in_region(settings: AwsSettings, region: str | None) -> AwsAccess:
    s3 = replace(settings, region=region) if region else settings
    return AwsAccess(s3, replace(s3, endpoint_url=None))


def chosen_views(
    store: FeatureStore, names: Sequence[str] | None, version: str | None
) -> list[Any]:
    """The feature views that Feast would materialize.

    Args:
        store: the feature store.
        names: names of views, or None for all that are served online.
        version: of the one view that is named, or None for the active one.

    Raises:
        ConfigError: a view that does not exist or is not served online.
        AwsError: the registry cannot be read.
    """
    from feast.errors import FeatureViewNotFoundException

    from feast_dynamo_ext import _feast

    with registry_errors():
        try:
            return _feast.views_to_materialize(store, names, version)
        except FeatureViewNotFoundException as error:
            raise ConfigError(f"{error}.{_hint(store, names or [])}") from error


def _hint(store: FeatureStore, names: Sequence[str]) -> str:
    from feast_dynamo_ext.config import did_you_mean

    known = [view.name for view in store.list_all_feature_views()]
    if not known:
        return " It has no feature view at all: run `feast apply` first."
    missing = next(name for name in names if name not in known)
    return f" {did_you_mean(missing, known, 'It has')}"


def each_view(
    views: Sequence[Any], do: Callable[[Any], Any], output: Output
) -> tuple[list[Any], dict[str, FeastDynamoError]]:
    """Answers, and errors by view: a view that fails does not stop the others."""
    answers: list[Any] = []
    failures: dict[str, FeastDynamoError] = {}
    for view in views:
        try:
            answers.append(do(view))
        except FeastDynamoError as error:  # noqa: PERF203 - one view's failure is its own
            failures[view.name] = error
            if len(views) > 1:
                output.note(f"{view.name}: {error}")
    return answers, failures


def raise_failed(failures: Mapping[str, FeastDynamoError], count: int) -> None:
    """Raise the error of a view that is alone; else one that names the views.

    Raises:
        FeastDynamoError: a view failed.
    """
    if failures and count == 1:
        raise next(iter(failures.values()))
    if failures:
        raise ViewsFailedError(
            f"{len(failures)} of {count} feature views failed: {', '.join(failures)}. What is "
            "said of each above says what to do.",
            failures=failures,
        )
