"""A DynamoDB that accepts everything at once and keeps nothing, to measure what writes to it.

It shares the cores with whom it serves, so it reads no JSON: an operation's answer is a constant,
rows are counted as text. `GET /` tells what came. `sink.py [ROWS]` listens on a free port of
127.0.0.1, prints its address and serves until it is stopped; after ROWS it refuses more.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from dataclasses import dataclass

HEAD_END = b"\r\n\r\n"
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
TARGET = re.compile(rb"(?i)\r\nx-amz-target: *DynamoDB_20120810\.(\w+)")
# A table's name: of BatchWriteItem's input, or quoted in a statement, which is quoted in JSON.
TABLE = re.compile(rb'"RequestItems": *\{ *"([^"]+)"|(?:INTO|UPDATE) \\"([^"\\]+)\\"')

# What is counted in a request, and so written.
WRITES = {b"BatchWriteItem": b'"PutRequest":', b"BatchExecuteStatement": b'"Statement":'}
ANSWERS = {
    b"PutItem": b"{}",
    b"UpdateItem": b"{}",
    b"DeleteItem": b"{}",
    b"GetItem": b"{}",
    b"BatchGetItem": b'{"Responses":{},"UnprocessedKeys":{}}',
    b"Query": b'{"Items":[],"Count":0,"ScannedCount":0}',
    b"Scan": b'{"Items":[],"Count":0,"ScannedCount":0}',
    b"DescribeTimeToLive": b'{"TimeToLiveDescription":{"TimeToLiveStatus":"DISABLED"}}',
    b"DescribeTable": (
        b'{"Table":{"TableStatus":"ACTIVE","ItemCount":0,'
        b'"KeySchema":[{"AttributeName":"k","KeyType":"HASH"}],'
        b'"AttributeDefinitions":[{"AttributeName":"k","AttributeType":"B"}]}}'
    ),
}
STOPPED = "The sink takes no more."
REFUSAL = b'{"__type":"ValidationException","message":"%b"}' % STOPPED.encode()
UNKNOWN = b'{"__type":"UnknownOperationException","message":"The sink does not know it."}'
OK, BAD_REQUEST = b"200 OK", b"400 Bad Request"


@dataclass
class Counts:
    """What came, and how much of it is accepted.

    Attributes:
        limit: rows, after which all are refused.
        rows: puts and statements of batches.
        requests: of any kind.
    """

    limit: float = float("inf")
    rows: int = 0
    requests: int = 0

    def printed(self) -> bytes:
        about = {"rows": self.rows, "requests": self.requests, "cpu_s": time.process_time()}
        return json.dumps(about).encode()


class Sink(asyncio.Protocol):
    """A connection."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        while received:
            end = received.find(HEAD_END)
            if end < 0:
                break
            # The blank line's first half belongs to the last header.
            head, body_at = received[: end + 2], end + len(HEAD_END)
            length = LENGTH.search(head)
            size = body_at + (int(length[1]) if length else 0)
            if len(received) < size:
                break
            self._answer(head, received[body_at:size])
            received = received[size:]
        self._received = received

    def _answer(self, head: bytes, body: bytes) -> None:
        status, answer = self._taken(head, body)
        self._transport.write(
            b"HTTP/1.1 %b\r\nContent-Type: application/x-amz-json-1.0\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (status, len(answer), answer)
        )

    def _taken(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        target = TARGET.search(head)
        if target is None:
            return OK, self._counts.printed()
        self._counts.requests += 1
        operation = target[1]
        if operation in WRITES:
            return self._taken_rows(operation, body)
        if operation in ANSWERS:
            return OK, ANSWERS[operation]
        return BAD_REQUEST, UNKNOWN

    def _taken_rows(self, operation: bytes, body: bytes) -> tuple[bytes, bytes]:
        if self._counts.rows >= self._counts.limit:
            return BAD_REQUEST, REFUSAL
        rows = body.count(WRITES[operation])
        self._counts.rows += rows
        answer = b'"UnprocessedItems":{}'
        if operation == b"BatchExecuteStatement":
            answer = b'"Responses":[' + b",".join([b"{}"] * rows) + b"]"
        return OK, b"{" + answer + _consumed(body, rows) + b"}"


def _consumed(body: bytes, rows: int) -> bytes:
    """Rows are of one unit each; a batch is of one table."""
    if b'"ReturnConsumedCapacity"' not in body:
        return b""
    found = TABLE.search(body)
    table = (found[1] or found[2]) if found else b"unknown"
    return b',"ConsumedCapacity":[{"TableName":"%b","CapacityUnits":%d.0}]' % (table, rows)


async def serve(counts: Counts) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Sink(counts), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    print(f"{host}:{port}\n", flush=True)
    await server.serve_forever()


def main() -> None:
    limit = float(sys.argv[1]) if len(sys.argv) > 1 else float("inf")
    asyncio.run(serve(Counts(limit)))


if __name__ == "__main__":
    main()
