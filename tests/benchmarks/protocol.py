"""What a client process does: one JSON request a line on stdin, one JSON answer on stdout.

========================================  ======================================================
request                                   answer
========================================  ======================================================
{"do": "answer", "operation": ...,        what those entities' features are, so that they can be
"entities": [...]}                        checked before anything is timed
{"do": "time", "operation": ...,          {"wall_s": [seconds of each call],
"calls": n, "size": n, "part": n}         "cpu_s": CPU seconds of all, every thread of the
                                          process}
{"do": "about"}                           {"peak_mb": ru_maxrss, "versions": {package: version}}
========================================  ======================================================
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
    from collections.abc import Callable

PACKAGES = ("feast", "botocore", "aiobotocore", "protobuf", "urllib3", "orjson")


class Operation(Protocol):
    """What is measured."""

    def requests(self, calls: int, size: int, part: int) -> list[Any]:
        """What each of `calls` calls of `run` takes; made before the clock starts."""

    def run(self, request: Any) -> Any:
        """The measured call."""

    def answer(self, entities: list[int]) -> Any:
        """What the call gives for these entities, as JSON."""

    def close(self) -> None:
        """Called when no request follows."""


def serve(open_operation: Callable[[str], Operation]) -> None:
    """Answer requests until stdin ends; an operation is opened when it is first asked for."""
    opened: dict[str, Operation] = {}
    # Whatever a library prints must not end up among the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        if do == "about":
            result = about()
        else:
            name = request.pop("operation")
            if name not in opened:
                opened[name] = open_operation(name)
            operation = opened[name]
            result = timed(operation, **request) if do == "time" else operation.answer(**request)
        print(json.dumps(result), file=answers, flush=True)
    for operation in opened.values():
        operation.close()


def timed(operation: Operation, calls: int, size: int, part: int) -> dict[str, Any]:
    requests = operation.requests(calls, size, part)
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
