"""feast-dynamo training-set verify, diff, rebuild and report: sets that are there."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from feast_dynamo_ext.cli.repo import (
    Output,
    is_repo,
    json_option,
    open_store,
    repo_option,
)
from feast_dynamo_ext.cli.repo import table as text_table
from feast_dynamo_ext.errors import TrainingSetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feast import FeatureStore

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.duckdb_connection import Limits
    from feast_dynamo_ext.sagemaker.rebuild import RebuildReport
    from feast_dynamo_ext.sagemaker.set_difference import SetDifference
    from feast_dynamo_ext.sagemaker.set_verification import SourceChange, VerifyReport

DEFAULT_MEMORY = "1GB"
MOST_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class _Place:
    """How sets are reached: as the feature repo says, or, outside of one, the environment."""

    store: FeatureStore | None
    aws: AwsSettings
    limits: Limits


def _place(repo: Path) -> _Place:
    """The settings of the repo's offline store, where there is one."""
    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.duckdb_connection import Limits

    if repo == Path() and not is_repo(repo):
        return _Place(None, AwsSettings(), Limits(DEFAULT_MEMORY))
    store = open_store(repo)
    config: Any = store.config.offline_store
    if not hasattr(config, "aws"):
        return _Place(None, AwsSettings(), Limits(DEFAULT_MEMORY))
    limits = Limits(config.memory_limit or DEFAULT_MEMORY, spill_folder=config.spill_folder)
    return _Place(store, config.aws(), limits)


def output_of(name: str, repo: Path) -> str:
    """The output of the set that a repo declares by a name, or the output itself."""
    from feast_dynamo_ext.sagemaker.declared_sets import definition_named, load_definitions
    from feast_dynamo_ext.sagemaker.output_folder import MANIFEST

    if "/" in name or not is_repo(repo):
        return name
    # A folder may be named without a slash where no declared set has its name.
    if Path(name, MANIFEST).is_file() and name not in load_definitions(repo):
        return name
    return definition_named(repo, name).definition.output_in(repo)


@click.command(short_help="Check files and sources of a training set.")
@click.argument("training_set", metavar="SET")
@click.option("--files-only", is_flag=True, help="Do not look at what it was made of.")
@repo_option
@json_option
def verify(training_set: str, output: Output, repo: Path, *, files_only: bool) -> None:
    """Read every file of a training set again, and look at its sources.

    SET is the name of a declared one or an output, s3://bucket/prefix or a folder.

    Finds files that are missing, changed or too many, source files and snapshots that are not what
    they were, and, in a feature repo, views that are defined otherwise. Exit code 1 if there is
    any. A changed source does not change the set: it can not be built again as it was.

    \b
    feast-dynamo training-set verify s3://my-lake/training/churn
    """  # noqa: D301 - click keeps the lines after \b as they are
    place, training_set = _place(repo), output_of(training_set, repo)
    from feast_dynamo_ext.sagemaker import load_manifest
    from feast_dynamo_ext.sagemaker.set_verification import changed_sources
    from feast_dynamo_ext.sagemaker.set_verification import verify as verified

    report = verified(training_set, place.aws)
    changes: Sequence[SourceChange] = ()
    if not files_only:
        manifest = load_manifest(training_set, place.aws)
        changes = changed_sources(manifest, place.aws, place.store)
    output.show(
        {
            **dataclasses.asdict(report),
            "sources": [dataclasses.asdict(change) for change in changes],
            "ok": report.ok and not changes,
        },
        _verified(report, changes),
    )
    if not report.ok:
        raise TrainingSetError(
            f"{training_set} is not as it was written. Build it again, or restore these files."
        )
    if changes:
        raise TrainingSetError(
            f"The files of {training_set} are as they were written, but {len(changes)} of its "
            "sources are not, so it cannot be built again as it is."
        )


def _verified(report: VerifyReport, changes: Sequence[SourceChange]) -> str:
    found = [("missing", path, "") for path in report.missing]
    found += [("changed", path, "") for path in report.changed]
    found += [("unexpected", path, "") for path in report.unexpected]
    found += [(f"source {change.kind}", change.name, change.words) for change in changes]
    if not found:
        return f"{report.checked} files are as they were written, and so are the sources."
    more = f"\nand {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
    return text_table(("what", "name", ""), found[:MOST_SHOWN]) + more


@click.command(short_help="Build a training set again from its manifest.")
@click.argument("training_set", metavar="SET")
@click.option("--to", metavar="NEW", help="Keep it there. Default: it is compared and removed.")
@click.option("--overwrite", is_flag=True, help="Replace the training set at NEW.")
@repo_option
@json_option
def rebuild(
    training_set: str, to: str | None, output: Output, repo: Path, *, overwrite: bool
) -> None:
    """Build a training set again from its manifest alone, and compare the two.

    Of the snapshots that it pins, whatever history has become. Sources or views that are not what
    they were are named, and nothing is built. Exit code 1 where the two are not equal: byte for
    byte, or in content under other versions of the libraries.

    \b
    feast-dynamo training-set rebuild s3://my-lake/training/churn
    """  # noqa: D301 - click keeps the lines after \b as they are
    store, training_set = open_store(repo), output_of(training_set, repo)
    from feast_dynamo_ext.duckdb_connection import spill_folder
    from feast_dynamo_ext.sagemaker import rebuild as work

    config: Any = store.config.offline_store
    with contextlib.ExitStack() as stack:
        if to is None:
            given = getattr(config, "spill_folder", None)
            at = f"{stack.enter_context(spill_folder(given))}/set"
        else:
            at = to
        report = work.rebuild(store, training_set, at, overwrite=overwrite)
    output.show(dataclasses.asdict(report), _rebuilt(report))
    if not report.ok:
        raise TrainingSetError(
            f"{training_set} was built again and is another set: {len(report.different)} files "
            "differ. Keep it with --to, and `feast-dynamo training-set diff` says what is "
            "different."
        )


