"""Nothing is lost and nothing is wrong without an error that says so, whatever goes wrong.

Each run reads and writes thousands of rows, from many threads and tasks at once, through a proxy
that fails by a schedule, and checks every answer and, in the end, every table. `-s` shows what it
came to; `FAULT_TIMES=10` makes it ten times as much (`make soak` does both).
"""

from __future__ import annotations

import asyncio
import base64
import os
import shlex
import sys
import time

import pytest
from fault_oracle import INVALID, PRESENT, Totals, seen_in
from fault_run import Shop, run
from fault_shop import VIEWS, Read, Write, stored_key

TIMES = int(os.environ.get("FAULT_TIMES", "1"))

pytestmark = [pytest.mark.dynamodb_local, pytest.mark.timeout(300 * TIMES)]

# Chances of each fault, of one request; `refused` of one connection.
ALONE = {
    "throttling": {"throttled": 0.3},
    "unprocessed keys and items": {"unprocessed": 0.4},
    "resets": {"reset": 0.15, "refused": 0.05},
    "slow answers": {"slow": 0.05},
    "truncated bodies": {"truncated": 0.15},
    "corrupted bodies": {"corrupted": 0.15},
    "500, 502 and 503": {"failed": 0.15},
}
TOGETHER = {
    "throttled": 0.06,
    "unprocessed": 0.06,
    "reset": 0.03,
    "refused": 0.03,
    "slow": 0.01,
    "truncated": 0.03,
    "corrupted": 0.03,
    "failed": 0.03,
    "delayed": 0.03,
}
HOUR_S = 3_600


@pytest.fixture
def shop(open_store, fault_proxy, dynamodb_local):
    shop = Shop.open(open_store, fault_proxy, dynamodb_local)
    yield shop
    shop.close()


@pytest.fixture(scope="module")
def figures():
    """Totals by the name of the run; prints them, as docs/explanation/reliability.md has all."""
    figures: dict[str, Totals] = {}
    yield figures
    print("\n| run | reads | writes | requests | faults | errors | wrong | missing |")
    print("|---|---|---|---|---|---|---|---|")
    for name, totals in figures.items():
        print(totals.row(name))
    print(sum(figures.values(), Totals()).row("**all**"))


@pytest.fixture
def faulty(shop, figures):
    """Does a run and checks what holds of each."""

    def faulty(name: str, rows: int, reads: int, plan: dict, **online) -> Totals:
        started = time.monotonic()
        online = {"read_timeout": 2, **online}
        totals = run(shop, plan, rows * TIMES, reads * TIMES, seed=len(name), **online)
        print(f"{name}: {time.monotonic() - started:.1f} s")
        figures[name] = totals
        assert totals.wrong == []
        assert totals.missing == []
        assert totals.reads >= reads * TIMES
        assert totals.writes >= rows * TIMES * 0.99
        return totals

    return faulty


@pytest.mark.parametrize("fault", ALONE)
def test_one_fault_alone(faulty, fault):
    slow = {"read_timeout": 0.4} if fault == "slow answers" else {}
    totals = faulty(fault, 2_000, 4_000, {"chances": ALONE[fault], "slow_s": 0.6}, **slow)
    assert set(totals.faults) == set(ALONE[fault])
    assert set(totals.errors) <= {
        "IncompleteReadError",
        "IncompleteWriteError",
        "StaleVectorsError",
    }
    assert totals.unread < totals.reads / 2
    assert totals.unwritten < totals.writes / 2
    if fault in ("throttling", "unprocessed keys and items"):
        # Asked again until it is there: only the deadline, which is far off, would end that.
        assert totals.errors == {}


def test_a_clock_that_jumps(faulty):
    """The service is 3 hours ahead, then 2 behind, then right again: no call notices."""
    jumps = [(20, 3 * HOUR_S), (120, -2 * HOUR_S), (220, 0)]
    totals = faulty("wrong clock", 2_000, 4_000, {"clock": jumps})
    assert totals.faults["wrong clock"] >= 3
    assert totals.errors == {}


def test_credentials_that_expire_mid_run(faulty):
    """Credentials that nobody renews: loud for as long as they are expired."""
    totals = faulty("expired credentials", 2_000, 4_000, {"expired": (60, 90)})
    assert totals.faults == {"expired": 30}
    assert set(totals.errors) <= {"CredentialsError", "StaleVectorsError"}
    assert totals.errors["CredentialsError"] >= 1


