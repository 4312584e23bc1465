"""`make bench`: get_online_features of our store beside Feast's own, on one DynamoDB Local.

Both stores have tables of their own with the same values, which are checked before anything is
timed. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime as dt
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import report
from harness import Client, Command, measure, running
from workload import Workload

from feast_dynamo_ext.errors import FeastDynamoError
from feast_dynamo_ext.local import start_dynamodb_local, stop

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).parent
FEAST_PYTHON = HERE.parents[1] / ".venv-bench" / "bin" / "python"
REGION = "us-east-1"
SIZES = (1, 10, 100)
CHECKED = list(range(0, 1_000, 10))


def main() -> None:
    options = _options()
    if not FEAST_PYTHON.exists():
        sys.exit("Feast's own store has no environment yet (.venv-bench). Run: make bench")
    try:
        run(options)
    except (FeastDynamoError, RuntimeError) as error:
        sys.exit(str(error))


def run(options: argparse.Namespace) -> None:
    workload, machine, started = Workload(), report.machine(), time.monotonic()
    with contextlib.ExitStack() as stack:
        endpoint = stack.enter_context(_dynamodb_local())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        print(f"Loading {workload.views} tables of {workload.entities:,} rows, for each store ...")
        commands = _loaded(workload, endpoint, folder)
        clients = [stack.enter_context(running(command)) for command in commands]
        check(clients, workload)
        print(
            f"Both answer with the same, right values. Timing {options.rounds} rounds of "
            f"{options.calls} calls for {', '.join(map(str, SIZES))} entities ..."
        )
        measured = measure(clients, SIZES, options.rounds, options.calls)
        about = {client.name: client.ask("about") for client in clients}
    print(f"\nget_online_features, {workload.views} views x {workload.features} float features\n")
    print(report.table(measured))
    print("\n" + report.about_table(about))
    print(
        f"\n{machine['cores']} cores ({machine['processor']}), load {machine['load_before']} "
        f"before; DynamoDB Local on the same machine; {time.monotonic() - started:.0f} s in all."
    )
    if options.json:
        result = {
            "at": dt.datetime.now(tz=dt.timezone.utc).isoformat(timespec="seconds"),
            "machine": machine,
            "workload": dataclasses.asdict(workload),
            "options": {"rounds": options.rounds, "calls": options.calls},
            "online_read": report.as_json(measured),
            "processes": about,
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def check(clients: Sequence[Client], workload: Workload) -> None:
    """Refuse to time a client that answers wrongly, for more keys than one request holds."""
    expected = workload.answer(CHECKED)
    for client in clients:
        answer = client.ask("answer", entities=CHECKED)
        if client.name == report.FLOOR:
            found = [len(keys) for keys in answer.values()]
            right = found == [len(CHECKED)] * workload.views
        else:
            right = answer == expected
        if not right:
            raise RuntimeError(f"{client.name}: its answer for {len(CHECKED)} entities is wrong.")


def _loaded(workload: Workload, endpoint: str, folder: Path) -> list[Command]:
    """Load both stores' tables; the commands that start the clients, in turn."""
    environments = {report.BASE: ("feast", FEAST_PYTHON), report.OURS: ("ours", sys.executable)}
    commands = []
    for name, (store, python) in environments.items():
        settings = {
            "store": store,
            "endpoint": endpoint,
            "region": REGION,
            "folder": str(folder / store),
            "workload": dataclasses.asdict(workload),
        }
        (folder / store).mkdir()
        client = [str(HERE / "client.py")]
        Command(name, Path(python), (*client, "load", json.dumps(settings))).finish()
        commands.append(Command(name, Path(python), (*client, "serve", json.dumps(settings))))
    floor = (str(HERE / "floor.py"), json.dumps(settings))
    return [*commands, Command(report.FLOOR, Path(sys.executable), floor)]


@contextlib.contextmanager
def _dynamodb_local() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        server = start_dynamodb_local(Path(folder))
        try:
            yield server.endpoint
        finally:
            stop(server)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="turns of each client (10)")
    parser.add_argument("--calls", type=int, default=15, help="calls a turn (15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
