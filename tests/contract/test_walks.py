"""The counts of modules on the page about the flow of data are those that `make walks` finds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow]  # docs/walks.py starts moto

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "how-data-flows.md"


def test_the_page_has_the_counts_of_the_walks():
    command = [sys.executable, str(ROOT / "docs" / "walks.py"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout[done.stdout.index("{\n") :])
    row = r"^\| ([a-z ]+) \| (\d+) \| \d+ \| (\d+) \| \d+ \|$"
    shown = {
        walk: {"passed": int(passed), "run": int(run)}
        for walk, passed, run in re.findall(row, PAGE.read_text(), re.MULTILINE)
    }
    assert shown == {
        walk: {kind: len(modules) for kind, modules in kinds.items()}
        for walk, kinds in found.items()
    }
