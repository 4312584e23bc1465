"""Measures clients against each other: each a process of its own, asked in turn, round by round.

Only one client works at a time, the others wait on stdin; taking turns lets a noisy machine hit
all alike. Linux starts a child's ru_maxrss at its parent's memory, so the driver imports neither
Feast nor anything else that is large.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[2]
"""The checkout that is measured: another one may be what the environment has installed."""


@dataclass(frozen=True)
class Command:
    """How a client is started.

    Attributes:
        name: what reports call it.
        python: the interpreter of its environment.
        script: and its arguments.
    """

    name: str
    python: Path
    script: tuple[str, ...]

    def start(self, **pipes: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.python), *self.script], text=True, env=_environment(), **pipes
        )

    def finish(self) -> str:
        """Run it to its end; what it printed."""
        process = self.start(stdout=subprocess.PIPE)
        printed, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(
                f"{self.name}: ended with exit code {process.returncode}; its error is above."
            )
        return printed


class Client:
    """A running client."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name = name
        self._process = process

    def ask(self, do: str, **request: Any) -> Any:
        """Send one request of `protocol.py` and wait for its answer."""
        with contextlib.suppress(BrokenPipeError):  # the missing answer says more
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise RuntimeError(f"{self.name}: ended with exit code {code}; its error is above.")
        return json.loads(line)


@contextlib.contextmanager
def running(command: Command) -> Iterator[Client]:
    """A client that ends with the block."""
    process = command.start(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield Client(command.name, process)
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


@dataclass(frozen=True)
class Case:
    """What all its clients are asked to do.

    Attributes:
        name: what reports call it.
        operation: of `operations.py`.
        workload: name of its tables.
        size: entities a read, rows a write.
        calls: calls a turn.
        clients: names of those that can do it.
    """

    name: str
    operation: str
    workload: str
    size: int
    calls: int
    clients: tuple[str, ...]

    @property
    def turn(self) -> dict[str, Any]:
        return {
            "operation": self.operation,
            "size": self.size,
            "calls": self.calls,
        }


@dataclass(frozen=True)
class Sample:
    """What one client did in one round of one case."""

    wall_s: Sequence[float]
    cpu_s: float

    @property
    def p50_ms(self) -> float:
        return statistics.median(self.wall_s) * 1_000

    @property
    def cpu_ms(self) -> float:
        """A call."""
        return self.cpu_s / len(self.wall_s) * 1_000


@dataclass(frozen=True)
class Series:
    """All rounds of one client in one case."""

    rounds: tuple[Sample, ...]

    @property
    def p50_ms(self) -> float:
        """The median over rounds of each round's median."""
        return statistics.median(sample.p50_ms for sample in self.rounds)

    @property
    def p95_ms(self) -> float:
        """Of all calls of all rounds: one round has too few for it."""
        calls = [wall_s for sample in self.rounds for wall_s in sample.wall_s]
        return statistics.quantiles(calls, n=20, method="inclusive")[-1] * 1_000

    @property
    def cpu_ms(self) -> float:
        return statistics.median(sample.cpu_ms for sample in self.rounds)

    @property
    def calls(self) -> int:
        return sum(len(sample.wall_s) for sample in self.rounds)


Measured = dict[str, dict[str, Series]]
"""Series by name of the case, then of the client."""


def measure(clients: Sequence[Client], cases: Sequence[Case], rounds: int) -> Measured:
    """Time all clients in turn, a first round not counted.

    Args:
        clients: who takes turns, in each round the other way round: what one leaves to the
            server, garbage for example, must not always hit the same next one.
        cases: what they do.
        rounds: how often each client has its turn in each case.
    """
    samples: dict[str, dict[str, list[Sample]]] = {
        case.name: {client.name: [] for client in clients if client.name in case.clients}
        for case in cases
    }
    for part in range(rounds + 1):
        for case in cases:
            for client in clients if part % 2 else reversed(clients):
                if client.name not in case.clients:
                    continue
                answer = client.ask("time", part=part, **case.turn)
                if part:  # the first round warmed up client, server and connections
                    samples[case.name][client.name].append(Sample(**answer))
    return {
        case: {name: Series(tuple(series)) for name, series in by_client.items()}
        for case, by_client in samples.items()
    }


def _environment() -> dict[str, str]:
    """This checkout, test credentials, and nothing of the developer's own AWS or Feast set-up."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "FEAST_", "PYTHON"))
    }
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "FEAST_USAGE": "False",
    }
