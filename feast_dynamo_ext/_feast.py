"""The private names of Feast that this package calls, overrides or imitates, in one place.

Feast promises nothing of them, so `PRIVATE_NAMES` records what each looked like when this package
was written for it. `tests/contract/test_feast_contract.py` compares the installed Feast with the
table, and `tests/unit/test_private_names.py` keeps private names of Feast out of other modules.

What is only called or read is a function here. An override stands in its class, and in the table.
Feast is imported where a function needs it: the command line and the online store import this
module, and neither should load more of Feast than it uses.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from feast_dynamo_ext.errors import AccessDeniedError, ConfigError, FeastDynamoError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from feast import FeatureService, FeatureStore
    from feast.infra.common.materialization_job import MaterializationTask
    from feast.infra.compute_engines.local.compute import LocalComputeEngine
    from feast.infra.passthrough_provider import PassthroughProvider
    from feast.infra.registry.base_registry import BaseRegistry


Kind = Literal["called", "overridden", "imitated", "attribute", "text"]


@dataclass(frozen=True)
class PrivateName:
    """A part of Feast that it does not promise to keep.

    Attributes:
        owner: the module, or `module:Class`, or of a text `module:Class.function`.
        name: within its owner; of a text, what it is.
        kind: how it is used. `called`, `overridden` and `imitated` are functions, `attribute` is
            read or set, and `text` is a piece of the owner's source that we rely on.
        recorded: of a function its signature without annotations, of an attribute the statement
            that first assigns it, of a text the text.
        why: what it is needed for.
        returns: the names of the tuple that a function returns, where it is unpacked by position.
    """

    owner: str
    name: str
    kind: Kind
    recorded: str
    why: str
    returns: tuple[str, ...] = ()


ONLINE_STORE = "feast.infra.online_stores.online_store:OnlineStore"
LOCAL_ENGINE = "feast.infra.compute_engines.local.compute:LocalComputeEngine"
RETRIEVAL_JOB = "feast.infra.offline_stores.offline_store:RetrievalJob"
SAVED_DATASET_STORAGE = "feast.saved_dataset:SavedDatasetStorage"
PROVIDER = "feast.infra.passthrough_provider:PassthroughProvider"
OUR_PROVIDER = "feast_dynamo_ext.provider:DynamoProvider"
FEATURE_STORE = "feast.feature_store:FeatureStore"

_READ = (
    "(self, config, grouped_refs, join_key_values, entity_name_to_join_key_map, "
    "online_features_response, full_feature_names, include_feature_view_version_metadata)"
)
_GET_ONLINE_FEATURES = (
    "(self, config, features, entity_rows, registry, project, full_feature_names=False, "
    "include_feature_view_version_metadata=False)"
)

SAVED_DATASET_EVENT_TIME = "event_timestamp"
"""What Feast asks a saved dataset's event time by, whatever the entity rows had named it."""

FIRST_INCREMENTAL = timedelta(weeks=52)
"""How far back the first incremental materialization of a view goes whose ttl is zero."""

BARS = "tqdm_builder"
SCANNING_TEXT = "Entity scanning not supported"
PRECOMPUTE_FAILED_TEXT = "Failed to precompute vectors"
SERVING_TEXT = "`serve_features_while_materializing` is enabled but "

