"""Whether the process that holds a lease is surely gone, by real processes."""

from __future__ import annotations

import contextlib
import dataclasses
import sys

import psutil
import pytest

from feast_dynamo_ext.materialize.lease import Process

CODE = """
from feast_dynamo_ext.materialize.lease import Process
me = Process.this()
print(me.host, me.pid, me.born, me.command, sep="|", flush=True)
input()
"""

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is known"),
    pytest.mark.slow,  # another process imports Feast
]


@contextlib.contextmanager
def another_process(fork_server):
    """Another process of this machine, and what it says of itself."""
    with fork_server.start("-c", CODE, "materialize", "a b") as started:
        host, pid, born, command = started.stdout.readline().rstrip().split("|")
        yield started, Process(host, int(pid), born, command)
        started.kill()


@pytest.fixture(scope="module")
def other(fork_server):
    with another_process(fork_server) as found:
        yield found


def test_a_process_says_which_one_it_is(other):
    started, process = other
    assert process.pid == started.pid
    assert process.command == "-c materialize 'a b'"
    assert process.host == Process.this().host


def test_a_process_that_runs_is_not_dead(other):
    assert not other[1].is_dead()
    assert not Process.this().is_dead()


def test_a_killed_process_is_dead_even_while_nobody_has_waited_for_it(fork_server):
    with another_process(fork_server) as (started, process):
        started.kill()
        while psutil.Process(started.pid).status() != psutil.STATUS_ZOMBIE:
            pass
        assert process.is_dead()
        started.wait()
        assert process.is_dead()


def test_a_later_process_with_the_same_pid_is_not_taken_for_it(other):
    assert dataclasses.replace(other[1], born="1").is_dead()


@pytest.mark.parametrize("elsewhere", [{"host": "another"}, {"born": None}])
def test_of_a_process_elsewhere_nothing_is_known(elsewhere):
    gone = dataclasses.replace(Process.this(), born="1")
    assert gone.is_dead()
    assert not dataclasses.replace(gone, **elsewhere).is_dead()
