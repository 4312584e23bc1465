"""Which table a command is about: that of a view, or one by its name."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
from typing import TYPE_CHECKING, Any

import click

from feast_dynamo_ext._feast import registry_errors
from feast_dynamo_ext.cli.repo import FiniteFloat, Output, open_store
from feast_dynamo_ext.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from feast import FeatureStore

    from feast_dynamo_ext.capture.table_source import DynamoDBTableSource
    from feast_dynamo_ext.parquet.iceberg.commits import TableHandle


SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT])(i?)B")
DEFAULT_MEMORY = "1GB"

view_argument = click.argument("view", metavar="VIEW")
source_argument = click.argument("source", metavar="SOURCE")
table_option = click.option(
    "--table", metavar="NAME", help="Name of the table.  [default: the view's]"
)
read_units_option = click.option(
    "--read-units",
    type=FiniteFloat(0, min_open=True),
    metavar="N",
    help="Of --scan: read units a second at most.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Change nothing; say what would be.")


@dataclasses.dataclass(frozen=True)
class Named:
    """What a command is about.

    Attributes:
        store: the feature store.
        view: the view; None where a table or a captured source was named.
        handle: its table.
    """

    store: FeatureStore
    view: Any
    handle: TableHandle

    @property
    def view_name(self) -> str:
        """The view's name, or the table's."""
        return self.view.name if self.view is not None else self.handle.name


def store_of(repo: Path) -> FeatureStore:
    """The repo's store.

    Raises:
        ConfigError: its offline store is another.
    """
    store = open_store(repo)
    from feast_dynamo_ext.offline_store import S3ParquetOfflineStoreConfig

    config: Any = store.config.offline_store
    if not isinstance(config, S3ParquetOfflineStoreConfig):
        raise ConfigError(
            f"The offline store of this repo is `{config.type}`, which keeps no history tables. "
            "Set `type: feast_dynamo_ext.S3ParquetOfflineStore` in offline_store of "
            "feature_store.yaml."
        )
    return store


def views_of(store: FeatureStore) -> dict[str, Any]:
    """Views with a batch source, by name.

    Raises:
        ConfigError, AwsError: the registry cannot be read.
    """
    with registry_errors():
        views: list[Any] = list(store.list_all_feature_views())
    return {view.name: view for view in views if getattr(view, "batch_source", None) is not None}


def view_of(store: FeatureStore, name: str) -> Any:
    """The view of a name.

    Raises:
        ConfigError: there is none.
    """
    from feast_dynamo_ext.config import did_you_mean

    views = views_of(store)
    if name not in views:
        if not views:
            raise ConfigError("The registry has no feature view: run `feast apply` first.")
        raise ConfigError(
            f"There is no feature view `{name}`. {did_you_mean(name, views, 'There are')}"
        )
    return views[name]


def sources_of(store: FeatureStore) -> list[DynamoDBTableSource]:
    """All captured sources of the registry.

    Raises:
        ConfigError, AwsError: the registry cannot be read.
    """
    from feast_dynamo_ext.capture.table_source import DynamoDBTableSource

    with registry_errors():
        found: list[Any] = list(store.list_data_sources())
    return [each for each in found if isinstance(each, DynamoDBTableSource)]


def source_of(store: FeatureStore, name: str) -> DynamoDBTableSource:
    """The captured source of a name.

    Raises:
        ConfigError: there is none.
    """
    from feast_dynamo_ext.config import did_you_mean

    found = {each.name: each for each in sources_of(store)}
    if name not in found:
        if not found:
            raise ConfigError(
                "The registry has no `DynamoDBTableSource`. Declare one in definitions.py, define "
                "a view on it, and run `feast apply`."
            )
        raise ConfigError(
            f"There is no captured source `{name}`. {did_you_mean(name, found, 'There are')}"
        )
    return found[name]


def named_table(repo: Path, name: str, named_table: str | None = None) -> Named:
    """The table of a view or of a captured source, or NAMESPACE.TABLE of the catalog."""
    from feast_dynamo_ext.parquet.iceberg.catalog import CatalogAddress
    from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
    from feast_dynamo_ext.parquet.iceberg.view_table import handle_of

    store = store_of(repo)
    if "." in name and name not in views_of(store):
        address = CatalogAddress.from_config(store.config)
        settings: Any = store.config.offline_store
        return Named(store, None, TableHandle(address, name, settings.aws()))
    captured = {each.name: each for each in sources_of(store)}
    if name in captured and name not in views_of(store):
        return Named(store, None, TableHandle.from_source(captured[name], store.config))
    view = view_of(store, name)
    return Named(store, view, handle_of(view, store.config, named_table))


def other_readers(store: FeatureStore, view: Any) -> list[Any]:
    """Further views of the same source."""
    name = view.batch_source.name
    return [
        other
        for other in views_of(store).values()
        if other.name != view.name and other.batch_source.name == name
    ]


@contextlib.contextmanager
def answer_on_stdout(output: Output) -> Iterator[None]:
    """With --json, what Feast and others print goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr) if output.as_json else contextlib.nullcontext():
        yield


def _bytes(size: str) -> int:
    found = SIZE.fullmatch(size)
    if found is None:
        raise ConfigError(f"offline_store of feature_store.yaml: `memory_limit` is `{size}`.")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** (1 + "KMGT".index(found[2])))


def memory_of(store: FeatureStore) -> int:
    """Bytes that `memory_limit` of the offline store gives."""
    config: Any = store.config.offline_store
    return _bytes(config.memory_limit or DEFAULT_MEMORY)
