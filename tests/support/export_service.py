"""DynamoDB with exports: a server before moto or DynamoDB Local that answers what these lack.

    with ExportService(endpoint, table, s3, clock) as service:
        client = boto3.client("dynamodb", endpoint_url=service.url)
        service.put(item)                # written to the table, and noted by the clock
        client.export_table_to_point_in_time(...)

Every other call is passed on; moto's tables get the id that they lack. The change log is kept
here, as only who writes knows it: exports are made of it by `export_writer`, which lays them out
as the real service does.
"""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from export_writer import (
    Change,
    ExportedTable,
    ExportPlace,
    into_bucket,
    items_after,
    write_full,
    write_increment,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

START = datetime(2026, 3, 1, tzinfo=timezone.utc)
KEPT = timedelta(days=35)
OK = 200


@dataclass
class Clock:
    """The time of the table, which tests move on."""

    now: datetime = START

    def forward(self, **by: float) -> datetime:
        self.now += timedelta(**by)
        return self.now


@dataclass
class Refusal:
    """An error that the next calls of an operation are answered with."""

    operation: str
    code: str
    message: str = "as the test asked"
    times: int = 1
    status: int = 400


@dataclass
class ExportService:
    """See the module.

    Attributes:
        endpoint: of moto or DynamoDB Local.
        client: boto3's of that endpoint, which writes items.
        s3: boto3's of S3.
        table: as exports name it.
        clock: the time of the table.
        polls: DescribeExport answers so often that an export is in progress.
        prefix_in_keys: see `ExportPlace`.
        allowed: operations of its own that are not refused; None for all.
    """

    endpoint: str
    client: Any
    s3: Any
    table: ExportedTable
    keys: tuple[str, ...]
    clock: Clock = field(default_factory=Clock)
    polls: int = 1
    prefix_in_keys: bool = True
    recovery_since: datetime | None = START
    log: list[Change] = field(default_factory=list)
    exports: dict[str, dict[str, Any]] = field(default_factory=dict)
    tokens: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    on_call: Callable[[str], None] | None = None
    allowed: set[str] | None = None

    def __enter__(self) -> Self:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                service._answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    # The table

    def put(self, item: dict[str, Any]) -> None:
        """Write an item, in DynamoDB JSON."""
        answer = self.client.put_item(TableName=self.table.name, Item=item, ReturnValues="ALL_OLD")
        self._note(self._key(item), answer.get("Attributes"), item)

    def delete(self, key: dict[str, Any]) -> None:
        """Delete an item."""
        answer = self.client.delete_item(
            TableName=self.table.name, Key=key, ReturnValues="ALL_OLD"
        )
        if answer.get("Attributes"):
            self._note(key, answer["Attributes"], None)

    def _key(self, item: dict[str, Any]) -> dict[str, Any]:
        return {name: item[name] for name in self.keys}

    def _note(self, key: Any, old: Any, new: Any) -> None:
        self.clock.forward(microseconds=1)
        self.log.append(Change(key, old, new, self.clock.now))

    # Its exports

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        operation = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        given = json.loads(body or b"{}")
        self.calls.append((operation, given))
        if self.on_call is not None:
            self.on_call(operation)
        refusal = next((each for each in self.refusals if each.operation == operation), None)
        if refusal is not None and refusal.times:
            refusal.times -= 1
            return self._send(
                request,
                {"__type": f"x#{refusal.code}", "message": refusal.message},
                refusal.status,
            )
        ours = {
            "ExportTableToPointInTime": self._export,
            "DescribeExport": self._describe,
            "DescribeContinuousBackups": self._backups,
        }.get(operation)
        if ours is None:
            return self._pass_on(request, body)
        if self.allowed is not None and operation not in self.allowed:
            denied = f"not authorized to perform: dynamodb:{operation}"
            return self._send(request, _error("AccessDeniedException", denied), 400)
        found = ours(given)
        return self._send(request, found, 400 if "__type" in found else 200)

    def _pass_on(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        headers = {
            name: text
            for name, text in request.headers.items()
            if name.lower() not in ("content-length", "connection")  # the host is signed
        }
        passed = urllib.request.Request(self.endpoint, body, headers)  # noqa: S310 - http
        try:
            with urllib.request.urlopen(passed) as answer:  # noqa: S310
                data, status = answer.read(), answer.status
        except urllib.error.HTTPError as error:
            data, status = error.read(), error.code
        if request.headers.get("X-Amz-Target", "").endswith(".DescribeTable") and status == OK:
            described = json.loads(data)
            described["Table"]["TableId"] = self.table.table_id
            data = json.dumps(described).encode()
        self._send(request, data, status)

    def _send(self, request: BaseHTTPRequestHandler, found: Any, status: int = 200) -> None:
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/x-amz-json-1.0")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _backups(self, _: dict[str, Any]) -> dict[str, Any]:
        recovery: dict[str, Any] = {"PointInTimeRecoveryStatus": "DISABLED"}
        if self.recovery_since is not None:
            recovery = {
                "PointInTimeRecoveryStatus": "ENABLED",
                "EarliestRestorableDateTime": max(
                    self.recovery_since, self.clock.now - KEPT
                ).timestamp(),
                "LatestRestorableDateTime": self.clock.now.timestamp(),
            }
        return {
            "ContinuousBackupsDescription": {
                "ContinuousBackupsStatus": "ENABLED",
                "PointInTimeRecoveryDescription": recovery,
            }
        }

    def _export(self, given: dict[str, Any]) -> dict[str, Any]:
        if self.recovery_since is None:
            return _error("PointInTimeRecoveryUnavailableException", "PITR is not enabled")
        token = given["ClientToken"]
        if token in self.tokens:
            arn, before = self.tokens[token]
            if before != given:
                return _error("ExportConflictException", "another request had this token")
            return {"ExportDescription": self._said(self.exports[arn])}
        window = given.get("IncrementalExportSpecification")
        place = ExportPlace(
            into_bucket(self.s3, given["S3Bucket"]),
            given["S3Bucket"],
            given.get("S3Prefix"),
            keys_with_prefix=self.prefix_in_keys,
        )
        first = max(self.recovery_since, self.clock.now - KEPT)
        if given["ExportType"] == "FULL_EXPORT":
            at = _moment(given["ExportTime"])
            if not first <= at <= self.clock.now:
                return _error("InvalidExportTimeException", f"{at} cannot be restored")
            items = [_projected(each, given) for each in items_after(self.log, at)]
            made = write_full(place, self.table, items, at)
        else:
            start, end = (_moment(window[f"Export{word}Time"]) for word in ("From", "To"))
            length = end - start
            if not (
                first <= start
                and end <= self.clock.now
                and timedelta(minutes=15) <= length <= timedelta(hours=24)
            ):
                return _error("InvalidExportTimeException", f"{start} to {end} cannot be exported")
            log = [
                replace(each, old=_projected(each.old, given), new=_projected(each.new, given))
                for each in self.log
            ]
            made = write_increment(place, self.table, log, start, end, window["ExportViewType"])
        said = {**made.description, "ClientToken": token, "polls": self.polls}
        if self.failures:
            code, message = self.failures.pop(0)
            said |= {"ExportStatus": "FAILED", "FailureCode": code, "FailureMessage": message}
        self.exports[made.arn] = said
        self.tokens[token] = (made.arn, given)
        return {"ExportDescription": self._said(said)}

    def _describe(self, given: dict[str, Any]) -> dict[str, Any]:
        found = self.exports.get(given["ExportArn"])
        if found is None:
            return _error("ExportNotFoundException", given["ExportArn"])
        answer = self._said(found)
        found["polls"] = max(0, found["polls"] - 1)
        return {"ExportDescription": answer}

    def _said(self, found: dict[str, Any]) -> dict[str, Any]:
        said = {name: value for name, value in found.items() if name != "polls"}
        if found["polls"]:
            said["ExportStatus"] = "IN_PROGRESS"
        return json.loads(json.dumps(said, default=lambda moment: moment.timestamp()))


def _projected(image: Any, given: dict[str, Any]) -> Any:
    """An item with the attributes that the export is asked for."""
    asked = given.get("FilterSpecification")
    if asked is None or image is None:
        return image
    names = asked["ExpressionAttributeNames"]
    kept = {names[each.strip()] for each in asked["ProjectionExpression"].split(",")}
    return {name: value for name, value in image.items() if name in kept}


def _error(code: str, message: str) -> dict[str, Any]:
    return {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": message}


def _moment(given: float | str) -> datetime:
    if isinstance(given, str) and not re.fullmatch(r"[0-9.eE+]+", given):
        return datetime.fromisoformat(given.replace("Z", "+00:00"))
    return datetime.fromtimestamp(float(given), timezone.utc)
