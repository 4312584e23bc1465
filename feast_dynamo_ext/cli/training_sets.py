"""feast-dynamo training-set: sets that the feature repo declares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from feast_dynamo_ext._feast import feasts_errors
from feast_dynamo_ext.cli.repo import (
    InOrder,
    Output,
    json_option,
    open_store,
    repo_option,
    table,
)
from feast_dynamo_ext.cli.set_checks import diff, output_of, rebuild, report, verify

if TYPE_CHECKING:
    from pathlib import Path

    from feast import FeatureStore

    from feast_dynamo_ext.sagemaker import Manifest, TrainingSet
    from feast_dynamo_ext.sagemaker.declared_sets import Declared

name_argument = click.argument("name")


@click.group(
    "training-set",
    cls=InOrder,
    short_help="Training sets: build, list, show, verify, diff, rebuild, report.",
)
def training_set() -> None:
    """Build the training sets that the feature repo declares.

    Each is a file `training_sets/NAME.yaml` of the feature repo, or a `TrainingSetDefinition` in
    one of its Python modules.

    \b
    feast-dynamo training-set build churn
    feast-dynamo training-set list
    feast-dynamo training-set show churn
    feast-dynamo training-set report churn
    """  # noqa: D301 - click keeps the lines after \b as they are


@training_set.command(short_help="Build a declared set.")
@name_argument
@click.option("--overwrite", is_flag=True, help="Replace the set that is there.")
@click.option("--output", "place", help="Write it there in place of the declared output.")
@repo_option
@json_option
def build(name: str, place: str | None, output: Output, repo: Path, *, overwrite: bool) -> None:
    """Join, split, encode and write the training set NAME.

    It reads the history as it is now; the manifest pins what was read.

    \b
    feast-dynamo training-set build churn
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.sagemaker.declared_sets import build_training_set, definition_named

    declared = definition_named(repo, name)
    store = open_store(repo)
    with feasts_errors():
        made = build_training_set(
            store, declared.definition, repo=repo, overwrite=overwrite or None, output=place
        )
    output.show(_summary(made), f"{made.output}\n\n{_splits(made)}")


@training_set.command("list", short_help="The declared sets, and which are built.")
@repo_option
@json_option
def list_(output: Output, repo: Path) -> None:
    """List the training sets that the feature repo declares.

    \b
    feast-dynamo training-set list
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.sagemaker.declared_sets import load_definitions

    declared = load_definitions(repo)
    store = open_store(repo)
    rows = [_listed(store, repo, each) for each in declared.values()]
    columns = ("name", "declared in", "features", "label", "output", "rows")
    text = table(columns, [[str(row[key]) for key in columns] for row in rows])
    output.show(rows, text if rows else "The feature repo declares no training set.")


@training_set.command(short_help="Columns, splits and files of a built set.")
@click.argument("name")
@repo_option
@json_option
def show(name: str, output: Output, repo: Path) -> None:
    """Show the built training set NAME, or that at an output: s3://bucket/prefix or a folder.

    \b
    feast-dynamo training-set show churn
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.sagemaker.training_set import load_training_set

    store = open_store(repo)
    made = load_training_set(output_of(name, repo), store.config.offline_store.aws())
    output.show(_summary(made) | {"columns": _columns(made.manifest)}, _shown(made))


def _listed(store: FeatureStore, repo: Path, declared: Declared) -> dict[str, Any]:
    from feast_dynamo_ext.errors import TrainingSetError
    from feast_dynamo_ext.sagemaker.training_set import load_training_set

    definition = declared.definition
    place = definition.output_in(repo)
    try:
        splits = load_training_set(place, store.config.offline_store.aws()).summary()
        rows = ", ".join(f"{split['split']} {split['rows']:,}" for split in splits)
    except TrainingSetError:
        # There is no complete set, which is what a list has to say.
        rows = "not built"
    return {
        "name": definition.name,
        "declared in": declared.where,
        "features": definition.feature_service or ", ".join(definition.features or ()),
        "label": definition.label,
        "output": place,
        "rows": rows,
    }


def _summary(made: TrainingSet) -> dict[str, Any]:
    manifest = made.manifest
    return {
        "output": made.output,
        "name": manifest.name,
        "label": manifest.label,
        "target": manifest.target,
        "formats": list(manifest.formats),
        "left_out": manifest.left_out,
        "splits": made.summary(),
        "files": len(manifest.files),
        "bytes": sum(file.bytes for file in manifest.files),
    }


def _splits(made: TrainingSet) -> str:
    rows = made.summary()
    return table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _columns(manifest: Manifest) -> list[dict[str, Any]]:
    return [
        {
            "column": column.name,
            "role": column.role,
            "type": column.type,
            "encoding": column.encoding.kind if column.encoding else None,
            "becomes": list(column.encoding.outputs) if column.encoding else [],
            "missing": dict(column.nulls),
        }
        for column in manifest.columns
    ]


MOST_SHOWN = 4
"""Names of encoded columns that a line has."""


def _shown(made: TrainingSet) -> str:
    rows = []
    for column in _columns(made.manifest):
        names = column["becomes"]
        more = f", ... ({len(names)})" if len(names) > MOST_SHOWN else ""
        rows.append(
            [
                column["column"],
                column["role"],
                column["type"],
                column["encoding"] or "",
                ", ".join(names[:MOST_SHOWN]) + more,
                str(sum(column["missing"].values())),
            ]
        )
    columns = table(("column", "role", "type", "encoding", "becomes", "missing"), rows)
    size = sum(file.bytes for file in made.manifest.files)
    files = f"{len(made.manifest.files)} files, {size:,} bytes"
    return f"{made.output}\n\n{_splits(made)}\n\n{columns}\n\n{files}"


for command in (verify, diff, rebuild, report):
    training_set.add_command(command)