PRIVATE_NAMES = (
    # Online reads
    PrivateName(
        ONLINE_STORE,
        "_read_features_per_fv",
        "overridden",
        _READ,
        "reads all views of a request together",
    ),
    PrivateName(
        ONLINE_STORE,
        "_read_features_per_fv_async",
        "overridden",
        _READ,
        "the same on an event loop",
    ),
    PrivateName(
        ONLINE_STORE,
        "_build_feature_types",
        "overridden",
        "(grouped_refs)",
        "Feast's own goes over every field of every view at each request",
    ),
    PrivateName(
        ONLINE_STORE,
        "_versioned_read_supported",
        "overridden",
        "_versioned_read_supported: Optional[bool] = None",
        "without it Feast imports every store it ships, and refuses to read versions",
    ),
    PrivateName(
        ONLINE_STORE,
        "get_online_features",
        "imitated",
        _GET_ONLINE_FEATURES,
        "a precomputed service is answered from its vectors in Feast's own order of steps",
    ),
    PrivateName(
        ONLINE_STORE,
        "get_online_features_async",
        "imitated",
        _GET_ONLINE_FEATURES,
        "the same on an event loop",
    ),
    PrivateName(
        "feast.utils",
        "_get_cached_request_context",
        "called",
        "(registry, project, features, full_feature_names)",
        "says whether a service has on-demand views, which are not precomputed, and what the "
        "types of a request's keys are",
        returns=(
            "feature_refs",
            "requested_on_demand_feature_views",
            "entity_name_to_join_key_map",
            "entity_type_map",
            "join_keys_set | odfv_join_keys",
            "grouped_refs",
            "frozenset(requested_result_row_names)",
            "needed_request_data",
            "entityless_case",
        ),
    ),
    PrivateName(
        "feast.utils",
        "_prepare_entities_to_read_from_online_store",
        "called",
        "(registry, project, features, entity_values, full_feature_names=False, "
        "native_entity_values=True)",
        "resolves a precomputed service's views and the request's keys",
        returns=(
            "join_key_values",
            "grouped_refs",
            "entity_name_to_join_key_map",
            "requested_on_demand_feature_views",
            "feature_refs",
            "requested_result_row_names",
            "online_features_response",
        ),
    ),
    PrivateName(
        "feast.utils",
        "_drop_unneeded_columns",
        "called",
        "(online_features_response, requested_result_row_names)",
        "the last step of an answer",
    ),
    PrivateName(
        "feast.utils",
        "_get_feature_views_to_use",
        "imitated",
        "(registry, project, features, allow_cache=False, hide_dummy_entity=True)",
        "the views of a service without a request, also while one is being materialized",
    ),
    # Pushes
    PrivateName(
        "feast.utils",
        "_validate_vector_field_lengths",
        "called",
        "(table, feature_view)",
        "vectors of a push are as long as their field says, as in Feast's own conversion",
    ),
    # Materialization
    PrivateName(
        PROVIDER,
        "_batch_engine",
        "attribute",
        "self._batch_engine: Optional[ComputeEngine] = None",
        "keeps the engine that is the provider's default",
    ),
    PrivateName(
        LOCAL_ENGINE,
        "_materialize_one",
        "called",
        "(self, registry, task, **kwargs)",
        "materializes views with transformations",
    ),
    PrivateName(
        LOCAL_ENGINE,
        "_materialize_one",
        "imitated",
        "(self, registry, task, **kwargs)",
        "a job has the id that Feast's local engine gives it",
    ),
    PrivateName(
        FEATURE_STORE,
        "_validate_materialize_version",
        "called",
        "(self, version, feature_views)",
        "`--version` of feast-dynamo means what it means to feast",
    ),
    PrivateName(
        FEATURE_STORE,
        "_get_feature_views_to_materialize",
        "called",
        "(self, feature_views, version=None)",
        "feast-dynamo takes the views that feast would take",
    ),
    PrivateName(
        f"{FEATURE_STORE}.materialize_incremental",
        "function inside that makes the progress bars of its tasks",
        "text",
        f"def {BARS}(length):",
        "a task does not say that it is incremental; the function it carries does",
    ),
    PrivateName(
        f"{FEATURE_STORE}.materialize_incremental",
        "start after the last run",
        "text",
        "start_date = feature_view.most_recent_end_time",
        "`--dry-run` of feast-dynamo starts there too",
    ),
    PrivateName(
        f"{FEATURE_STORE}.materialize_incremental",
        "start of the first run, with a ttl",
        "text",
        "start_date = _utc_now() - feature_view.ttl",
        "the same",
    ),
    PrivateName(
        f"{FEATURE_STORE}.materialize_incremental",
        "start of the first run, with a ttl of zero",
        "text",
        "start_date = _utc_now() - timedelta(weeks=52)",
        "the same",
    ),
    # Retrieval and sources
    PrivateName(
        RETRIEVAL_JOB,
        "_to_arrow_internal",
        "overridden",
        "(self, timeout=None)",
        "Feast's way to ask a job for its rows",
    ),
    PrivateName(
        RETRIEVAL_JOB,
        "_to_df_internal",
        "overridden",
        "(self, timeout=None)",
        "abstract, so a job must have it; Feast itself asks for Arrow alone",
    ),
    PrivateName(
        "feast.data_source:DataSource",
        "_to_proto_impl",
        "overridden",
        "(self)",
        "how Feast's registry keeps a source",
    ),
    PrivateName(
        "feast.infra.data_sources.contrib.iceberg_catalog.iceberg_source:IcebergSource",
        "_to_proto_impl",
        "overridden",
        "(self)",
        "how Feast's registry keeps a table of Iceberg, which a captured table's history is",
    ),
    PrivateName(
        f"{PROVIDER}.retrieve_saved_dataset",
        "event time of saved datasets",
        "text",
        f'event_ts_column = "{SAVED_DATASET_EVENT_TIME}"',
        "Feast asks for this column whatever the event time is called",
    ),
    PrivateName(
        "feast.feature_logging:LoggingDestination",
        "_proto_kind",
        "overridden",
        "_proto_kind: str",
        "by it Feast finds the class of a destination that it reads from the registry",
    ),
    PrivateName(
        SAVED_DATASET_STORAGE,
        "_proto_attr_name",
        "overridden",
        "_proto_attr_name: str",
        "by it Feast finds the class of a storage that it reads from the registry",
    ),
    PrivateName(
        SAVED_DATASET_STORAGE,
        "_custom_storage_proto",
        "called",
        "(self, options_proto)",
        "names our class of storage in the registry, among others of its kind",
    ),
    # The command line
    PrivateName(
        "feast.repo_operations",
        "create_feature_store",
        "called",
        "(ctx)",
        "opens a repo as `feast` does, with a click context made for it",
    ),
    PrivateName(
        "feast.repo_operations:create_feature_store",
        "folder in the click context",
        "text",
        'ctx.obj["CHDIR"]',
        "what the made context has to hold",
    ),
    PrivateName(
        "feast.repo_operations:create_feature_store",
        "file in the click context",
        "text",
        'ctx.obj["FS_YAML_FILE"]',
        "the same",
    ),
    # Logs
    PrivateName(
        f"{FEATURE_STORE}.precompute_feature_service",
        "warning that a store cannot be scanned",
        "text",
        SCANNING_TEXT,
        "hidden: this store has written the vectors by then",
    ),
    PrivateName(
        f"{FEATURE_STORE}._precompute_affected_services",
        "warning that precomputing failed",
        "text",
        PRECOMPUTE_FAILED_TEXT,
        "hidden where it failed for want of the redis package",
    ),
    PrivateName(
        f"{FEATURE_STORE}._precompute_for_push",
        "warning that precomputing failed after a push",
        "text",
        PRECOMPUTE_FAILED_TEXT,
        "the same",
    ),
    PrivateName(
        "feast.repo_config:RegistryConfig._warn_on_unsafe_serve_while_materializing",
        "warning that the setting has no effect on a registry in a file",
        "text",
        SERVING_TEXT,
        "hidden: it has an effect on every registry",
    ),
)


