"""Where Iceberg tables are kept: the catalog of a source, or of the offline store's block.

All catalogs reach AWS as the rest of this package does (credentials that renew themselves, role,
endpoint, certificates, proxy), unless a source says itself how.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import unquote

from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from pydantic import Field

from feast_dynamo_ext import aws
from feast_dynamo_ext.config import SettingsModel
from feast_dynamo_ext.errors import (
    ConfigError,
    DependencyError,
    FeastDynamoError,
    SourceNotFoundError,
    SourceReadError,
)
from feast_dynamo_ext.parquet.listing import S3_SCHEMES, TableChangedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from feast import RepoConfig
    from feast.data_source import DataSource

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.parquet.iceberg.rest import Endpoint


INSTALL = "pip install 'feast-dynamo-ext[iceberg]'"

EVENT_TIME_PROPERTY = "feast-dynamo.saved-event-time"
"""Entry of a snapshot's summary: the event time of a saved dataset, which Feast does not keep."""

CATALOG_NAME = "feast_iceberg"
"""Feast's own default; an SQL catalog keeps its tables under it."""


class CatalogConfig(SettingsModel):
    """The `catalog` of the offline store's block: where `feast-dynamo table` makes tables.

    Sources name their catalog themselves (Feast's `IcebergSource`); `feast-dynamo table create`
    prints the lines.
    """

    type: Literal["glue", "sql", "rest"] = "glue"
    """`glue`: AWS Glue's catalog. `sql`: a database, by default a file of SQLite. `rest`:
    Iceberg's REST protocol, which S3 Tables and others speak."""

    uri: str | None = None
    """Of `sql`: a URL of SQLAlchemy; a relative path of SQLite counts from the feature repo.
    Default: `sqlite:///data/iceberg.db`. Of `rest`: the endpoint. Of `glue`: none."""

    warehouse: str | None = None
    """Where new tables are put: an s3:// URI, or a folder, which counts from the feature repo. Of
    `rest` what its server calls a warehouse. Default: of `sql` the folder `data/warehouse`; of the
    others none."""

    namespace: str | None = None
    """Database of Glue, namespace of others. Default: the project's name."""

    token_env_var: str | None = None
    """Environment variable with the token of a REST catalog. Default: none."""

    properties: dict[str, str] = Field(default_factory=dict)
    """Further properties for pyiceberg, such as `rest.signing-name: s3tables`."""

    _expected: ClassVar[dict[str, str]] = {
        "type": "`glue`, `sql` or `rest`",
        "uri": "text",
        "warehouse": "text",
        "namespace": "text",
        "token_env_var": "text",
        "properties": "a mapping of texts",
    }


@dataclass(frozen=True)
class CatalogAddress:
    """A catalog, and what it is called in messages.

    Attributes:
        kind: pyiceberg's type of it.
        name: pyiceberg's name of it.
        uri: endpoint or database; empty where the kind has none.
        warehouse: where new tables are put.
        token_env_var: environment variable of its token, or None.
        properties: further ones.
        subject: who names it, for messages.
        is_vending: whether credentials of files are taken that a REST server gives out.
    """

    kind: str
    name: str
    uri: str
    warehouse: str
    token_env_var: str | None
    properties: Mapping[str, Any] = field(default_factory=dict)
    subject: str = "the catalog"
    is_vending: bool = True

    @classmethod
    def from_source(cls, source: Any, config: RepoConfig) -> CatalogAddress:
        """The catalog of Feast's `IcebergSource`.

        A source that names no catalog, as those of captured tables, has its table in that of the
        offline store's block, with files of its own place.

        Raises:
            ConfigError: its warehouse is a slip of the pen.
        """
        if not source.catalog_type:
            found = cls.from_config(config)
            place = folder_uri(source.warehouse, "sql", config)
            return replace(
                found,
                warehouse=found.warehouse if found.kind == "rest" else place,
                subject=f"Source `{source.name}`",
            )
        _check_no_slip(f"Source `{source.name}`", source.catalog_type, source.warehouse or "")
        return cls(
            source.catalog_type,
            source.catalog_name,
            _database(source.endpoint or "", config),
            folder_uri(source.warehouse or "", source.catalog_type, config),
            source.token_env_var,
            source.catalog_properties,
            f"Source `{source.name}`",
            getattr(source, "credential_vending", True),
        )

    @classmethod
    def from_config(cls, config: RepoConfig) -> CatalogAddress:
        """The catalog of the offline store's block.

        Raises:
            ConfigError: there is none, or it lacks its address.
        """
        found: CatalogConfig = config.offline_store.catalog_config()
        uri, warehouse = source_fields(found)
        return cls(
            found.type,
            CATALOG_NAME,
            _database(uri, config),
            folder_uri(warehouse, found.type, config),
            found.token_env_var,
            found.properties,
            "`catalog` of feature_store.yaml",
        )

    @property
    def identity(self) -> tuple[str, ...]:
        """What is another of another catalog; a REST server may have several."""
        return (self.kind, self.uri, self.warehouse if self.kind == "rest" else "")


