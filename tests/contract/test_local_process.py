"""A server as a process: started detached, known again, stopped, and never mistaken."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from feast_dynamo_ext.errors import DependencyError, LocalError
from feast_dynamo_ext.local import Server, start_moto, stop
from feast_dynamo_ext.local.process import launch

pytestmark = pytest.mark.server  # they start servers of their own

LISTENS = """
import signal, socket
server = socket.create_server(("127.0.0.1", 0))
print(f"ready on http://127.0.0.1:{server.getsockname()[1]}", flush=True)
signal.pause()
"""
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + LISTENS
SILENT = "import os, signal; print('pid', os.getpid(), flush=True); signal.pause()"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def wait_until_dead(pid: int) -> None:
    """Waits for a child's end and leaves it a zombie."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


@pytest.fixture
def server(tmp_path):
    found = launch("fake", python(LISTENS), tmp_path / "logs" / "fake.log")
    yield found
    stop(found)


def test_a_started_server_is_described_and_answers(server: Server, tmp_path) -> None:
    port = int(server.endpoint.rsplit(":", 1)[1])
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    assert server.name == "fake"
    assert server.endpoint == f"http://127.0.0.1:{port}"
    assert server.log == tmp_path / "logs" / "fake.log"
    assert server.log.read_text() == f"ready on {server.endpoint}\n"
    assert abs(time.time() - server.started_at) < 60
    assert server.alive


def test_a_terminals_ctrl_c_does_not_reach_it(server: Server) -> None:
    assert os.getsid(server.pid) == server.pid


def test_stop_ends_it_and_twice_is_once(server: Server) -> None:
    stop(server)
    assert not server.alive
    assert not psutil.pid_exists(server.pid)
    stop(server)


def test_a_killed_child_is_not_alive_though_its_pid_is_still_taken(server: Server) -> None:
    os.kill(server.pid, signal.SIGKILL)
    wait_until_dead(server.pid)
    assert psutil.pid_exists(server.pid)
    assert not server.alive
    os.waitpid(server.pid, 0)


def test_a_server_that_ignores_the_signal_is_killed(tmp_path) -> None:
    deaf = launch("deaf", python(DEAF), tmp_path / "deaf.log")
    stop(deaf, timeout_s=0.5)
    assert not psutil.pid_exists(deaf.pid)


def test_a_process_that_has_got_the_old_pid_is_left_alone(server: Server) -> None:
    earlier = replace(server, started_at=server.started_at - 3600)
    assert not earlier.alive
    stop(earlier)
    assert server.alive


def test_an_early_end_is_told_with_the_end_of_the_log(tmp_path) -> None:
    log = tmp_path / "broken.log"
    code = "for line in range(9): print('line', line)\nraise SystemExit(3)"
    with pytest.raises(LocalError) as raised:
        launch("broken", python(code), log)
    assert str(raised.value) == (
        f"broken ended with exit code 3 before it listened. The end of its log {log}: "
        "line 4 | line 5 | line 6 | line 7 | line 8"
    )


def test_a_server_that_never_listens_is_stopped(tmp_path) -> None:
    log = tmp_path / "silent.log"
    with pytest.raises(LocalError, match=r"silent did not listen within 2 s and was stopped\."):
        launch("silent", python(SILENT), log, timeout_s=2)
    pid = int(log.read_text().split()[1])
    assert not psutil.pid_exists(pid)


def test_moto_takes_the_next_port_where_one_is_taken(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, socket.socket() as probe:
        taken = other.getsockname()[1]
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
        probe.close()
        server = start_moto(tmp_path, ports=[taken, free])
    assert server.endpoint == f"http://127.0.0.1:{free}"
    stop(server)


def test_moto_says_that_its_only_port_is_taken(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(LocalError, match=f"moto ended .* Port {port} is in use"):
            start_moto(tmp_path, ports=[port])


@pytest.mark.parametrize("package", ["moto", "flask", "flask_cors"])
def test_moto_missing(package: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DependencyError) as raised:
        start_moto(tmp_path)
    assert str(raised.value) == (
        "The embedded AWS needs the package `moto[server]`, which is not installed. "
        "Run: pip install 'moto[server]>=5.1.20' 'psutil>=5.9'"
    )


def test_psutil_missing(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(DependencyError, match=r"`psutil`.*pip install 'moto.* 'psutil>=5\.9'"):
        start_moto(tmp_path)


def test_a_server_outlives_the_process_that_started_it(tmp_path) -> None:
    code = f"""
import sys
from pathlib import Path
from feast_dynamo_ext.local.process import launch
print(launch("fake", [sys.executable, "-c", {LISTENS!r}], Path("fake.log")).pid)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    process = psutil.Process(int(done.stdout))
    log = tmp_path / "fake.log"
    server = Server("fake", "", process.pid, process.create_time(), log)
    assert server.alive
    stop(server)
    assert not server.alive