# Online reads


@dataclass(frozen=True)
class PreparedRequest:
    """What Feast makes of a request before it reads.

    Attributes:
        columns: values by join key.
        refs: the views and the features that are requested of each.
        join_keys: join keys by entity name.
        names: what the answer holds.
        response: the answer so far: the join keys.
    """

    columns: dict[str, Any]
    refs: list[tuple[Any, list[str]]]
    join_keys: dict[str, str]
    names: set[str]
    response: Any


def custom_storage_proto(storage: Any, options: Any) -> Any:
    """What the registry keeps of a storage of our own, by which Feast finds its class again."""
    return storage._custom_storage_proto(options)


def has_on_demand_views(
    registry: Any, project: str, service: FeatureService, *, full_feature_names: bool
) -> bool:
    """Whether a request for a service needs on-demand views computed."""
    from feast import utils

    context = utils._get_cached_request_context(registry, project, service, full_feature_names)
    return bool(context[1])


def key_types(
    registry: Any, project: str, features: Any, *, full_feature_names: bool
) -> tuple[dict[str, str], Mapping[str, str]]:
    """The declared type of each join key of a request, and join keys by entity name."""
    from feast import utils

    context = utils._get_cached_request_context(registry, project, features, full_feature_names)
    return {key: kind.name for key, kind in context[3].items()}, context[2]