def source_fields(found: CatalogConfig) -> tuple[str, str]:
    """(endpoint, warehouse) as a source writes them.

    Raises:
        ConfigError: one is missing, or is not of its form.
    """
    uri, warehouse = found.uri or "", found.warehouse or ""
    _check_form(found.type, uri, warehouse)
    if found.type == "sql":
        return uri or "sqlite:///data/iceberg.db", warehouse or "data/warehouse"
    # A REST server may have but one warehouse.
    given, missing = (uri, "uri") if found.type == "rest" else (warehouse, "warehouse")
    if not given:
        what = "the endpoint of the catalog" if missing == "uri" else "where tables are put"
        raise ConfigError(
            f"offline_store of feature_store.yaml: `catalog` is of the type `{found.type}` and "
            f"lacks `{missing}`, {what}. Set it: `catalog: {{type: {found.type}, {missing}: "
            f"{'https://...' if missing == 'uri' else 's3://bucket/prefix'}}}`, or "
            "`catalog: {type: sql}` for a file on this machine."
        )
    return uri, warehouse


URL = re.compile(r"[A-Za-z][A-Za-z0-9+_.-]*://")
S3_SLIP = re.compile(r"s3[an]?(:(?!//[^/])|//)", re.IGNORECASE)
"""What begins like a URI of S3 and is none, and would be a folder on this machine."""


def _check_form(kind: str, uri: str, warehouse: str) -> None:
    """Refuse what is no URL of a database, or no place of tables; `rest` looks at endpoints.

    Raises:
        ConfigError: says what it looks like.
    """
    what = wanted = ""
    if kind == "sql" and uri and not URL.match(uri):
        what, wanted = f"`uri: {uri}`", f"a URL of SQLAlchemy, such as `sqlite:///{uri}`"
    elif kind == "glue" and warehouse and not re.match("s3://[^/]", warehouse):
        wanted = "what Glue's tables need, an `s3://bucket/prefix`"
        what = f"`warehouse: {warehouse}`"
    if what:
        raise ConfigError(
            f"offline_store of feature_store.yaml: `catalog` is of the type `{kind}`, and its "
            f"{what} is not {wanted}. Correct it."
        )
    _check_no_slip("offline_store of feature_store.yaml: `catalog`", kind, warehouse)


def _check_no_slip(subject: str, kind: str, warehouse: str) -> None:
    """Refuse a folder that is meant to be on S3.

    Raises:
        ConfigError: says how it is written.
    """
    if kind == "sql" and S3_SLIP.match(warehouse):
        raise ConfigError(
            f"{subject} has the warehouse `{warehouse}`, which would be a folder on this machine. "
            "Write a place on S3 as `s3://bucket/prefix`."
        )


SQLITE = "sqlite:///"


