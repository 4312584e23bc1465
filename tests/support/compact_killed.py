"""A process that compacts a folder four times, and is killed by SIGKILL at four moments."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")  # Feast's, at its import

from compact_cases import target  # noqa: E402
from repos import repo_config  # noqa: E402

from feast_dynamo_ext.parquet.compaction import compaction  # noqa: E402
from feast_dynamo_ext.parquet.compaction.commit import Folder  # noqa: E402
from feast_dynamo_ext.parquet.compaction.layout import LayoutRequest  # noqa: E402


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def compact_and_die(path: str, moment: int) -> None:
    """Die after so many steps of its progress; after all of them, instead of the last step."""
    plan = compaction.plan(
        target(path), repo_config(Path(path).parent), LayoutRequest(buckets=8, target_bytes=1)
    )
    left = moment

    def step(_):
        nonlocal left
        left -= 1
        if left == 0:
            die()

    Folder.replace = die
    compaction.run(plan, step)


for after in (2, 6, 9, 1_000):
    child = os.fork()
    if child == 0:
        compact_and_die(sys.argv[1], after)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    print("killed" if killed else "lived", flush=True)