def prepare_request(
    registry: Any,
    project: str,
    features: FeatureService | list[str],
    rows: Any,
    *,
    full_feature_names: bool,
) -> PreparedRequest:
    """Resolve the views of a service, or of references, and the keys of entity rows.

    Raises:
        ValueError: rows with different keys, or a view that may not be read now.
    """
    from feast import utils

    columns, refs, join_keys, _, _, names, response = (
        utils._prepare_entities_to_read_from_online_store(
            registry=registry,
            project=project,
            features=features,
            entity_values=_columnar(rows),
            full_feature_names=full_feature_names,
            native_entity_values=True,
        )
    )
    return PreparedRequest(columns, refs, join_keys, names, response)


def _columnar(rows: Any) -> Mapping[str, Any]:
    """Entity rows as columns: Feast takes both."""
    if not isinstance(rows, list):
        columns: Mapping[str, Any] = rows
        return columns
    names = rows[0].keys() if rows else ()
    if any(row.keys() != names for row in rows):
        raise ValueError("All entity_rows must have the same keys.")
    return {name: [row[name] for row in rows] for name in names}


def drop_unneeded_columns(response: Any, names: set[str]) -> None:
    """Remove from an answer what was not requested."""
    from feast import utils

    utils._drop_unneeded_columns(response, names)


@functools.cache
def _served(kind: Any) -> Any:
    from feast.errors import FeastError

    def to_error_detail(self: FeastDynamoError) -> str:
        # Feast's remote clients make the error of it again, without this package.
        fields = {"module": FeastError.__module__, "class": FeastError.__name__}
        return json.dumps({**fields, "error": kind.__name__, "message": str(self)})

    members = {
        "__module__": kind.__module__,
        "__reduce__": lambda self: (kind, self.args, self.__dict__),
        "http_status_code": lambda self: self.http_status,
        "to_error_detail": to_error_detail,
    }
    return type(kind.__name__, (kind, FeastError), members)


def served(error: FeastDynamoError) -> FeastDynamoError:
    """The error as one of Feast's too, which its server answers with its HTTP status.

    It answers all others with 500. Our errors are none by themselves: the command line has them,
    and does not wait until Feast is loaded.
    """
    if not hasattr(error, "http_status_code"):
        kind: Any = type(error)
        error.__class__ = _served(kind)
    return error


class _HttpStatus:
    """Gives errors of a client's making, ours and Feast's, their HTTP status in Feast's server."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            return
        from feast.errors import FeatureNameCollisionError

        from feast_dynamo_ext.errors import BAD_REQUEST, FeastDynamoError

        if isinstance(error, FeastDynamoError):
            served(error)
        elif isinstance(error, FeatureNameCollisionError):
            error.http_status_code = lambda: BAD_REQUEST  # type: ignore[method-assign]


HTTP_STATUS = _HttpStatus()
"""A block around what Feast's server may have called."""


def track_online_read(seconds: float) -> None:
    """Count a read in Feast's own histogram, where that is on."""
    from feast import metrics

    metrics.track_online_store_read(seconds)


# Pushes


def check_vectors(table: Any, view: Any) -> None:
    """Refuse vectors that are not as long as their field says, or not all as long.

    Raises:
        ValueError: Feast's words.
    """
    from feast import utils

    utils._validate_vector_field_lengths(table, view)


def is_built_on_feasts(provider: str) -> bool:
    """Whether a provider of somebody's own converts pushes as Feast's do, not as ours does.

    Args:
        provider: its dotted name; one that this process has not loaded converts nothing.
    """
    module, _, name = provider.rpartition(".")
    made = getattr(sys.modules.get(module), name, None)
    bases = {f"{base.__module__}:{base.__name__}" for base in getattr(made, "__mro__", ())}
    return PROVIDER in bases and OUR_PROVIDER not in bases


# Materialization


def default_engine(provider: PassthroughProvider, make: Callable[[], Any]) -> None:
    """Give a provider its compute engine, if it has none yet."""
    if provider._batch_engine is None:
        provider._batch_engine = make()


def materialize_one(
    engine: LocalComputeEngine, registry: BaseRegistry, task: MaterializationTask
) -> BaseException | None:
    """Materialize a view as Feast's local engine does; returns its error."""
    from feast.infra.compute_engines.local.compute import LocalComputeEngine

    return LocalComputeEngine._materialize_one(engine, registry, task).error()


