"""A catalog that speaks Iceberg's REST protocol, over pyiceberg's SQL catalog.

It answers what pyiceberg's client asks for tables, for a bearer token; and it can be told to fail.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from pyiceberg.catalog.rest import CreateTableRequest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NamespaceNotEmptyError,
    NoSuchNamespaceError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC
from pyiceberg.table import CommitTableRequest
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from pathlib import Path

TOKEN = "let-me-in"
WAREHOUSE = "prod"
PREFIX = "of-prod"
SECRET = "me:let-me-ask"
"""Of a client that asks for the token."""

STATUS = {
    NoSuchTableError: 404,
    NoSuchNamespaceError: 404,
    CommitFailedException: 409,
    NamespaceAlreadyExistsError: 409,
    NamespaceNotEmptyError: 409,
    TableAlreadyExistsError: 409,
    ValueError: 400,
}

LOST = "lost"
"""What is to be done is done, and the connection closed without an answer."""

TWICE = "twice"
"""It is done twice, as by a proxy that repeats a request; the second answer is given."""


@dataclass
class RestServer:
    """A running catalog.

    Attributes:
        uri: endpoint.
        tables: pyiceberg's catalog with the tables, for other writers.
        script: by operation, what becomes of the next requests: None for the usual, a status that
            is answered instead, `LOST`, `TWICE`, or a function that is called before.
        requests: operations that were asked for, in order.
        headers: of the requests.
        config: of tables: what the server gives out with each.
        storage_credentials: the same, by prefixes of locations.
        settings: of the catalog: answer to the first request of a client.
        scheme: how the `Authorization` header begins that is demanded.
        says: what errors say, given the request's headers.
    """

    uri: str
    tables: SqlCatalog
    script: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    config: dict[str, str] = field(default_factory=dict)
    storage_credentials: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    scheme: str = f"Bearer {TOKEN}"
    says: Callable[[dict[str, str]], str] = lambda _: "no"

    def count(self, operation: str) -> int:
        """How often an operation was asked for."""
        return self.requests.count(operation)


@contextlib.contextmanager
def rest_catalog(
    folder: Path,
    warehouse: str | None = None,
    tls: ssl.SSLContext | None = None,
    **properties: str,
) -> Iterator[RestServer]:
    """A catalog on a free port.

    Args:
        folder: where it keeps its database, and the tables, unless `warehouse` says where.
        warehouse: URI.
        tls: of a server that speaks TLS.
        properties: with which the server itself reaches tables.
    """
    tables = SqlCatalog(
        "served",
        uri=f"sqlite:///{folder}/served.db",
        warehouse=warehouse or f"file://{folder}/served",
        **properties,
    )
    found = RestServer("", tables)
    turn = threading.RLock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            headers = dict(self.headers)
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            path = urlsplit(self.path)
            parts = [unquote(part) for part in path.path.split("/")[1:]]
            query = parse_qs(path.query)
            operation = _operation(self.command, parts)
            found.requests.append(operation)
            found.headers.append(headers)
            if operation == "POST tokens":
                is_known = parse_qs(body.decode()).get("client_secret") == [SECRET[3:]]
                self._send(*(_NEW_TOKEN if is_known else _NO_TOKEN))
                return
            if not headers.get("Authorization", "").startswith(found.scheme):
                self._send(401, _error("NotAuthorizedException", found.says(headers), 401))
                return
            wanted = found.script[operation].pop(0) if found.script[operation] else None
            if isinstance(wanted, int):
                self._send(wanted, _error("Refused", found.says(headers), wanted))
                return
            if callable(wanted):
                wanted()
            with turn:
                answer = self._done(operation, parts, query, body)
                if wanted == TWICE:
                    answer = self._done(operation, parts, query, body)
            if wanted == LOST:
                self.close_connection = True
                return
            self._send(*answer)

        def _done(
            self, operation: str, parts: list[str], query: dict[str, list[str]], body: bytes
        ) -> tuple[int, bytes]:
            try:
                return 200, _carry_out(found, operation, parts, query, body)
            except tuple(STATUS) as error:
                status = next(code for kind, code in STATUS.items() if isinstance(error, kind))
                return status, _error(type(error).__name__, str(error), status)

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status if body or status != 200 else 204)
            if body or status != 200:
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - as http.server calls them

        def log_message(self, *args: Any) -> None:
            """Nothing is logged."""

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: Any) -> None:
            """A client that refuses the certificate is what a test may want."""

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    scheme, host = ("http", "127.0.0.1") if tls is None else ("https", "localhost")
    found.uri = f"{scheme}://{host}:{server.server_address[1]}/iceberg"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        tables.engine.dispose()


_NEW_TOKEN = 200, json.dumps({"access_token": TOKEN, "token_type": "bearer"}).encode()
_NO_TOKEN = 401, json.dumps({"error": "invalid_client", "error_description": "hush?"}).encode()


def _operation(method: str, parts: list[str]) -> str:
    """What a request is for: `GET config`, `POST table`, ..."""
    _, _, *rest = parts
    if rest == ["config"]:
        return f"{method} config"
    if rest == ["oauth", "tokens"]:
        return f"{method} tokens"
    names = ["namespaces", "namespace", "tables", "table"]
    return f"{method} {names[len(rest) - 2]}"


def _carry_out(
    found: RestServer, operation: str, parts: list[str], query: dict[str, list[str]], body: bytes
) -> bytes:
    if operation == "GET config":
        if query.get("warehouse", [WAREHOUSE]) != [WAREHOUSE]:
            raise NoSuchNamespaceError(f"no warehouse {query['warehouse']}")
        return json.dumps(
            {"overrides": {"prefix": PREFIX}, "defaults": {}} | found.settings
        ).encode()
    assert parts[:3] == ["iceberg", "v1", PREFIX]
    namespace = tuple(parts[4].split("\x1f")) if len(parts) > 4 else ()
    answer = OPERATIONS[operation](found, (*namespace, *parts[6:]), body)
    return b"" if answer is None else json.dumps(answer).encode()


def _make_namespace(found: RestServer, _: tuple[str, ...], body: bytes) -> dict[str, Any]:
    given: dict[str, Any] = json.loads(body)
    found.tables.create_namespace(tuple(given["namespace"]), given["properties"])
    return given


def _namespace(found: RestServer, name: tuple[str, ...], _: bytes) -> dict[str, Any]:
    return {"namespace": name, "properties": found.tables.load_namespace_properties(name)}


def _tables(found: RestServer, namespace: tuple[str, ...], _: bytes) -> dict[str, Any]:
    names = found.tables.list_tables(namespace)
    return {"identifiers": [{"namespace": name[:-1], "name": name[-1]} for name in names]}


def _make_table(found: RestServer, namespace: tuple[str, ...], body: bytes) -> dict[str, Any]:
    none = dict.fromkeys(("location", "partition-spec", "write-order"))
    wanted = CreateTableRequest.model_validate({**none, **json.loads(body)})
    assert not wanted.stage_create
    table = found.tables.create_table(
        (*namespace, wanted.name),
        wanted.table_schema,
        wanted.location,
        wanted.partition_spec or UNPARTITIONED_PARTITION_SPEC,
        wanted.write_order or UNSORTED_SORT_ORDER,
        wanted.properties,
    )
    return _described(found, table)


def _commit(found: RestServer, name: tuple[str, ...], body: bytes) -> dict[str, Any]:
    asked = CommitTableRequest.model_validate_json(body)
    table = found.tables.load_table(name)
    made = found.tables.commit_table(table, asked.requirements, asked.updates)
    return dict(json.loads(made.model_dump_json()))


def _described(found: RestServer, table: Any) -> dict[str, Any]:
    return {
        "metadata-location": table.metadata_location,
        "metadata": json.loads(table.metadata.model_dump_json()),
        "config": found.config,
        "storage-credentials": found.storage_credentials,
    }


OPERATIONS: dict[str, Callable[[RestServer, tuple[str, ...], bytes], Any]] = {
    "GET namespaces": lambda found, *_: {"namespaces": found.tables.list_namespaces()},
    "POST namespaces": _make_namespace,
    "GET namespace": _namespace,
    "DELETE namespace": lambda found, name, _: found.tables.drop_namespace(name),
    "GET tables": _tables,
    "POST tables": _make_table,
    "GET table": lambda found, name, _: _described(found, found.tables.load_table(name)),
    "POST table": _commit,
    "DELETE table": lambda found, name, _: found.tables.drop_table(name),
}


def _error(kind: str, message: str, code: int) -> bytes:
    return json.dumps({"error": {"type": kind, "message": message, "code": code}}).encode()
