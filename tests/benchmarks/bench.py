"""`make bench`: our stores beside Feast's own, the online ones on one DynamoDB Local.

Both online stores have tables of their own with the same values, which are checked before
anything is timed. See docs/reference/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime as dt
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

# This checkout is measured, here and in what is started, whichever the environment has installed.
os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
sys.path.insert(0, os.environ["PYTHONPATH"])

import bars
import capture_files
import endpoints
import materialize
import offline
import offline_bars
import report
import series_reads
import series_requests
import series_windows
import spark_joins
import stream_changes
import tables
import tabulate
import training_sets
from bars import BASE, FLOOR, OURS
from harness import Case, Client, Command, Measured, measure, running
from parts import ALL, PARTS, Part

from feast_dynamo_ext.errors import FeastDynamoError
from feast_dynamo_ext.local import start_dynamodb_local, stop

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from workload import Workload

HERE = Path(__file__).parent
OUR_PYTHON = Path(sys.executable)
FEAST_PYTHON = HERE.parents[1] / ".venv-bench" / "bin" / "python"
REGION = "us-east-1"
SERIES = ("online", "requests", "training")
CHECKED = 100  # entities whose answers are compared: more keys than one request holds


@dataclasses.dataclass(frozen=True)
class Server:
    """Where the tables are, and the folder of the registries."""

    endpoint: str
    folder: Path

    def command(
        self,
        client: str,
        do: Sequence[str],
        workloads: Sequence[Workload],
        more: Mapping[str, Any] | None = None,
    ) -> Command:
        """How a client is started: Feast's store has an environment of its own."""
        store = "feast" if client == BASE else "ours"
        settings = {
            "store": store,
            "endpoint": self.endpoint,
            "region": REGION,
            "folder": str(self.folder / store),
            "workloads": [dataclasses.asdict(workload) for workload in workloads],
            **(more or {}),
        }
        script = (str(HERE / do[0]), *do[1:], json.dumps(settings))
        return Command(client, FEAST_PYTHON if client == BASE else OUR_PYTHON, script)