def _database(uri: str, config: RepoConfig) -> str:
    """A URL of SQLite whose relative path counts from the repo, and which waits for its turn."""
    if not uri.startswith(SQLITE):
        return uri
    path, _, options = uri.removeprefix(SQLITE).partition("?")
    if path and not path.startswith((":memory:", "file:")):
        # As what is written in the setting, the repo's folder becomes part of a URL.
        repo = str(Path(config.repo_path or "").absolute())
        path = str(Path(repo.replace("%", "%25").replace("?", "%3F"), path))
    if "timeout" not in options:
        options = f"{options}&timeout=60".lstrip("&")
    return f"{SQLITE}{path}?{options}"


ENDS_A_PATH = re.compile(r"[?#\t\r\n]")
"""In a file's URI: what pyiceberg and others take for the end of its path, or leave out."""


def folder_uri(warehouse: str, kind: str, config: RepoConfig) -> str:
    """A warehouse as a URI; a relative folder counts from the repo.

    Raises:
        ConfigError: files of tables there would be written elsewhere.
    """
    if kind == "rest" or not warehouse:
        return warehouse
    is_uri = "://" in warehouse or warehouse.startswith("file:")
    uri = warehouse if is_uri else f"file://{Path(config.repo_path or '', warehouse).absolute()}"
    cut = ENDS_A_PATH.search(uri)
    if cut:
        raise ConfigError(
            f"Iceberg tables cannot be in {uri!r}: readers of Iceberg end its path at the "
            f"{cut[0]!r}. Set `catalog: {{warehouse: ...}}` of offline_store to another place, or "
            "move the feature repo."
        )
    return uri


def is_iceberg(source: DataSource) -> bool:
    """Whether a source is Feast's `IcebergSource`, or one that is made of it."""
    return bool(source.source_type() == DataSourceProto.BATCH_ICEBERG)


def table_name(source: Any, config: RepoConfig) -> str:
    """Namespace and table of a source."""
    namespace = source.namespace
    if not namespace:
        namespace = config.offline_store.catalog_config().namespace or config.project
    return f"{namespace}.{source.iceberg_table}"


def load_table(source: Any, config: RepoConfig) -> Any:
    """The table of a source, as pyiceberg has it.

    Args:
        source: Feast's `IcebergSource`.
        config: the repo's config.

    Raises:
        DependencyError: `pyiceberg` is not installed, or what it needs for the catalog.
        ConfigError: the environment variable of the catalog's token is not set.
        SourceNotFoundError: there is no such table.
        SourceReadError: catalog or metadata cannot be read.
    """
    address, name = CatalogAddress.from_source(source, config), table_name(source, config)
    with catalog_errors(address, name):
        return opened(address, config.offline_store.aws()).load_table(name)


def opened(address: CatalogAddress, settings: AwsSettings) -> Any:
    """A catalog of pyiceberg's; to be called, and used, in `catalog_errors`."""
    try:
        from pyiceberg.catalog import load_catalog
    except ImportError as error:
        raise DependencyError(
            f"{address.subject} is of Iceberg tables, which the library `pyiceberg` reads and "
            f"writes. Run `{INSTALL}`."
        ) from error
    if address.uri.startswith(SQLITE):
        with contextlib.suppress(OSError):  # then the database says that it cannot be opened
            path = unquote(address.uri.removeprefix(SQLITE).partition("?")[0])
            Path(path).parent.mkdir(parents=True, exist_ok=True)
    if address.kind == "rest":
        from feast_dynamo_ext.parquet.iceberg import rest

        _endpoint(address).check()
        properties = _properties(address, settings)
        if not (address.is_vending and properties.get(rest.DELEGATION, "default")):
            properties[rest.DELEGATION] = None
        return sure_of_conflicts(rest.BoundedRestCatalog(address.name, **properties))
    catalog = load_catalog(address.name, **_properties(address, settings))
    return catalog if address.kind == "sql" else sure_of_conflicts(catalog)


