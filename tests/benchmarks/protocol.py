"""What a client process does: one JSON request a line on stdin, one JSON answer on stdout.

====================================  ==========================================================
request                               answer
====================================  ==========================================================
{"do": "answer", "entities": [...]}   what those entities' features are
{"do": "time", "calls": n,            {"wall_s": [seconds of each call],
"entities": n, "part": n}             "cpu_s": CPU seconds of all, every thread of the process}
{"do": "about"}                       {"peak_mb": ru_maxrss, "versions": {package: version}}
====================================  ==========================================================
"""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from importlib.metadata import distributions
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from workload import Workload

PACKAGES = ("feast", "botocore", "aiobotocore", "protobuf", "urllib3", "orjson")


class Operation(Protocol):
    """What is measured."""

    def request_of(self, entities: list[int]) -> Any:
        """What `run` takes; made before the clock starts."""

    def run(self, request: Any) -> Any:
        """The measured call."""

    def answer(self, entities: list[int]) -> Any:
        """What the call gives, as JSON, to be checked before anything is timed."""


def serve(operation: Operation, workload: Workload) -> None:
    """Answer requests until stdin ends."""
    # Whatever a library prints must not end up among the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        if do == "answer":
            result = operation.answer(**request)
        elif do == "time":
            result = timed(operation, workload, **request)
        else:
            result = about()
        print(json.dumps(result), file=answers, flush=True)


def timed(
    operation: Operation, workload: Workload, calls: int, entities: int, part: int
) -> dict[str, Any]:
    requests = [
        operation.request_of(request) for request in workload.requests(calls, entities, part)
    ]
    wall_s = []
    cpu_before = time.process_time()
    for request in requests:
        started = time.perf_counter()
        operation.run(request)
        wall_s.append(time.perf_counter() - started)
    return {"wall_s": wall_s, "cpu_s": time.process_time() - cpu_before}


def about() -> dict[str, Any]:
    # aiobotocore and orjson are in one of the environments each.
    installed = {one.name: one.version for one in distributions()}
    versions = {"python": platform.python_version()}
    versions.update((name, installed[name]) for name in PACKAGES if name in installed)
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_mb": peak_kb / 1024, "versions": versions}
