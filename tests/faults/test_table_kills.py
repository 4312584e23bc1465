"""Writers and the upkeep of a history table are killed at any moment: each row is there once.

`FAULT_TIMES=10` makes it four writers of 250 appends each, and twenty kills (`make soak`).
"""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import polars as pl
import pytest
from history_tables import contents, new_table
from table_run import new_rows, progress_of

from feast_dynamo_ext.parquet.iceberg.optimize import optimize
from feast_dynamo_ext.parquet.iceberg.snapshots import history

TIMES = int(os.environ.get("FAULT_TIMES", "1"))
WRITERS, APPENDS = 4, 8 if TIMES == 1 else 25 * TIMES
KILLS = 3 if TIMES == 1 else 2 * TIMES

RUN = Path(__file__).with_name("table_run.py")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 * TIMES)]


class Running:
    """A process that is begun again wherever it ended."""

    def __init__(self, programs, folder, *arguments):
        self._programs, self._folder, self._arguments = programs, folder, arguments
        self._log = folder / f"{'-'.join(map(str, arguments))}.log"
        self.start()

    def start(self):
        paths = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]
        paths += filter(None, [os.environ.get("PYTHONPATH")])
        path = os.pathsep.join(paths)
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
        kind, *more = self._arguments
        with self._log.open("a") as said:
            self.program = self._programs.start(
                *(RUN, kind, self._folder, *more),
                env=environment,
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def kill_after(self, seconds) -> None:
        """Kill it, in the midst of something, and begin it again."""
        try:
            assert self.program.wait(seconds) == 0, self._log.read_text()
        except subprocess.TimeoutExpired:
            self.program.kill()
            self.program.wait()
        self.start()

    def end(self) -> None:
        """Wait until it is done."""
        assert self.program.wait() == 0, self._log.read_text()


def notes(table, snapshot):
    """What rows of a snapshot say, by two readers."""
    found = sorted(table.scan(snapshot_id=snapshot).to_arrow().column("note").to_pylist())
    other = pl.scan_iceberg(table, snapshot_id=snapshot).select("note").collect()
    assert sorted(other["note"].to_list()) == found
    return found


def test_each_committed_row_is_there_once_whoever_is_killed(tmp_path, fork_server, monkeypatch):
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")  # else it warns of a faster one
    handle = new_table(tmp_path, "day")
    upkeep = Running(fork_server, tmp_path, "upkeep")
    writers = [
        Running(fork_server, tmp_path, "append", writer, APPENDS) for writer in range(WRITERS)
    ]
    chance = random.Random(TIMES)  # noqa: S311 - moments, no secrets
    for kill in range(KILLS):
        # The upkeep has fewer moments at which it matters than all writers together.
        victim = upkeep if kill % 3 == 2 else writers[kill % WRITERS]
        victim.kill_after(chance.uniform(0.3, 1.5))
    for writer in writers:
        writer.end()
    (tmp_path / "stop").touch()
    upkeep.end()

    assert [progress_of(tmp_path, writer).read_text() for writer in range(WRITERS)] == [
        str(APPENDS)
    ] * WRITERS
    expected = sorted(
        note
        for writer in range(WRITERS)
        for number in range(APPENDS)
        for note in new_rows(writer, number).column("note").to_pylist()
    )
    assert [handle.state(f"writer {writer}") for writer in range(WRITERS)] == [APPENDS] * WRITERS
    table = handle.load()
    left = [info.snapshot_id for info in history(handle)]
    assert notes(table, left[0]) == expected
    for snapshot in left[1:]:
        found = notes(table, snapshot)
        assert len(set(found)) == len(found)
        assert set(found) <= set(expected)
    held = contents(handle)
    report = optimize(handle)
    assert report.skipped == ()
    assert contents(handle) == held
    assert optimize(handle).partitions == ()
    print(
        f"{len(expected):,} rows of {WRITERS * APPENDS} appends, {KILLS} kills, {len(left)} left"
    )
