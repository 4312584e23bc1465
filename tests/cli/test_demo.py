"""The demo's driver: what it starts it stops, however it ends. CI runs the whole of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.server  # they start servers of their own

DEMO = Path(__file__).parents[2] / "feature_repo" / "demo.py"


@pytest.fixture
def demo(tmp_path):
    """Starts the demo on moto alone and waits until the embedded AWS is up."""
    copied = tmp_path / "feature_repo"
    copied.mkdir()
    for file in DEMO.parent.iterdir():
        if file.is_file():
            (copied / file.name).write_bytes(file.read_bytes())
    started = []

    def start() -> tuple[subprocess.Popen, psutil.Process]:
        process = subprocess.Popen(
            [sys.executable, "-u", str(copied / "demo.py")],
            env={**os.environ, "PATH": str(tmp_path)},  # no Java there
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        line = next(line for line in process.stdout if line.startswith("Embedded AWS"))
        port = int(re.search(r"moto at http://127\.0\.0\.1:(\d+)", line)[1])
        return process, listener(port)

    yield start
    for process in started:
        process.kill()
        process.stdout.close()
        process.wait()


def listener(port: int) -> psutil.Process:
    """The process that listens on a port."""
    found = [
        connection.pid
        for connection in psutil.net_connections("tcp4")
        if connection.laddr.port == port and connection.status == psutil.CONN_LISTEN
    ]
    return psutil.Process(found[0])


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "terminated"]
)
def test_an_interrupted_demo_stops_the_embedded_aws(demo, sent, code):
    process, server = demo()
    process.send_signal(sent)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert not server.is_running()


def test_a_failed_step_is_reported_and_stops_the_embedded_aws(demo, tmp_path):
    process, server = demo()
    (tmp_path / "feature_repo" / "definitions.py").write_text("1 / 0\n")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert re.search(r"^error: .*feast.*apply.*exit status 1", output, re.MULTILINE), output
    assert not server.is_running()
