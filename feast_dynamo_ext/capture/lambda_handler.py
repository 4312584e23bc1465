"""AWS Lambda's entry point: changes of captured tables, as an event source mapping delivers them.

A function of this package's image (`feast-dynamo capture lambda-image`) has the handler
`feast_dynamo_ext.capture.lambda_handler.handler`, and mappings of the streams of one or of several
tables. Each batch goes online, then into the history in one commit::

    records -> rows -> online store, view by view ----> what failed of it ---+
                    -> history and quarantine, once --> all of it, or none --+-> the answer

Lambda delivers a batch again, cut otherwise or the same, until nothing of it fails: online the
newest wins, and the history leaves out what it has. A batch of which nothing could be done is an
error of the function, so that a mapping without `ReportBatchItemFailures` loses nothing either.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator

from feast_dynamo_ext import _feast
from feast_dynamo_ext.capture.apply_checks import check_history
from feast_dynamo_ext.capture.captured import history_of, with_event_columns
from feast_dynamo_ext.capture.dynamo_table import DynamoTable, dynamodb_client
from feast_dynamo_ext.capture.stream.lambda_image import refuse_local
from feast_dynamo_ext.capture.stream.online_changes import OnlineChanges, ViewOutcome
from feast_dynamo_ext.capture.stream.stream_records import converted, stream_records
from feast_dynamo_ext.capture.table_source import DynamoDBTableSource
from feast_dynamo_ext.capture.values.change_rows import RecordReader
from feast_dynamo_ext.config import SettingsModel, did_you_mean, refuse_unknown
from feast_dynamo_ext.errors import CaptureError, ConfigError, FeastDynamoError
from feast_dynamo_ext.forks import Lock
from feast_dynamo_ext.parquet.iceberg.catalog import folder_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from feast import FeatureStore

    from feast_dynamo_ext.capture.history import CapturedHistory
    from feast_dynamo_ext.capture.stream.stream_records import StreamRecord

logger = logging.getLogger(__name__)

PREFIX = "FEAST_DYNAMO_CAPTURE_"
"""How the names of the function's environment variables begin."""

PLACE = "lambda"
"""What stands in the quarantine in place of a shard, which Lambda does not name."""

IN_LAMBDA = "AWS_LAMBDA_FUNCTION_NAME"
"""Environment variable that every function has."""


