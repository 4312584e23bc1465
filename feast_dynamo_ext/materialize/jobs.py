"""What became of a run, as Feast asks for it: a job each view, with its error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feast.infra.common.materialization_job import (
    MaterializationJob,
    MaterializationJobStatus,
    MaterializationTask,
)
from feast.infra.compute_engines.local.job import LocalMaterializationJob

from feast_dynamo_ext import _feast
from feast_dynamo_ext.errors import FeastDynamoError, ViewsFailedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feast_dynamo_ext.materialize.report import RunReport


def jobs_of(tasks: Sequence[MaterializationTask], report: RunReport) -> list[MaterializationJob]:
    """A job a task. The first failed one names all that failed, as Feast raises no other."""
    errors = {
        view.view: _naming(view.view, view.error) for view in report.failed_views if view.error
    }
    if len(errors) > 1:
        first = next(iter(errors))
        others = "; the others are materialized" if len(errors) < len(report.views) else ""
        several = ViewsFailedError(
            f"{len(errors)} of {len(report.views)} feature views failed{others}. "
            + " ".join(map(str, errors.values())),
            failures=errors,
        )
        several.__cause__ = errors[first]
        errors[first] = several
    return [_job(task, errors.get(task.feature_view.name)) for task in tasks]


def _naming(view: str, error: BaseException) -> BaseException:
    """The error, with the view in its message."""
    if view in str(error):
        return error
    named = f"Feature view `{view}`: {error}"
    if isinstance(error, FeastDynamoError):
        error.args = (named, *error.args[1:])
        return error
    failed = ViewsFailedError(named, failures={view: error})
    failed.__cause__ = error
    return failed


def _job(task: MaterializationTask, error: BaseException | None) -> LocalMaterializationJob:
    status = MaterializationJobStatus.ERROR if error else MaterializationJobStatus.SUCCEEDED
    return LocalMaterializationJob(_feast.job_id(task), status, error=error)