def sure_of_conflicts(catalog: Any) -> Any:
    """A catalog that takes no commit for a conflict with itself.

    Clients and proxies repeat a request whose answer is lost; the second is refused because of
    the first. After a conflict pyiceberg deletes the manifests, which the table then has.
    """
    from pyiceberg.exceptions import CommitFailedException
    from pyiceberg.table import CommitTableResponse
    from pyiceberg.table.update import AddSnapshotUpdate

    commit = catalog.commit_table

    def commit_table(table: Any, requirements: Any, updates: Any) -> Any:
        try:
            return commit(table, requirements, updates)
        except CommitFailedException:
            added = {
                each.snapshot.snapshot_id
                for each in updates
                if isinstance(each, AddSnapshotUpdate)
            }
            if not added:
                raise
            now = catalog.load_table(table.name())
            if not added <= {found.snapshot_id for found in now.snapshots()}:
                raise
            response = {"metadata": now.metadata, "metadata-location": now.metadata_location}
            return CommitTableResponse.model_validate(response)

    catalog.commit_table = commit_table
    return catalog


def ensure_namespace(catalog: Any, namespace: str) -> None:
    """Make a namespace where there is none: who may make tables in it may not make others."""
    if not catalog.namespace_exists(namespace):
        catalog.create_namespace_if_not_exists(namespace)


def file_settings(table: Any, settings: AwsSettings) -> AwsSettings:
    """How the files of a table are reached: with credentials that its catalog vends, if any."""
    found: AwsSettings = getattr(table.io, "settings", settings)
    return found


@contextlib.contextmanager
def catalog_errors(address: CatalogAddress, name: str) -> Iterator[None]:
    """Errors of a catalog and of the files of a table as ours.

    Raises: as `load_table`.
    """
    try:
        from pyiceberg.exceptions import (
            NoSuchNamespaceError,
            NoSuchTableError,
            NotInstalledError,
        )
    except ImportError:
        yield  # `opened` says what is missing
        return
    try:
        with aws.s3_translated(name), aws.translated(address.kind, name):
            yield
    except FeastDynamoError:
        raise
    except (NoSuchNamespaceError, NoSuchTableError) as error:
        raise SourceNotFoundError(
            f"{address.subject}: the catalog has no table {name}: {error}. Check "
            "`namespace`, `table` and `warehouse`, or make it with `feast-dynamo table create`."
        ) from error
    except Exception as error:  # each kind of catalog raises errors of its own
        if missing := _missing_driver(address, error):
            scheme = address.uri.partition(":")[0]
            raise DependencyError(
                f"{address.subject}: the driver of the database `{scheme}://` is not "
                f"installed: {missing}. Install it with pip, or name one that is installed in the "
                "scheme of the URL, such as `postgresql+psycopg://`."
            ) from error
        if not isinstance(error, (NotInstalledError, ImportError)):
            raise _unusable(address, name, error) from error
        raise DependencyError(
            f"{address.subject}: pyiceberg needs more for a catalog of the type "
            f"`{address.kind}`: {error}. Run `{INSTALL}`."
        ) from error


def _missing_driver(address: CatalogAddress, error: Exception) -> str:
    """What is said of a driver, or a dialect, of a database that is missing; or nothing."""
    if address.kind != "sql":
        return ""
    # pyiceberg takes it for SQLAlchemy itself.
    found = error.__cause__ or error.__context__ or error
    is_driver = isinstance(found, ModuleNotFoundError) and not (found.name or "").startswith(
        ("sqlalchemy", "pyiceberg")
    )
    return str(found) if is_driver or type(found).__name__ == "NoSuchModuleError" else ""


def _unusable(address: CatalogAddress, name: str, error: Exception) -> FeastDynamoError:
    """What a catalog or a table's metadata raised, as our error."""
    if address.kind == "rest" and not isinstance(error, FileNotFoundError):
        return _endpoint(address).error(name, error)
    said = " ".join(str(error).split()).rstrip(".")
    kind = TableChangedError if isinstance(error, FileNotFoundError) else SourceReadError
    return kind(
        f"{address.subject}: the Iceberg table {name} cannot be used: {type(error).__name__}: "
        f"{said}. Check the catalog, and that the table's files may be read."
    )