class LambdaSettings(SettingsModel):
    """What a function's environment variables say, each named `FEAST_DYNAMO_CAPTURE_` and so on.

    The feature store is that of Feast's: feature_store.yaml in `REPO`, or the whole file as base64
    in `FEATURE_STORE_YAML_BASE64`, as `feast serve` takes it.
    """

    _expected: ClassVar[dict[str, str]] = {
        "repo": "the folder of feature_store.yaml",
        "sources": "names, separated by commas",
        "writes": "online, history, or both, separated by a comma",
    }

    repo: str = ""
    """Folder of feature_store.yaml. Default: `LAMBDA_TASK_ROOT`, the folder of the function."""

    sources: tuple[str, ...] = ()
    """Names of captured sources, separated by commas. Default: all of the registry."""

    writes: tuple[str, ...] = ("online", "history")
    """What is written: `online`, `history`, or both, separated by a comma. Two functions on one
    stream, one for each, let rows go online at once and the history grow by larger commits."""

    @field_validator("sources", "writes", mode="before")
    @classmethod
    def _names(cls, given: Any) -> Any:
        if isinstance(given, str):
            return tuple(filter(None, (name.strip() for name in given.split(","))))
        return given

    @field_validator("writes")
    @classmethod
    def _known(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        if not given or set(given) - {"online", "history"}:
            raise ValueError("must be online, history, or both, separated by a comma")
        return given

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> LambdaSettings:
        """The settings of a function.

        Raises:
            ConfigError: a variable that is unknown, or says what cannot be.
        """
        subject = "The function's environment variables"
        given = {
            name.removeprefix(PREFIX).lower(): value
            for name, value in environment.items()
            if name.startswith(PREFIX)
        }
        refuse_unknown(subject, PREFIX, map(str.upper, given), map(str.upper, cls.model_fields))
        given.setdefault("repo", environment.get("LAMBDA_TASK_ROOT", "."))
        return cls.model_validate(given, context={"subject": subject, "prefix": PREFIX.lower()})


@dataclass(frozen=True)
class CapturedSource:
    """A source, ready to take changes of its table.

    Attributes:
        source: the source.
        reader: makes rows of its records.
        online: brings them online; None where the function does not.
        history: takes them; None where the function does not.
    """

    source: DynamoDBTableSource
    reader: RecordReader
    online: OnlineChanges | None
    history: CapturedHistory | None

    @classmethod
    def from_source(
        cls,
        source: DynamoDBTableSource,
        store: FeatureStore,
        client: Any,
        writes: Sequence[str],
    ) -> CapturedSource:
        """Of a source as it is declared now; its history table is made where there is none.

        Raises:
            ConfigError, CaptureError: what cannot work, with what to do.
            OfflineStoreError: the catalog refuses. AwsError: AWS does.
        """
        config = store.config
        table = DynamoTable.from_table(client, source)
        columns, history = history_of(source, table, config)
        place = folder_uri(source.history, "sql", config)
        check_history(source, history.handle.load(), columns.keys, place)
        state = history.state()
        if state is not None and table.id not in {"", state.table_id}:
            logger.warning(
                "source %s: table %s was made anew since its last export: begin again with the "
                "whole of it, `feast-dynamo capture sync --full`",
                source.name,
                table.name,
            )
        return cls(
            source,
            RecordReader(with_event_columns(columns, source, store)),
            OnlineChanges.from_store(store, source) if "online" in writes else None,
            history if "history" in writes else None,
        )

    def take(self, records: Sequence[StreamRecord]) -> Taken:
        """Bring changes online, and make them count in the history, once."""
        changes = converted(self.reader, records)
        failed: set[str] = set()
        errors: list[Exception] = []
        online = ViewOutcome("")
        if self.online is not None:
            online = self.online.apply(changes.rows).total
            failed |= online.failed
            errors += filter(None, [online.error])
        rows = quarantined = 0
        if self.history is not None:
            try:
                counts = self.history.add_changes(changes)
            except FeastDynamoError as error:
                failed |= {record.id for record in records}
                errors.insert(0, error)
            else:
                rows, quarantined = counts.rows, counts.quarantined
        logger.info(
            "source %s: %d records, %d rows new in the history, %d in quarantine; online %d "
            "written, %d deleted, %d passed over; %d failed; %.1f s after the last",
            self.source.name,
            len(records),
            rows,
            quarantined,
            online.written,
            online.deleted,
            online.passed_over,
            len(failed),
            time.time() - max(record.written for record in records) / 1e6,
        )
        return Taken(frozenset(failed), tuple(errors))


@dataclass(frozen=True)
class Taken:
    """What of a batch failed.

    Attributes:
        failed: ids of the changes that are to be delivered again.
        errors: why.
    """

    failed: frozenset[str]
    errors: tuple[Exception, ...]


@dataclass(frozen=True)
class StreamCapture:
    """Captures the tables of several sources.

    Attributes:
        sources: by the name of their table.
    """

    sources: Mapping[str, Sequence[CapturedSource]]

    @classmethod
    def from_store(cls, store: FeatureStore, settings: LambdaSettings) -> StreamCapture:
        """For the captured sources of a registry.

        Raises:
            ConfigError: there are none, or none of a name that is set.
            CaptureError, OfflineStoreError, AwsError: see `CapturedSource.from_source`.
        """
        declared = {
            each.name: each
            for each in store.list_data_sources()
            if isinstance(each, DynamoDBTableSource)
        }
        if not declared:
            raise ConfigError(
                "The registry has no `DynamoDBTableSource`: run `feast apply` with one first, or "
                "correct `registry` in feature_store.yaml."
            )
        for name in settings.sources:
            if name not in declared:
                hint = did_you_mean(name, declared, "There are")
                raise ConfigError(f"{PREFIX}SOURCES: there is no captured source `{name}`. {hint}")
        chosen = [declared[name] for name in settings.sources or declared]
        client = dynamodb_client(store.config)
        found: dict[str, list[CapturedSource]] = {}
        for source in chosen:
            made = CapturedSource.from_source(source, store, client, settings.writes)
            found.setdefault(source.table, []).append(made)
        return cls(found)

    def handle(self, event: Any) -> dict[str, list[dict[str, str]]]:
        """Take an event of Lambda.

        Returns:
            What Lambda is to deliver again, by the numbers of the records in their stream.

        Raises:
            CaptureError: the event is of no captured table.
            FeastDynamoError: nothing of it could be done.
        """
        failed: list[str] = []
        errors: list[Exception] = []
        total = 0
        by_table = self._by_table(event)
        for table, given in by_table.items():
            records = stream_records(given, PLACE)
            total += len(records)
            ids: set[str] = set()
            for source in self.sources[table]:
                taken = source.take(records)
                ids |= taken.failed
                errors += taken.errors
            failed += [record.sequence for record in records if record.id in ids]
        for error in errors:
            logger.error("%s", error)
        if failed and len(failed) == total:
            # Counted as the function's error; and a mapping without the report keeps the batch.
            raise errors[0]
        return {"batchItemFailures": [{"itemIdentifier": number} for number in failed]}

    def _by_table(self, event: Any) -> dict[str, list[Any]]:
        records = event.get("Records") if isinstance(event, Mapping) else None
        if not isinstance(records, list):
            raise CaptureError(
                "The event has no `Records`. Invoke the function by an event source mapping of a "
                "table's stream."
            )
        found: dict[str, list[Any]] = {}
        for record in records:
            table = _table_of(record)
            if table not in self.sources:
                hint = did_you_mean(table, self.sources, "The function captures the tables")
                raise CaptureError(
                    f"The event is of the table `{table}`, which no source of the function "
                    f"captures. {hint} Remove the mapping, or add a source: {PREFIX}SOURCES, or "
                    "`feast apply`."
                )
            found.setdefault(table, []).append(record)
        return found


def _table_of(record: Any) -> str:
    """The table of a record: arn:aws:dynamodb:region:account:table/NAME/stream/LABEL."""
    arn = record.get("eventSourceARN", "") if isinstance(record, Mapping) else ""
    service, _, resource = str(arn).rpartition(":table/")
    name, _, stream = resource.partition("/stream/")
    if ":dynamodb:" not in f"{service}:" or not name or not stream:
        raise CaptureError(
            f"A record of the event is of `{arn}`, which is no stream of a DynamoDB table. Invoke "
            "the function by an event source mapping of a table's stream."
        )
    return name


def open_capture(environment: Mapping[str, str]) -> tuple[StreamCapture, float]:
    """What a function captures, and for how many seconds that is known.

    Raises:
        ConfigError: settings or feature_store.yaml cannot work.
        FeastDynamoError: see `StreamCapture.from_store`.
    """
    settings = LambdaSettings.from_environment(environment)
    folder = Path(settings.repo).absolute()
    yaml_file = folder / "feature_store.yaml"
    if not yaml_file.exists() and not environment.get("FEATURE_STORE_YAML_BASE64"):
        raise ConfigError(
            f"There is no {yaml_file}. Copy it into the image, or name its folder in "
            f"{PREFIX}REPO, or put the file as base64 into FEATURE_STORE_YAML_BASE64."
        )
    with _feast.registry_errors():
        store = _feast.open_feature_store(folder, yaml_file)
        if environment.get(IN_LAMBDA):
            refuse_local(store)
        capture = StreamCapture.from_store(store, settings)
    kept_s = float(getattr(store.config.registry, "cache_ttl_seconds", 0) or 0)
    return capture, kept_s or float("inf")


@dataclass
class Function:
    """A function in one process: opened at its first event, and anew as declarations may change.

    Attributes:
        environment: of the process; credentials are in it.
        clock: seconds of some clock.
    """

    environment: Mapping[str, str] = field(repr=False)
    clock: Callable[[], float] = time.monotonic
    _opened: StreamCapture | None = field(default=None, init=False)
    _until_s: float = field(default=0.0, init=False)
    _lock: Lock = field(default_factory=Lock, init=False)

    def __call__(self, event: Any, context: Any = None) -> dict[str, Any]:  # noqa: ARG002 - Lambda's
        """Take an event; see `StreamCapture.handle`."""
        return self._capture().handle(event)

    def _capture(self) -> StreamCapture:
        with self._lock:
            if self._opened is None or self.clock() >= self._until_s:
                self._opened, kept_s = open_capture(self.environment)
                self._until_s = self.clock() + kept_s
            return self._opened


handler = Function(os.environ)
"""What Lambda calls with an event and its context."""

if os.environ.get("AWS_LAMBDA_RUNTIME_API"):
    logging.getLogger("feast_dynamo_ext").setLevel(logging.INFO)