def is_incremental(task: MaterializationTask) -> bool:
    """Whether Feast's `materialize_incremental` made a task, by the function it carries."""
    made_in: str = getattr(task.tqdm_builder, "__qualname__", "")
    return made_in == f"FeatureStore.materialize_incremental.<locals>.{BARS}"


def job_id(task: MaterializationTask) -> str:
    """The id that Feast's local engine gives the job of a task."""
    return f"{task.feature_view.name}-{task.start_time}-{task.end_time}"


def views_to_materialize(
    store: FeatureStore, names: Sequence[str] | None, version: str | None
) -> list[Any]:
    """The feature views that Feast would materialize.

    Raises:
        ValueError: no such version, or a view that is not served online.
        FeastError: no such view.
    """
    given = list(names) if names else None
    number = store._validate_materialize_version(version, given)
    views: list[Any] = store._get_feature_views_to_materialize(given, version=number)
    return views


# The command line


def open_feature_store(folder: Path, yaml_file: Path) -> FeatureStore:
    """The feature store of a repo, as the `feast` command opens it.

    Raises:
        FeastConfigError: the file is not a configuration of Feast's.
    """
    import click
    from feast.repo_operations import create_feature_store

    context = click.Context(
        click.Command("feast"), obj={"CHDIR": folder, "FS_YAML_FILE": yaml_file}
    )
    store: FeatureStore = create_feature_store(context)
    return store


# Errors


@contextlib.contextmanager
def feasts_errors() -> Iterator[None]:
    """Turn what Feast raises for what a person got wrong into an error of one line.

    Raises:
        ConfigError: instead of an error of Feast's own, or its ValueError.
    """
    from feast.errors import FeastError

    try:
        yield
    except (FeastError, ValueError) as error:
        if isinstance(error, FeastError) or type(error) is ValueError:
            raise ConfigError(" ".join(str(error).split())) from error
        raise


@contextlib.contextmanager
def registry_errors() -> Iterator[None]:
    """Errors of a registry on S3 that is opened, and what `feasts_errors` turns into ours.

    Raises:
        AccessDeniedError: names the action. Feast takes a registry that it may not read for a
            missing one, and writes an empty one: its own error is of that.
        ConfigError, AwsError: another.
    """
    from feast.errors import S3RegistryBucketForbiddenAccess

    from feast_dynamo_ext.aws import aws_error, translated

    with feasts_errors():
        try:
            with translated("s3", "the registry"):
                yield
        except S3RegistryBucketForbiddenAccess as error:
            raise aws_error(
                "AccessDenied",
                str(error),
                service="s3",
                operation="HeadBucket",
                resource="the bucket of the registry",
            ) from error
        except AccessDeniedError as error:
            if error.operation != "PutObject":
                raise
            raise AccessDeniedError(
                "The registry on S3 is not there, or may not be read. Run `feast apply` if it was "
                "not run yet; else add the missing action, `s3:GetObject`, to the identity's IAM "
                "policy: `feast-dynamo docs iam`.",
                service="s3",
                operation="GetObject",
                code=error.code,
            ) from error


# Logs


class _NotOfThisStore(logging.Filter):
    """Drops warnings that are wrong for this package's online store.

    Of `serve_features_while_materializing` Feast warns that it typically has no effect with a
    registry in a file. It decides there too whether readers are refused during a run.

    After each materialize and push Feast offers to precompute services itself, which it can for
    Redis alone. For any other store it warns that the store cannot be scanned, or, where the redis
    package is not installed, that precomputing failed, with a traceback. This store has written
    the vectors by then.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        from feast.errors import FeastExtrasDependencyImportError

        if str(record.msg).startswith(SERVING_TEXT):
            return False
        if str(record.msg).startswith(SCANNING_TEXT):
            return "DynamoOnlineStore" not in (record.args or ())
        if str(record.msg).startswith(PRECOMPUTE_FAILED_TEXT) and record.exc_info:
            return record.exc_info[0] is not FeastExtrasDependencyImportError
        return True


_FILTER = _NotOfThisStore()


def hide_feasts_warnings() -> None:
    """Drop these warnings from now on; calling it again changes nothing."""
    for name in ("feast.feature_store", "feast.repo_config"):
        logging.getLogger(name).addFilter(_FILTER)
