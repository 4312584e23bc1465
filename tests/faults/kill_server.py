"""A process that has imported everything, and forks one run of materialize a line that it reads.

Started by `kill_shop.ForkServer`. A run of its own interpreter takes seconds to get going; a fork
is at work in milliseconds, and is just as much a process that can be killed. Lines in and out are
JSON::

    {"run": {"repo": path, "answer": path, "log": path, "settings": {...}}}  -> {"pid": 12}
    {"end": 12, "kill_after_s": 0.4}  -> {"status": -9, "seconds": 0.4}

A status is as of `subprocess`: minus the signal that ended it, or its exit code. Without
`kill_after_s` the end is waited for.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path

# What a run needs, without a thread of any library having been started.
import duckdb  # noqa: F401
import kill_shop
import pandas as pd  # noqa: F401
import pyarrow.dataset  # noqa: F401
from feast import FeatureStore

import feast_dynamo_ext.materialize.engine
import feast_dynamo_ext.offline_store
import feast_dynamo_ext.provider  # noqa: F401

# How the last run of this process ended, by view: the fields of a ViewReport that are counts.
COUNTS = ("to_write", "written", "older", "expired", "resumed", "failed")


def main() -> None:
    runs: dict[int, tuple[int, float]] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        answer = forked(asked["run"], runs) if "run" in asked else ended(asked, runs)
        print(json.dumps(answer), flush=True)


def forked(run: dict, runs: dict[int, tuple[int, float]]) -> dict:
    """Start a run; the pipe that only it holds closes when it is gone."""
    is_alive, held = os.pipe()
    started_s = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(is_alive)
        os._exit(child(run))
    os.close(held)
    runs[pid] = is_alive, started_s
    return {"pid": pid}


def ended(asked: dict, runs: dict[int, tuple[int, float]]) -> dict:
    """Wait for a run's end, and bring it about at the given moment."""
    pid, after_s = asked["end"], asked.get("kill_after_s")
    is_alive, started_s = runs.pop(pid)
    if not select.select([is_alive], [], [], after_s)[0]:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(is_alive)
    return {"status": status, "seconds": time.monotonic() - started_s}


def child(run: dict) -> int:
    """Materialize; what is said goes to a file, and so do the counts."""
    sys.argv = ["materialize", run["repo"]]
    with Path(run["log"]).open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            try:
                materialize(run)
            except Exception:  # noqa: BLE001 - the test reads it
                traceback.print_exc()
                return 1
    return 0


def materialize(run: dict) -> None:
    store = FeatureStore(repo_path=run["repo"])
    engine = store.provider.batch_engine
    engine.settings = engine.settings.model_copy(update=run["settings"])
    store.materialize(kill_shop.START, kill_shop.END)
    counts = {
        view.view: {name: getattr(view, name) for name in COUNTS} for view in engine.report.views
    }
    Path(run["answer"]).write_text(json.dumps(counts))


if __name__ == "__main__":
    main()
