"""docs/tutorial/train-and-serve.md runs as it stands: files are saved, commands are run."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial" / "train-and-serve.md").read_text()
BIN = Path(sys.executable).parent
PORT = "8081"
# A block is run, or saved under the name that stands before it.
STEP = re.compile(
    r"(?:Save as `(?P<name>[^`]+)`:\n\n<!-- .*? -->\n)?^```(?P<kind>\w+)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
STEPS = [(step["name"], step["kind"], step["body"]) for step in STEP.finditer(PAGE)]


def script() -> str:
    """The page as a reader goes through it."""
    parts = ["set -e", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for name, kind, body in STEPS:
        if name:
            parts.append(
                f"mkdir -p $(dirname {name})\ncat > {name} <<'END-OF-FILE'\n{body}END-OF-FILE"
            )
        elif kind == "bash":
            parts.append(body)
    return "\n".join(parts)


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()
    yield folder
    down = [BIN / "feast-dynamo", "local", "down", "--folder", tmp_path / "shop"]
    subprocess.run(down, check=True)


def test_the_page_runs_to_predictions(checkout, tmp_path):
    assert [name for name, _, _ in STEPS if name] == [
        "labels.py", "training_sets/repurchase.yaml", "train.py",
    ]  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    done = subprocess.run(
        ["bash"],
        input=script().replace(PORT, port),
        cwd=checkout,
        env=os.environ | {"PATH": os.pathsep.join([str(BIN), os.environ["PATH"]])},
        capture_output=True,
        text=True,
        check=False,
    )
    shop = tmp_path / "shop"
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    assert "Traceback" not in done.stdout + done.stderr + (shop / "endpoint.log").read_text()
    _, summary, answer = (body for _, kind, body in STEPS if kind == "text")
    for line in summary.splitlines()[1:]:
        split, rows = line.split()
        assert re.search(rf"^{split} +{rows} ", done.stdout, re.MULTILINE)
        files = shop / "sets" / "repurchase" / split / "parquet"
        assert pq.read_table(files).num_rows == int(rows)
    assert float(re.search(r"^auc: ([0-9.]+)$", done.stdout, re.MULTILINE)[1]) > 0.6
    (line,) = [line for line in done.stdout.splitlines() if line.startswith('{"predictions"')]
    found, _ = json.JSONDecoder().raw_decode(line)
    said = json.loads(answer)
    assert found["features"] == said["features"]
    for mine, theirs in zip(found["predictions"], said["predictions"], strict=True):
        assert mine["score"] == pytest.approx(theirs["score"], abs=0.15)
    assert (shop / "report.html").read_text().startswith("<!doctype html>")
