"""The steps of a local run up to the training set: capture, prepare, materialize, build."""

from __future__ import annotations

import shutil
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.sagemaker.declared_sets import build_training_set
from feast_dynamo_ext.sagemaker.manifest import manifest_sha256
from feast_dynamo_ext.sagemaker.output_folder import open_folder
from feast_dynamo_ext.sagemaker.pipeline.declared_steps import BUILD, CAPTURE, MATERIALIZE, PREPARE
from feast_dynamo_ext.sagemaker.pipeline.step_inputs import (
    file_states,
    references,
    set_summary,
    source_state,
    view_states,
)
from feast_dynamo_ext.sagemaker.pipeline.step_runner import key_of
from feast_dynamo_ext.sagemaker.training_set import load_training_set
from feast_dynamo_ext.timestamps import EPOCH
from feast_dynamo_ext.view_settings import derived_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from feast_dynamo_ext.sagemaker.pipeline.step_runner import StepRunner
    from feast_dynamo_ext.sagemaker.training_set import TrainingSet


def capture(run: StepRunner, sources: Sequence[str], one: Callable[[str], str]) -> None:
    """Bring what changed in tables of applications into their history.

    Args:
        run: the run.
        sources: names of the captured tables.
        one: captures one of them, and says what it brought.

    Raises:
        PipelineError: one failed; those before it are captured.
    """

    def do() -> dict[str, Any]:
        return {"detail": "; ".join(f"{name}: {one(name)}" for name in sources)}

    run.step(CAPTURE, {}, do, always="what is new is only known then")


def prepare(run: StepRunner, command: Sequence[str], files: Sequence[str]) -> None:
    """Run the program that makes features and labels of what is captured.

    Raises:
        PipelineError: it failed, or a file that it is made of is not there.
    """

    def inputs() -> dict[str, Any]:
        captured = run.declaration.capture
        found = {
            name: file_states(str((run.repo / name).absolute()), run.aws, run.hashes)
            for name in files
        }
        for name in captured.sources if captured is not None else ():
            source = run.store.get_data_source(name)
            found[f"the captured table {name}"] = source_state(source, run.store, run.hashes)
        run.hashes.keep()
        return run.inputs(
            **found, **{"the command": list(command), "variables": run.declaration.environment}
        )

    def do() -> dict[str, Any]:
        run.program(PREPARE, command, run.repo, run.folder / "prepare.log")
        return {"detail": f"{command[0]} ended"}

    # Without captured tables nobody knows what it reads.
    always = "" if run.declaration.capture is not None else "what it reads is not known"
    run.step(PREPARE, run.guarded(PREPARE, inputs), do, always=always)


def materialize(run: StepRunner, names: Sequence[str], *, all_: bool) -> None:
    """Bring the views online whose history or definition has changed.

    Args:
        run: the run.
        names: of the views; none for all that are served online.
        all_: from 1970 on, instead of from each view's last run.

    Raises:
        PipelineError: it failed.
    """

    def online() -> list[Any]:
        if names:
            return [run.view(name) for name in names]
        return [view for view in run.store.list_batch_feature_views() if view.online]

    def inputs() -> dict[str, Any]:
        states = view_states(online(), run.store, run.hashes)
        run.hashes.keep()
        return run.inputs(**_named(states), **{"the image": run.declaration.image, "all": all_})

    def do() -> dict[str, Any]:
        views = [view.name for view in online()]
        now = datetime.now(tz=timezone.utc)
        if all_:
            run.store.materialize(EPOCH, now, feature_views=views)
        else:
            run.store.materialize_incremental(now, feature_views=views)
        return {"detail": f"{len(views)} views: {', '.join(views)}"}

    def is_there(_result: dict[str, Any]) -> bool:
        # `feast teardown` and `apply` leave a view without intervals: its rows are gone.
        return all(run.view(view.name).materialization_intervals for view in online())

    run.step(MATERIALIZE, run.guarded(MATERIALIZE, inputs), do, is_there)


def _named(states: Mapping[str, Any]) -> dict[str, Any]:
    """States of views as inputs, by names for a person."""
    found: dict[str, Any] = {}
    for name, (definition, source) in states.items():
        found[f"the definition of {name}"] = definition
        found[f"the history of {name}"] = source
    return found


# The training set


def build(run: StepRunner) -> TrainingSet:
    """Build the training set.

    Raises:
        PipelineError: it failed.
    """
    inputs = run.guarded(BUILD, _inputs_of_set, run)
    output = str(run.folder / "sets" / key_of(inputs)[:16])

    def do() -> dict[str, Any]:
        if not open_folder(output, run.aws).has_set():
            # Of a run that was killed, or someone took the manifest away: this folder is of this
            # pipeline's state alone.
            shutil.rmtree(output, ignore_errors=True)
        written = build_training_set(
            run.store, run.parts.definition, repo=run.repo, overwrite=True, output=output
        )
        summary = set_summary(written, run.aws)
        rows = ", ".join(f"{count:,} {name}" for name, count in summary["rows"].items())
        return summary | {"detail": f"rows: {rows}"}

    def is_there(result: dict[str, Any]) -> bool:
        if not open_folder(output, run.aws).has_set():
            return False
        found = load_training_set(output, run.aws)
        return manifest_sha256(found.output, run.aws) == str(result["manifest_sha256"])

    # What a query or a frame is made of is not known, so the set is built anew; where it is as it
    # was before, no later step runs again.
    always = "" if _entity_file(run) is not None else "entity rows of a query may be others"
    run.step(BUILD, inputs, do, is_there, always)
    return load_training_set(output, run.aws)


def _entity_file(run: StepRunner) -> str | None:
    """The file or folder of entity rows, if they are of one."""
    definition = run.parts.definition
    rows = definition.entity_rows
    is_file = isinstance(rows, dict) and "path" in rows
    return str(definition.entity_rows_in(run.repo)) if is_file else None


def _inputs_of_set(run: StepRunner) -> dict[str, Any]:
    file, definition = _entity_file(run), run.parts.definition
    rows = file_states(file, run.aws, run.hashes) if file is not None else None
    views = view_states(_views_of_set(run), run.store, run.hashes)
    run.hashes.keep()
    return run.inputs(
        **{
            "the set's declaration": definition.to_json(),
            "its features": references(definition, run.store),
            "its entity rows": rows,
            "the image": run.declaration.image,
        },
        **_named(views),
    )


def _views_of_set(run: StepRunner) -> list[Any]:
    found = references(run.parts.definition, run.store)
    views = [run.view(name) for name in sorted({name for name, _ in found})]
    # An on-demand view is made of others.
    for view in list(views):
        inputs = getattr(view, "source_feature_view_projections", {})
        views += [run.view(projection.name) for projection in inputs.values()]
    bases = {derived.base for view in views if (derived := derived_of(view)) is not None}
    return views + [run.view(name) for name in sorted(bases)]


def check_captured(run: StepRunner, sources: Sequence[str]) -> None:
    """Refuse names of captured tables that the registry does not have.

    Raises:
        ConfigError: names the one, and what may be meant.
    """
    from feast_dynamo_ext.config import did_you_mean

    known = [source.name for source in run.store.list_data_sources()]
    for name in sources:
        if name not in known:
            raise ConfigError(
                f"Pipeline {run.declaration.name} captures `{name}`, and the registry has no such "
                f"source. {did_you_mean(name, known, 'There are')} `feast apply` registers what "
                "definitions.py declares."
            )
