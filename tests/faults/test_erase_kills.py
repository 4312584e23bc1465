"""`capture erase` is killed at any moment: a run that is repeated leaves nothing of the person.

`FAULT_TIMES=10` makes it twenty kills (`make soak`).
"""

from __future__ import annotations

import datetime as dt
import itertools
import os
import random
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from capture_shop import BEGUN, item, new_shop, repo_over

TIMES = int(os.environ.get("FAULT_TIMES", "1"))
KILLS = 3 if TIMES == 1 else 2 * TIMES
FIRST, DAYS = 4711, 12

RUN = Path(__file__).with_name("erase_run.py")

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(300 * TIMES)]


@pytest.fixture
def shop(open_store, moto_endpoint, bucket, tmp_path):
    with new_shop(open_store, moto_endpoint, bucket, tmp_path) as made:
        yield made


def holding(folder: Path, gone: int) -> list[str]:
    """Data files below a folder that hold a person, by pyarrow."""
    found = []
    for path in folder.rglob("*.parquet"):
        rows = pq.read_table(path, partitioning=None).to_pylist()
        if any(row.get("customer") == gone or str(gone) in str(row.get("item")) for row in rows):
            found.append(path.name)
    return found


def test_a_repeated_run_leaves_nothing(shop, fork_server, tmp_path):
    name = shop.source.name
    store, view = repo_over(shop, tmp_path)
    log, dice = tmp_path / "run.log", random.Random(TIMES)  # noqa: S311 - no secret

    def start(gone: int) -> subprocess.Popen:
        with log.open("a") as said:
            return fork_server.start(
                *(RUN, tmp_path, name, f"customer={gone}", shop.target.uri),
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    # How long a run takes by this machine, from its first call of DynamoDB on.
    took_s, killed = 2.0, 0
    # Another one each time: by this machine's clock they are erased long after the table's.
    for gone in itertools.count(FIRST):
        if killed == KILLS:
            break
        for day in range(DAYS):
            shop.service.put(item(gone, day))
            shop.service.put(item(9, day))
        shop.service.put({**item(gone, DAYS), "amount": {"S": "a lot"}})
        shop.service.clock.forward(hours=1)
        shop.sync()
        store.materialize(BEGUN - dt.timedelta(days=1), BEGUN + dt.timedelta(days=60))
        for day in range(DAYS + 1):
            shop.service.delete({key: item(gone, day)[key] for key in ("customer", "at")})
        shop.service.clock.forward(hours=1)
        others = [row for row in shop.rows() if row[0] != gone]
        assert holding(tmp_path / "history", gone)
        calls, program = len(shop.service.calls), start(gone)
        while program.poll() is None and len(shop.service.calls) == calls:
            pass
        try:
            program.wait(dice.random() * took_s)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()
            killed += 1
        else:
            took_s /= 2  # it was done before
        assert start(gone).wait() == 0, log.read_text()
        assert holding(tmp_path / "history", gone) == []
        assert shop.rows() == others
        found = store.get_online_features([f"{view.name}:amount"], [{"customer": gone}])
        assert found.to_dict()["amount"] == [None]
        shop.sync()  # what was deleted meanwhile is dropped
        assert shop.rows() == others
    assert shop.history.quarantined() == 0
