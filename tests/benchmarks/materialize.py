"""`FeatureStore.materialize`: ours beside Feast's, into DynamoDB Local, and into a sink.

Each run is a process and a project of its own. Into Local both write the same rows. The sink
(`sink.py`) shows what the client itself can do, and its memory with many rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bars import BASE, OURS
from bench_history import HistoryFile
from harness import Command
from workload import Workload

from feast_dynamo_ext.local import stop
from feast_dynamo_ext.local.process import launch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench import Server

HERE = Path(__file__).parent
NAMES = Workload("materialize", views=1)
KEYS, MANY_KEYS, FILES, WARM_ROWS, FIRST_ROWS = 200_000, 1_000_000, 10, 5_000, 100_000
LIMIT = 1_000
"""Rows after which Feast's memory is known: it has loaded and converted all before the first."""
DISK_ROW_BYTES = 250  # of history; what is spooled among them
FEAST_ROW_BYTES = 9_000  # of memory, in Feast's own engine
TOLERANCE, MORE_ROWS = 1.01, 10  # requests sent twice, and items of schema and progress


@dataclass(frozen=True)
class MaterializeCase:
    """What a process materializes.

    Attributes:
        name: what reports call it, unique.
        client: Feast or ours.
        to: where the rows go.
        source: name of a file, or a folder of files, of the history.
        rows: in the source.
        keys: in the source: the rows that have to be written.
        write_mode: of our store.
        limit: rows after which the sink stops it.
    """

    name: str
    client: str
    to: Literal["Local", "sink"]
    source: str
    rows: int
    keys: int
    write_mode: str = "overwrite"
    limit: int | None = None


@dataclass(frozen=True)
class Materialized:
    """What one process did.

    Attributes:
        case: what it was told to do.
        seconds: wall clock of the call.
        cpu_s: CPU time of the call, all threads.
        start_mb: peak memory before the call.
        peak_mb: peak memory of the process.
        is_stopped: whether the sink stopped it.
        sink: rows and requests that came there, and its CPU time in seconds.
    """

    case: MaterializeCase
    seconds: float
    cpu_s: float
    start_mb: float
    peak_mb: float
    is_stopped: bool = False
    sink: dict[str, float] = field(default_factory=dict)

    @property
    def rows_s(self) -> float:
        """Rows written a second."""
        return self.case.keys / self.seconds

    @property
    def cpu_us(self) -> float:
        """A written row."""
        return self.cpu_s / self.case.keys * 1_000_000

    def printed(self) -> dict[str, Any]:
        return {
            **vars(self),
            "case": vars(self.case),
            "rows_s": self.rows_s,
            "cpu_us": self.cpu_us,
        }


Runs = dict[str, list[Materialized]]
"""By name of the case, one a round."""


def cases(*, full: bool = False, scale: float = 1.0) -> list[MaterializeCase]:
    """All cases.

    Args:
        full: Feast writes all rows into the sink too, which takes minutes.
        scale: of the number of rows; anything but 1 is to try out the benchmark itself.
    """
    keys, many = (round(count * scale) for count in (KEYS, MANY_KEYS))
    all_of = ("one.parquet", keys, keys)
    million, ten = ("many/0.parquet", many, many), ("many", FILES * many, many)
    return [
        MaterializeCase("Local, overwrite", OURS, "Local", *all_of),
        MaterializeCase("Local, Feast", BASE, "Local", *all_of),
        MaterializeCase("Local, newest wins", OURS, "Local", *all_of, "newest_wins"),
        MaterializeCase("sink, newest wins", OURS, "sink", *all_of, "newest_wins"),
        MaterializeCase("sink, overwrite", OURS, "sink", *million),
        MaterializeCase("sink, x 10", OURS, "sink", *ten),
        MaterializeCase("sink, Feast", BASE, "sink", *million, limit=None if full else LIMIT),
    ]


