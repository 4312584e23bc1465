"""The proxy of `fault_server.py`, as tests see it."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SERVER = Path(__file__).with_name("fault_server.py")


@dataclass(frozen=True)
class Report:
    """What the proxy did since its plan was set.

    Attributes:
        requests: requests that came.
        faults: how many of them met each kind of fault.
        answered: keys (base64) that each good answer of a read settled, by table name.
        access_keys: how many access keys signed them.
    """

    requests: int
    faults: Counter[str]
    answered: list[dict[str, list[str]]]
    access_keys: int


class FaultProxy:
    """A running proxy. It goes on without faults until it is told otherwise."""

    def __init__(self, backend: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER), backend],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.endpoint = self._process.stdout.readline().strip()
        self._control = self._process.stdout.readline().strip()

    @property
    def port(self) -> int:
        return urlsplit(self.endpoint).port

    def plan(self, **plan: Any) -> None:
        """Say what is to fail from now on: the fields of `fault_server.Plan`."""
        self._call("PUT", json.dumps(plan))

    def report(self) -> Report:
        """What was done under the plan, once nothing is in flight any more."""
        report = json.loads(self._call("GET"))
        assert report["errors"] == [], "the proxy itself failed"
        return Report(
            report["requests"], Counter(report["faults"]), report["answered"], report["keys"]
        )

    def _call(self, method: str, body: str | None = None) -> bytes:
        connection = http.client.HTTPConnection(urlsplit(self._control).netloc, timeout=30)
        try:
            connection.request(method, "/", body)
            return connection.getresponse().read()
        finally:
            connection.close()

    def stop(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