def _rebuilt(report: RebuildReport) -> str:
    words = "equal byte for byte"
    if not report.same_bytes:
        words = "equal in content" if report.same_content else "not equal"
    if report.libraries:
        pairs = (f"{name} {was} -> {now}" for name, (was, now) in report.libraries.items())
        words += f"; libraries are others: {', '.join(pairs)}"
    if not report.same_entity_rows:
        words += "; the entity rows are others"
    return f"{report.output} was built again: {words}."


@click.command(short_help="Compare two training sets.")
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@repo_option
@json_option
def diff(old: str, new: str, output: Output, repo: Path) -> None:
    """Say what is different in the training set at NEW from that at OLD.

    Features, their encodings, rows by entity and event time, label, distributions of what trains,
    and inputs: snapshots, files, definitions, split, libraries.

    \b
    feast-dynamo training-set diff s3://my-lake/training/june s3://my-lake/training/july
    """  # noqa: D301 - click keeps the lines after \b as they are
    place = _place(repo)
    from feast_dynamo_ext.sagemaker import load_training_set
    from feast_dynamo_ext.sagemaker.set_difference import difference

    one, other = (load_training_set(output_of(each, repo), place.aws) for each in (old, new))
    found = difference(one, other, place.aws, place.limits)
    output.show(found.to_dict(), _different(found))


def _different(found: SetDifference) -> str:
    if found.is_same:
        return "The two training sets have the same rows, features and inputs."
    return "\n\n".join(filter(None, [_of_features(found), _of_rows(found), _of_inputs(found)]))


def _of_features(found: SetDifference) -> str:
    lines = [f"+ {name}" for name in found.features_added]
    lines += [f"- {name}" for name in found.features_removed]
    lines += [f"~ {name}: {was} -> {now}" for name, was, now in found.features_changed]
    lines += ["~ in another order"] if found.is_reordered else []
    shifted = [
        (
            change.column,
            "-" if change.psi is None else f"{change.psi:.3f}",
            _pair(change.mean_old, change.mean_new),
            _pair(change.missing_old, change.missing_new),
        )
        for change in found.columns[:MOST_SHOWN]
    ]
    heads = ("column", "psi", "mean", "missing")
    named = "\n".join(["features", *lines]) if lines else ""
    return "\n\n".join(filter(None, [named, text_table(heads, shifted) if shifted else ""]))


def _of_rows(found: SetDifference) -> str:
    rows = found.rows
    lines = [
        f"rows {rows.old:,} -> {rows.new:,}: {rows.added:,} added, {rows.removed:,} removed, "
        f"{rows.moved:,} in another split"
    ]
    for example in rows.examples:
        sign = "+" if example["change"] == "added" else "-"
        keys = ", ".join(f"{key}={value}" for key, value in example.items() if key != "change")
        lines.append(f"{sign} {keys}")
    splits = [
        (name, _pair(*split["rows"]), _pair(*split["label_mean"]))
        for name, split in found.splits.items()
    ]
    return "\n".join([*lines, "", text_table(("split", "rows", "label mean"), splits)])


def _of_inputs(found: SetDifference) -> str:
    rows = [
        (name, was if was is not None else "-", now if now is not None else "-")
        for name, was, now in found.inputs[:MOST_SHOWN]
    ]
    more = len(found.inputs) - MOST_SHOWN
    text = text_table(("input", "old", "new"), rows) if rows else ""
    return text + (f"\nand {more} more" if more > 0 else "")


def _pair(old: float | None, new: float | None) -> str:
    was, now = ("-" if value is None else f"{value:.6g}" for value in (old, new))
    return was if was == now else f"{was} -> {now}"


@click.command(short_help="Write an HTML page about a training set.")
@click.argument("training_set", metavar="SET")
@click.option(
    "--to",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default="training-set-report.html",
    show_default=True,
    help="File of the page.",
)
@repo_option
@json_option
def report(training_set: str, path: Path, output: Output, repo: Path) -> None:
    """Write one HTML page about a training set, which needs nothing else.

    Rows and label over time, missing values, distributions by split, AUC and PSI of each feature,
    and leaks. In the feature repo also how old features were at their rows: the join is made again
    for their event times.

    \b
    feast-dynamo training-set report s3://my-lake/training/churn --to churn.html
    """  # noqa: D301 - click keeps the lines after \b as they are
    place = _place(repo)
    from feast_dynamo_ext.sagemaker import load_training_set
    from feast_dynamo_ext.sagemaker.leakage import worst
    from feast_dynamo_ext.sagemaker.report_page import html
    from feast_dynamo_ext.sagemaker.set_inspection import inspect
    from feast_dynamo_ext.storage import LocalFiles

    loaded = load_training_set(output_of(training_set, repo), place.aws)
    found = inspect(loaded, place.aws, place.limits, place.store)
    page = html(found).encode()
    with LocalFiles().new_file(str(path.absolute())) as file:
        file.write(page)
    findings = [dataclasses.asdict(finding) for finding in found.findings]
    output.show(
        {"page": str(path), "bytes": len(page), "leakage": findings},
        f"{path}: {len(page):,} bytes. Leakage: {worst(found.findings)}.\n"
        + "\n".join(
            f"{finding.level:8}{finding.check}: {finding.words}"
            for finding in found.findings
            if finding.level != "ok"
        ),
    )