RENEW = """
import datetime, json, uuid
now = datetime.datetime.now(datetime.timezone.utc)
# botocore renews them when 15 minutes are left: 0.7 s from now.
expires = now + datetime.timedelta(minutes=15, seconds=0.7)
print(json.dumps({
    "Version": 1,
    "AccessKeyId": "KEY" + uuid.uuid4().hex,
    "SecretAccessKey": "s",
    "SessionToken": "t",
    "Expiration": expires.isoformat(),
}))
"""


def test_credentials_that_are_renewed_mid_run(faulty, tmp_path, monkeypatch):
    """Each key is refused 15 s after its first use, and none gets that old."""
    script, config = tmp_path / "renew.py", tmp_path / "config"
    script.write_text(RENEW)
    command = shlex.join([sys.executable, "-I", "-S", str(script)])
    config.write_text(f"[profile renewed]\ncredential_process = {command}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    totals = faulty(
        "renewed credentials", 2_000, 4_000, {"key_lifetime_s": 15.0}, profile="renewed"
    )
    assert totals.errors == {}
    assert totals.faults == {}
    assert totals.access_keys >= 2


def test_all_together(faulty):
    plan = {
        "chances": TOGETHER,
        "slow_s": 0.8,
        "clock": [(300, 3 * HOUR_S), (900, -2 * HOUR_S)],
        "expired": (600, 620),
    }
    totals = faulty("all together", 10_000, 10_000, plan, read_timeout=0.5)
    assert set(totals.faults) == {*TOGETHER, "wrong clock", "expired"}
    assert totals.unread < totals.reads / 2
    assert totals.unwritten < totals.writes / 2


def test_all_together_with_put_items(faulty):
    """One row a request, and the second failure in a row ends it: some rows fail alone."""
    totals = faulty(
        "all together, PutItem",
        600,
        2_000,
        {"chances": TOGETHER, "slow_s": 0.8},
        read_timeout=0.5,
        newest_wins_with="put_item",
        total_max_retry_attempts=2,
    )
    assert set(totals.faults) == set(TOGETHER)
    assert totals.errors["IncompleteWriteError"] > 0


def test_short_deadlines_with_marks_and_hedged_reads(faulty):
    plan = {"chances": {**TOGETHER, "throttled": 0.3, "delayed": 0.2}, "slow_s": 0.3}
    totals = faulty(
        "short deadlines, hedged, marked",
        2_000,
        4_000,
        plan,
        read_timeout=0.2,
        read_deadline_ms=120,
        write_deadline_ms=200,
        hedge_after_ms=20,
        on_partial="mark",
    )
    # Both happened: that is what the deadlines are so short for.
    assert totals.marked > 0
    assert totals.errors["IncompleteWriteError"] > 0
    # And some were read whole; how many depends on what else the machine does.
    assert totals.marked < totals.reads


def test_marked_keys_are_those_that_no_answer_brought(shop):
    """One read after the other, each held against what the proxy let through whole."""
    # It gives up at the first failure: a deadline could pass while an answer is on its way.
    store = shop.store(on_partial="mark", total_max_retry_attempts=1)
    views, numbers = ["orders", "visits", "stock"], list(range(40))
    for view in views:
        rows = Write(view, [(number, 1) for number in numbers]).of_feast()
        store._get_provider().online_write_batch(store.config, VIEWS[view], rows, None)
    read = Read(views, numbers)
    names = {key: name_at_proxy(shop, *key) for key in read.distinct()}
    marked = 0
    for seed in range(40):
        chances = {"throttled": 0.1, "unprocessed": 0.4, "failed": 0.3}
        shop.proxy.plan(seed=seed, chances=chances, notes_keys=True)
        seen = list(seen_in(store.get_online_features(**read.request), read))
        answered = {
            (table, key)
            for answer in shop.proxy.report().answered
            for table, keys in answer.items()
            for key in keys
        }
        assert {names[one.key] for one in seen if one.status == PRESENT} == answered
        unread = [one for one in seen if one.status != PRESENT]
        assert all(one.status == INVALID and one.is_null for one in unread)
        marked += len(unread)
    assert marked > 0
    shop.proxy.plan()
    asyncio.run(store.close())


def name_at_proxy(shop: Shop, view: str, number: int) -> tuple[str, str]:
    return f"{shop.project}.{view}", base64.b64encode(stored_key(view, number)).decode()
