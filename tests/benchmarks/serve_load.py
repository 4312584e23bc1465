"""Loads a feature server from a process of its own, over kept-alive connections; checks answers.

    python serve_load.py http://127.0.0.1:6566 cases.json --requests 10000 --pid PID

`cases.json` is a list of {"body": ..., "answer": ...}: what is posted to /get-online-features, in
turn, and what each feature must be answered, as {name: [values, statuses]}. Prints one line of
JSON: see `Report`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson
import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

HTTP_OK = 200
KEPT_ERRORS = 20
REPLACED = 2
"""Connections for one request that were closed before they answered."""


@dataclass(frozen=True)
class Sample:
    """What the server process holds, with every connection of the load open and none in use.

    Attributes:
        requests: answers it has given so far.
        rss_mb: resident memory.
        descriptors: open file descriptors.
        sockets: TCP sockets among them.
    """

    requests: int
    rss_mb: float
    descriptors: int
    sockets: int


@dataclass
class Report:
    """What a load found.

    Attributes:
        requests: answers that came.
        errors: the first answers that were not what they should be.
        failed: how many there were.
        reconnects: connections that the server closed before it answered on them.
        seconds: wall clock of all requests.
        wall_ms: of each request.
        samples: of the server process.
    """

    requests: int = 0
    errors: list[str] = field(default_factory=list)
    failed: int = 0
    reconnects: int = 0
    seconds: float = 0.0
    wall_ms: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def printed(self) -> dict[str, Any]:
        """As JSON, with p50 and p99 in place of all times."""
        percentiles = statistics.quantiles(self.wall_ms, n=100, method="inclusive")
        times = {"p50_ms": percentiles[49], "p99_ms": percentiles[98]}
        return {**{k: v for k, v in asdict(self).items() if k != "wall_ms"}, **times}


@dataclass(frozen=True)
class Case:
    """A request, ready to be sent, and what each feature must be answered."""

    request: bytes
    answer: dict[str, Any]

    @classmethod
    def of(cls, host: str, case: dict[str, Any]) -> Case:
        body = orjson.dumps(case["body"])
        head = (
            f"POST /get-online-features HTTP/1.1\r\nHost: {host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return cls(head.encode() + body, case["answer"])

    def wrong_in(self, status: int, body: bytes) -> str | None:
        """What is wrong in an answer, if anything."""
        if status != HTTP_OK:
            return f"HTTP {status}: {body[:300]!r}"
        decoded = orjson.loads(body)
        names = decoded["metadata"]["feature_names"]
        found = {
            name: [result["values"], result["statuses"]]
            for name, result in zip(names, decoded["results"], strict=True)
            if name in self.answer
        }
        return None if found == self.answer else f"{found}, not {self.answer}"


class Client:
    """One kept-alive connection."""

    def __init__(self, host: str, port: int, report: Report) -> None:
        self._address = (host, port)
        self._report = report
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, request: bytes) -> tuple[int, bytes]:
        """Status and body; a connection that was closed before it answered is replaced.

        A worker that ends closes idle connections, and new ones that it had not read from yet:
        so the one in place of the first may be closed as well.
        """
        for _ in range(REPLACED):
            answer = await self._answer(request)
            if answer is not None:
                return answer
        return await self._exchange(request)

    async def _answer(self, request: bytes) -> tuple[int, bytes] | None:
        """Status and body; None where the connection was closed before it answered."""
        try:
            return await self._exchange(request)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            if getattr(error, "partial", b""):
                raise
            self._report.reconnects += 1
            await self.close()
            return None

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        if self._reader is None:
            self._reader, self._writer = await asyncio.open_connection(*self._address)
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        body = await self._reader.readexactly(length)
        return int(head.split(b" ", 2)[1]), body

    async def close(self) -> None:
        writer, self._reader, self._writer = self._writer, None, None
        if writer is not None:
            writer.transport.abort()


async def load(
    url: str, cases: list[dict[str, Any]], stages: list[int], connections: int, pid: int | None
) -> Report:
    """Send requests until each stage's number is reached; look at the server at its end."""
    parts, report, number = urlsplit(url), Report(), count()
    ready = [Case.of(parts.netloc, case) for case in cases]
    clients = [Client(parts.hostname, parts.port, report) for _ in range(connections)]
    started = time.perf_counter()
    for stage, before in zip(stages, [0, *stages], strict=False):
        turns = (ready[next(number) % len(ready)] for _ in range(stage - before))
        await asyncio.gather(*(_send(client, turns, report) for client in clients))
        report.seconds = time.perf_counter() - started
        if pid is not None:
            report.samples.append(sample(pid, report.requests))
    for client in clients:
        await client.close()
    return report


async def _send(client: Client, turns: Iterator[Case], report: Report) -> None:
    for case in turns:
        started = time.perf_counter()
        try:
            wrong = case.wrong_in(*await client.post(case.request))
            report.requests += 1
        except (OSError, asyncio.IncompleteReadError) as error:
            wrong = f"no answer: {error!r}"
            await client.close()
        report.wall_ms.append((time.perf_counter() - started) * 1_000)
        if wrong is not None:
            report.failed += 1
            if len(report.errors) < KEPT_ERRORS:
                report.errors.append(wrong)


def sample(pid: int, requests: int) -> Sample:
    """What a process holds now."""
    process = psutil.Process(pid)
    return Sample(
        requests,
        round(process.memory_info().rss / 2**20, 1),
        process.num_fds(),
        len(process.net_connections("tcp")),
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("cases", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--sample-after", type=int, help="look at the server then, too")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--pid", type=int, help="the server process to look at")
    given = parser.parse_args()
    stages = sorted({given.sample_after or given.requests, given.requests})
    cases = json.loads(given.cases.read_text())
    report = asyncio.run(load(given.url, cases, stages, given.connections, given.pid))
    print(json.dumps(report.printed()))


if __name__ == "__main__":
    main()