def _endpoint(address: CatalogAddress) -> Endpoint:
    from feast_dynamo_ext.parquet.iceberg.rest import Endpoint

    uri = str(address.properties.get("uri", address.uri))
    given = (str(address.properties.get(name, "")) for name in ("token", "credential"))
    secrets = (each.rpartition(":")[2] for each in given)  # of a credential, after the client's id
    return Endpoint(address.subject, uri, address.token_env_var, tuple(filter(None, secrets)))


def _properties(address: CatalogAddress, settings: AwsSettings) -> dict[str, Any]:
    """What `load_catalog` is given: the address's own properties before those of the config."""
    named = {"type": address.kind, "uri": address.uri, "warehouse": address.warehouse}
    if address.token_env_var:
        named["token"] = os.environ.get(address.token_env_var, "").strip()
        if not named["token"]:
            raise ConfigError(
                f"{address.subject} takes the catalog's token from the environment variable "
                f"`{address.token_env_var}`, which is not set. Set it."
            )
    given = {name: value for name, value in named.items() if value}
    return {**_of_aws(address, settings), **given, **address.properties}


S3, SETTINGS = "feast-dynamo.s3", "feast-dynamo.settings"
"""Names of the properties that make the filesystem of `file_io`, and say how S3 is reached."""
OWN_ACCESS = re.compile(r"py-io-impl|s3\..*|.*\.(access-key-id|profile-name)|botocore_session")
"""Properties by which a source says itself how pyiceberg reaches AWS."""


def _of_aws(address: CatalogAddress, settings: AwsSettings) -> dict[str, Any]:
    """How AWS is reached: as the rest of this package does, unless the source says it itself."""
    if address.warehouse.startswith(("/", "file:")):
        return {}
    if not any(OWN_ACCESS.fullmatch(name) for name in address.properties):
        session = aws.botocore_session(settings)
        found = {
            "client.region": session.get_config_variable("region"),
            # Of the catalogs of AWS: its profile's certificates and credentials.
            "botocore_session": session,
            "py-io-impl": f"{__name__}.{file_io.__name__}",
            # One for the metadata and all manifests, and none where they are not on S3.
            S3: functools.cache(lambda: aws.filesystem("s3://metadata", settings)[0]),
            SETTINGS: settings,
        }
        if address.kind == "glue":
            # That of S3, where one server on this machine stands for all of AWS; else its own.
            endpoint = settings.endpoint_url
            found |= {"glue.endpoint": endpoint} if aws.is_on_loopback(endpoint) else {}
        return found | _of_tls(address, settings)
    session = aws.session(settings)
    found = {
        **_of_tls(address, settings),
        "client.region": session.region_name,
        "s3.endpoint": aws.endpoint_url("s3", settings, session),
        "s3.proxy-uri": aws.s3_proxy(settings, session),
    }
    with aws.translated("s3", address.subject):
        credentials = session.get_credentials()
        frozen = credentials.get_frozen_credentials() if credentials else None
    if frozen is not None:
        found |= {
            "client.access-key-id": frozen.access_key,
            "client.secret-access-key": frozen.secret_key,
            "client.session-token": frozen.token,
        }
    return {name: value for name, value in found.items() if value}


def _of_tls(address: CatalogAddress, settings: AwsSettings) -> dict[str, Any]:
    """Certificates for the endpoint of a REST catalog; REQUESTS_CA_BUNDLE comes first."""
    if address.kind != "rest":
        return {}
    return {"ssl": {"cabundle": aws.ca_bundle(aws.session(settings))}}


def file_io(properties: dict[str, Any]) -> Any:
    """The FileIO of pyiceberg's own, with the S3 of this package; `py-io-impl` names it.

    pyiceberg's S3 takes neither a CA bundle nor credentials that renew themselves.
    """
    from pyiceberg.io.pyarrow import PyArrowFileIO

    made: Any = PyArrowFileIO(properties)
    made.s3, made.settings, others = properties[S3], properties[SETTINGS], made.fs_by_scheme

    def filesystem(scheme: str, host: str | None = None) -> Any:
        return made.s3() if f"{scheme}://" in S3_SCHEMES else others(scheme, host)

    made.fs_by_scheme = filesystem
    return made