def main() -> None:
    options = _options()
    # Else each column is two blanks wider, and the tables wider than most terminals.
    tabulate.MIN_PADDING = 0
    if not FEAST_PYTHON.exists():
        sys.exit("Feast's own store has no environment yet (.venv-bench). Run: make bench")
    try:
        result = run(options)
    except (FeastDynamoError, RuntimeError) as error:
        sys.exit(str(error))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def run(options: argparse.Namespace) -> dict[str, Any]:
    machine, started = report.machine(), time.monotonic()
    parts = {name: PARTS[name] for name in PARTS if name in (options.only or PARTS)}
    held: bars.Held = []
    results: dict[str, Any] = {}
    with _server_of(parts) as server:
        load(server, list(parts.values()))
        for name, part in parts.items():
            print(f"\n{part.title}", flush=True)
            rounds = options.rounds or part.rounds
            if name == "materialize":
                results[name], more = _run_materialize(server, rounds, options)
            elif name == "offline":
                results[name], more = _run_offline(rounds, options)
            elif name == "serving":
                results[name], more = _run_serving(server, rounds)
            elif name == "tables":
                results[name], more = _run_tables(rounds, options)
            elif name == "capture":
                results[name], more = _run_capture(rounds, options)
            elif name == "series":
                results[name], more = _run_series(server, rounds, options)
            elif name == "spark":
                results[name], more = _run_spark(rounds, options)
            elif name == "stream":
                results[name], more = _run_stream(server, rounds, options)
            elif name == "sets":
                results[name], more = _run_sets(rounds, options)
            else:
                results[name], more = _run_part(server, name, part, rounds)
            held += more
    print(f"\n{bars.table(held)}")
    print(
        f"\n{machine['cores']} cores ({machine['processor']}), load {machine['load_before']} "
        f"before; {'DynamoDB Local on the same machine; ' if server else ''}"
        f"{time.monotonic() - started:.0f} s in all."
    )
    return {
        "at": dt.datetime.now(tz=dt.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine,
        "bars": bars.as_json(held),
        "parts": results,
    }


def load(server: Server, parts: Sequence[Part]) -> None:
    """Both stores' tables of all parts, written by the stores themselves and read back."""
    # A part may share its tables with another.
    workloads = list({one.name: one for part in parts for one in part.workloads}.values())
    if not workloads:
        return
    print(f"Loading {sum(one.views for one in workloads)} tables for each store ...", flush=True)
    for client in (BASE, OURS):
        server.command(client, ("client.py", "load"), workloads).finish()


def _run_materialize(
    server: Server, rounds: int, options: argparse.Namespace
) -> tuple[dict[str, Any], bars.Held]:
    started = time.monotonic()
    todo = materialize.cases(full=options.full, scale=options.scale)
    left_out = materialize.too_large(todo)
    runs = materialize.run(
        server, rounds, [case for case in todo if case not in left_out], options.scale
    )
    print(report.materialize_table(runs))
    for case in left_out:
        print(f"{case.name}, {case.rows:,} rows: more than this machine's free memory holds.")
    if options.scale != 1:
        print(f"{options.scale:g} times the rows: these figures and their bars mean nothing.")
    print(f"{time.monotonic() - started:.0f} s, history included.", flush=True)
    return {"rounds": rounds, "runs": report.runs_as_json(runs)}, bars.of_materialize(runs)


def _run_offline(rounds: int, options: argparse.Namespace) -> tuple[dict[str, Any], bars.Held]:
    started = time.monotonic()
    todo = offline.cases(full=options.full, scale=options.scale)
    named = [case for case in todo if case.name in (options.case or [case.name])]
    runs = offline.run(rounds, named, full=options.full)
    print(report.offline_table(runs))
    if options.scale != 1:
        print(f"{options.scale:g} times the rows: these figures and their bars mean nothing.")
    print(f"{time.monotonic() - started:.0f} s, history included.", flush=True)
    return {"rounds": rounds, "runs": report.offline_as_json(runs)}, offline_bars.of_offline(runs)


def _run_sets(rounds: int, options: argparse.Namespace) -> tuple[dict[str, Any], bars.Held]:
    found = training_sets.run(rounds, options.scale)
    print(training_sets.report(found, options.scale), flush=True)
    return {"rounds": rounds, "runs": training_sets.as_json(found)}, bars.of_sets(found)


def _run_capture(rounds: int, options: argparse.Namespace) -> tuple[dict[str, Any], bars.Held]:
    found = capture_files.run(rounds, options.scale)
    print(capture_files.report(found, options.scale), flush=True)
    return {"rounds": rounds, "runs": capture_files.as_json(found)}, bars.of_capture(found)


def _run_spark(rounds: int, options: argparse.Namespace) -> tuple[dict[str, Any], bars.Held]:
    growth = not options.case or "growth" in options.case
    found = spark_joins.run(rounds, options.scale, growth=growth)
    print(spark_joins.report(found), flush=True)
    return {"rounds": rounds, "runs": spark_joins.as_json(found)}, spark_joins.held(found)


def _run_stream(
    server: Server, rounds: int, options: argparse.Namespace
) -> tuple[dict[str, Any], bars.Held]:
    found = stream_changes.run(server.endpoint, rounds, options.scale)
    print(stream_changes.report(found), flush=True)
    return {"rounds": rounds, "runs": stream_changes.as_json(found)}, bars.of_stream(found)


def _run_series(
    server: Server, rounds: int, options: argparse.Namespace
) -> tuple[dict[str, Any], bars.Held]:
    found: dict[str, Any] = {"rounds": rounds}
    held: bars.Held = []
    cases = options.case or SERIES
    if "online" in cases:
        reads = series_reads.run(server.endpoint, rounds, options.scale)
        print(series_reads.report(reads), flush=True)
        found["online"], held = series_reads.as_json(reads), series_reads.held(reads)
    if "requests" in cases:
        large = series_requests.run(server.endpoint, rounds, options.scale)
        print(series_requests.report(large), flush=True)
        found["requests"] = series_requests.as_json(large)
        held += series_requests.held(large)
    if "training" in cases:
        runs = series_windows.run(max(1, rounds // 2), options.scale)
        print(series_windows.report(runs), flush=True)
        found["training"] = series_windows.as_json(runs)
        held += series_windows.held(runs)
    return found, held


def _run_serving(server: Server, rounds: int) -> tuple[dict[str, Any], bars.Held]:
    runs = endpoints.run(server.endpoint, rounds)
    print(endpoints.table(runs), flush=True)
    return {"rounds": rounds, "runs": endpoints.as_json(runs)}, endpoints.held(runs)


def _run_tables(rounds: int, options: argparse.Namespace) -> tuple[dict[str, Any], bars.Held]:
    started = time.monotonic()
    sizes = tables.Sizes.scaled(options.scale)
    runs = tables.run(rounds, options.case or tables.NAMES, sizes, full=options.full)
    print(report.tables_report(runs))
    if options.scale != 1:
        print(f"{options.scale:g} times the rows: these figures and their bars mean nothing.")
    print(f"{time.monotonic() - started:.0f} s, history included.", flush=True)
    return {"rounds": rounds, "runs": report.tables_as_json(runs)}, bars.of_tables(runs)


def _run_part(
    server: Server, name: str, part: Part, rounds: int
) -> tuple[dict[str, Any], bars.Held]:
    """Measure and print a part; all its figures, and those that have bars."""
    if not part.cases:
        sizes = _sizes(server, part)
        print(report.bytes_table(sizes), flush=True)
        return {"bytes": sizes}, bars.of_bytes(sizes)
    measured: Measured = {}
    about: dict[str, Any] = {}
    for workload in part.workloads:
        more, processes = _run_workload(server, workload, part, rounds)
        measured |= more
        about[workload.name] = processes
    held: bars.Held = []
    if name == "writes":
        tables = [report.write_table(measured, part.sizes)]
        held = bars.of_writes(measured, part.sizes)
    else:
        tables = [report.wall_table(measured), report.cpu_table(measured)]
    if name == "reads":
        tables.append(report.about_table(about[part.workloads[0].name]))
        held = bars.of_reads(measured)
    if name == "precompute":
        held = bars.of_precomputed(measured)
    print("\n\n".join(tables), flush=True)
    return {"rounds": rounds, "cases": report.as_json(measured), "processes": about}, held


def _run_workload(
    server: Server, workload: Workload, part: Part, rounds: int
) -> tuple[Measured, dict[str, Any]]:
    """The part's cases on one workload, and what their client processes are."""
    cases = [case for case in part.cases if case.workload == workload.name]
    names = [name for name in ALL if any(name in case.clients for case in cases)]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(running(_serving(server, n, workload))) for n in names]
        for client in clients:
            for case in cases:
                if client.name in case.clients:
                    check(client, case, workload)
        measured = measure(clients, cases, rounds)
        return measured, {client.name: client.ask("about") for client in clients}


def check(client: Client, case: Case, workload: Workload) -> None:
    """Refuse to time a client that answers wrongly."""
    entities = list(range(0, workload.entities, workload.entities // CHECKED))
    answer = client.ask("answer", operation=case.operation, entities=entities)
    if client.name == FLOOR:
        found = [len(keys) for keys in answer.values()]
        right = found == [len(entities)] * workload.views
    else:
        # A client's first write is its version 1, and none replaces it.
        version = 1 if case.operation == "write" else 0
        right = answer == workload.answer(entities, version)
    if not right:
        raise RuntimeError(f"{client.name}, {case.name}: a wrong answer.")


def _serving(server: Server, client: str, workload: Workload) -> Command:
    do = ("floor.py",) if client == FLOOR else ("client.py", "serve")
    return server.command(client, do, [workload])


def _sizes(server: Server, part: Part) -> dict[str, dict[str, list[int]]]:
    printed = server.command(OURS, ("sizes.py",), part.workloads).finish()
    sizes = json.loads(printed)
    return {name.replace("_", " "): of_store for name, of_store in sizes.items()}


@contextlib.contextmanager
def _server_of(parts: Collection[str]) -> Iterator[Server | None]:
    """DynamoDB Local, where a part needs it."""
    if set(parts) <= {"offline", "tables", "sets", "capture", "spark"}:
        yield None
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for made in ("feast", "ours", "log"):
            (folder / made).mkdir()
        server = start_dynamodb_local(folder / "log")
        try:
            yield Server(server.endpoint, folder)
        finally:
            stop(server)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", action="append", choices=PARTS, help="this part alone; may be repeated"
    )
    parser.add_argument("--rounds", type=int, help="turns of each client in each case")
    parser.add_argument(
        "--full",
        action="store_true",
        help="materialize: Feast writes all rows into the sink too; offline: 100 M rows too; "
        "tables: pyiceberg's own appends too",
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=1,
        help="of the rows of materialize, offline, tables, sets, capture, series, stream: to try",
    )
    parser.add_argument(
        "--case",
        action="append",
        choices=[
            *(case.name for case in offline.cases(full=True)),
            *(*tables.NAMES, *SERIES, *spark_joins.CASES),
        ],
        help="offline, tables, series, spark: this case alone; may be repeated",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
