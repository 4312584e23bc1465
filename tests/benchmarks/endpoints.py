"""A served model under load: bare lookups, requests one by one, and requests read together.

The servers are the container's entry point as processes, one worker each, on DynamoDB Local with
2 views and 1 entity a request. The load comes from this process, over kept-alive connections.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tabulate
import urllib3
from bars import Bar, Figure
from offline_client import use_test_credentials

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bars import Held

CLIENTS = (1, 8, 32)
BARE, SINGLE, BATCHED = "get_online_features", "one by one", "together"
WARM_UP = 50
FIRST_PORT = 21_500
TRIES = 400


@dataclass
class Load:
    """Rounds of one host at one number of clients: requests a second, p50 and p95 in ms."""

    per_s: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p95: list[float] = field(default_factory=list)

    def add(self, times: list[float], seconds: float) -> None:
        """A round's milliseconds a request, and its wall clock."""
        cuts = statistics.quantiles(times, n=20, method="inclusive")
        self.per_s.append(len(times) / seconds)
        self.p50.append(cuts[9])
        self.p95.append(cuts[18])


Runs = dict[tuple[str, int], Load]


def run(endpoint: str, rounds: int, requests: int = 1_000) -> Runs:
    """Measure all hosts in turns.

    Args:
        endpoint: of DynamoDB Local.
        rounds: turns.
        requests: of each round, host and number of clients.
    """
    sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
    from served_model import make_model

    use_test_credentials()
    runs: Runs = {(BARE, 1): Load()}
    runs |= {(host, count): Load() for host in (SINGLE, BATCHED) for count in CLIENTS}
    with tempfile.TemporaryDirectory() as name:
        model = make_model(Path(name), endpoint, "bench_endpoint")
        features = ["profile:visits", "profile:city", "orders:total", "orders:last"]
        rows = {"customer_id": [1]}
        expected = model.expected([1], [20.0])[0]
        with (
            _server(model.folder, FIRST_PORT, None) as single,
            _server(model.folder, FIRST_PORT + 1, 1.0) as batched,
        ):
            for url in (single, batched):
                asyncio.run(_load(url, 1, WARM_UP, expected))
            for _ in range(rounds):
                times = []
                for _ in range(requests // 4):
                    started = time.perf_counter()
                    model.store.get_online_features(features, rows).to_dict()
                    times.append((time.perf_counter() - started) * 1_000)
                runs[BARE, 1].add(times, sum(times) / 1_000)
                for count in CLIENTS:
                    for host, url in ((SINGLE, single), (BATCHED, batched)):
                        number = requests // 4 if count == 1 else requests
                        runs[host, count].add(*asyncio.run(_load(url, count, number, expected)))
        model.store.teardown()
    return runs


@contextmanager
def _server(folder: Path, port: int, max_wait_ms: float | None) -> Iterator[str]:
    """The entry point on a folder; its settings are read when it starts."""
    settings = folder / "features" / "serving.json"
    given = json.loads(settings.read_text())
    settings.write_text(json.dumps({**given, "max_wait_ms": max_wait_ms}))
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "feast_dynamo_ext.cli.main"),
            *("endpoint", "local", str(folder), "--port", str(port)),
        ],
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        stderr=subprocess.DEVNULL,
    )
    try:
        retries = urllib3.Retry(total=TRIES, backoff_factor=0.1, backoff_max=0.3)
        with urllib3.PoolManager(retries=retries) as http:
            http.request("GET", f"http://127.0.0.1:{port}/ping")
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


async def _load(
    address: str, clients: int, requests: int, expected: float
) -> tuple[list[float], float]:
    """Milliseconds of each request, and seconds of all; each answer is checked."""
    body = json.dumps({"customer_id": 1, "amount": 20.0}).encode()
    request = (
        f"POST /invocations HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    times: list[float] = []

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection(*address.split(":"))
        for _ in range(number):
            started = time.perf_counter()
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            answer = await reader.readexactly(length)
            times.append((time.perf_counter() - started) * 1_000)
            score = json.loads(answer)["predictions"][0]["score"]
            if abs(score - expected) > 1e-6:
                raise RuntimeError(f"{address} answered {score}, not {expected}")
        writer.close()
        await writer.wait_closed()

    started = time.perf_counter()
    await asyncio.gather(*(client(requests // clients) for _ in range(clients)))
    return times, time.perf_counter() - started


def table(runs: Runs) -> str:
    """A row a host and number of clients, in the median round."""
    rows = [
        [host, count, *(f"{statistics.median(values):.1f}" for values in vars(load).values())]
        for (host, count), load in runs.items()
    ]
    return tabulate.tabulate(rows, ["host", "clients", "requests/s", "p50 ms", "p95 ms"])


def held(runs: Runs) -> Held:
    """Overhead at 1 client, and what reading together gives at 32."""
    one, bare = runs[BATCHED, 1], runs[BARE, 1]
    single, batched = runs[SINGLE, 32], runs[BATCHED, 32]

    def ratio(mine: list[float], yours: list[float]) -> Figure:
        return Figure.of([a / b for a, b in zip(mine, yours, strict=True)])

    over = [a - b for a, b in zip(one.p50, bare.p50, strict=True)]
    return [
        (Bar("endpoint over lookup, p50, 1 client", 2.0, " ms", at_least=False), Figure.of(over)),
        (Bar("endpoint, p50, 1 client", 10.0, " ms", at_least=False), Figure.of(one.p50)),
        (Bar("together/one by one, requests/s, 32", 2.0), ratio(batched.per_s, single.per_s)),
        (
            Bar("together/one by one, p95, 32", 1.0, at_least=False),
            ratio(batched.p95, single.p95),
        ),
    ]


def as_json(runs: Runs) -> list[dict[str, object]]:
    """All figures."""
    return [{"host": host, "clients": count, **vars(load)} for (host, count), load in runs.items()]