def too_large(todo: Sequence[MaterializeCase]) -> list[MaterializeCase]:
    """Cases for which this machine has too little memory: Feast's store holds all rows."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    (free,) = (int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:")
    return [one for one in todo if one.client == BASE and one.rows * FEAST_ROW_BYTES > free]


def history(folder: Path, scale: float) -> list[HistoryFile]:
    """The files of all cases."""
    (names,) = NAMES.names().values()
    keys, many = (round(count * scale) for count in (KEYS, MANY_KEYS))

    def file(name: str, count: int, seed: int) -> HistoryFile:
        return HistoryFile(str(folder / f"{name}.parquet"), count, names, seed)

    return [
        file("warm", WARM_ROWS, 0),
        file("first", round(FIRST_ROWS * scale), 0),
        file("one", keys, 1),
        *(file(f"many/{number}", many, 2 + number) for number in range(FILES)),
    ]


def run(server: Server, rounds: int, todo: Sequence[MaterializeCase], scale: float) -> Runs:
    """Run all cases, round by round, every other round the other way round.

    Args:
        server: DynamoDB Local.
        rounds: how often.
        todo: the cases.
        scale: of the history.
    """
    runs: Runs = {case.name: [] for case in todo}
    with _written(scale) as folder:
        if any(case.to == "Local" for case in todo):
            # Java compiles what it runs often: the first writes cost twice as much as later ones,
            # and whoever came first would pay for all.
            print("Local, to warm it up ...", file=sys.stderr, flush=True)
            rows = round(FIRST_ROWS * scale)
            first = MaterializeCase("first", OURS, "Local", "first.parquet", rows, rows)
            _run_one(server, folder, first, 0)
        for number in range(rounds):
            for case in reversed(todo) if number % 2 else todo:
                print(f"{case.name} ...", file=sys.stderr, flush=True)
                runs[case.name].append(_run_one(server, folder, case, number))
    return runs


@contextlib.contextmanager
def _written(scale: float) -> Iterator[Path]:
    """A folder with the history."""
    with tempfile.TemporaryDirectory() as name:
        needed = FILES * MANY_KEYS * scale * DISK_ROW_BYTES
        free = shutil.disk_usage(name).free
        if free < needed:
            raise RuntimeError(
                f"{name}: {free / 2**30:.1f} GB are free, and the history to materialize needs "
                f"{needed / 2**30:.1f} GB for a while. Free some, or set TMPDIR to another disk."
            )
        files = [dataclasses.asdict(file) for file in history(Path(name), scale)]
        script = (str(HERE / "bench_history.py"), json.dumps(files))
        Command("history", Path(sys.executable), script).finish()
        yield Path(name)


def _run_one(server: Server, folder: Path, case: MaterializeCase, number: int) -> Materialized:
    if case.to == "Local":
        return Materialized(case, **_measured(server, folder, case, number))
    with _sink(server, case.limit) as sink:
        measured = _measured(sink, folder, case, number)
    done = Materialized(case, **measured)
    _check(done)
    return done


def _measured(server: Server, folder: Path, case: MaterializeCase, number: int) -> dict[str, Any]:
    name = "".join(letter if letter.isalnum() else "_" for letter in case.name)
    workload = dataclasses.replace(NAMES, name=f"{NAMES.name}_{name}_{number}")
    more = {
        "source": str(folder / case.source),
        "warm": str(folder / "warm.parquet"),
        "keys": case.keys,
        "stored": case.to == "Local",
        "write_mode": case.write_mode,
        "may_fail": case.limit is not None,
    }
    command = server.command(case.client, ("materialize_client.py",), [workload], more)
    return json.loads(command.finish())


def _check(done: Materialized) -> None:
    """Refuse figures of a client that did not send each row once."""
    case, rows = done.case, done.sink["rows"]
    least = case.limit if case.limit and done.is_stopped else case.keys
    if not least <= rows <= case.keys * TOLERANCE + MORE_ROWS:
        raise RuntimeError(f"{case.client}, {case.name}: {rows:,.0f} rows came, not {least:,}.")


@contextlib.contextmanager
def _sink(server: Server, limit: int | None) -> Iterator[Server]:
    accepted = [] if limit is None else [str(limit + WARM_ROWS)]
    command = [sys.executable, str(HERE / "sink.py"), *accepted]
    process = launch("sink", command, server.folder / "log" / "sink.log")
    try:
        yield dataclasses.replace(server, endpoint=process.endpoint)
    finally:
        stop(process)
