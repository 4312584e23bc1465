"""CONTRIBUTING.md and the hooks before a commit name what exists."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
PATHS = re.findall(r"(?<![\w/-])(?:feast_dynamo_ext|docs|tests|feature_repo)/[\w./-]*", TEXT)
TARGETS = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_its_paths_exist():
    assert "tests/support/examples.py" in PATHS
    assert [path for path in PATHS if not (ROOT / path).exists()] == []


def test_what_may_be_added_has_a_file_and_a_test():
    rows = re.findall(r"^\| (an? [^|]+) \| `([^`]+)` \| `([^`]+)` \|$", TEXT, re.MULTILINE)
    assert [added.split(" of ")[0] for added, _, _ in rows] == [
        *["a setting"] * 4,
        "an Arrow type",
        "a kind",
        "a command",
    ]
    assert all(file.startswith("feast_dynamo_ext/") for _, file, _ in rows)
    assert all(test.startswith("tests/") for _, _, test in rows)


def test_its_make_targets_exist():
    named = set(re.findall(r"`make ([a-z-]+)", TEXT))
    assert {"test", "test-fast", "lint", "types", "docs", "bench"} <= named
    assert named <= set(TARGETS)


def test_the_hooks_are_local_and_run_what_is_installed():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    assert [hook["id"] for hook in repo["hooks"]] == [
        "ruff-check",
        "ruff-format",
        "mypy",
        "generated-docs",
    ]
    for hook in repo["hooks"]:
        assert hook["language"] == "system"
        program, *arguments = hook["entry"].split()
        assert program.startswith(".venv/bin/")
        assert all((ROOT / path).exists() for path in arguments if path.endswith(".py"))


STARTS = re.compile(r"\b(?:start_moto|start_dynamodb_local|launch)\(|\"local\", \"up\"")


def test_what_starts_servers_is_marked_and_no_unit_test():
    starting = {
        path
        for path in (ROOT / "tests").glob("*/test_*.py")
        if STARTS.search(path.read_text()) and path.name != "test_local_install.py"
    }
    assert ROOT / "tests" / "cli" / "test_local.py" in starting
    assert [path for path in starting if "= pytest.mark.server" not in path.read_text()] == []
    assert [path for path in starting if path.parent.name == "unit"] == []


def test_no_unit_test_uses_a_server(request):
    """In a run of all tests; conftest.py has marked those that use a fixture that starts one."""
    unit = ROOT / "tests" / "unit"
    using = [item for item in request.session.items if item.get_closest_marker("server")]
    assert [item.nodeid for item in using if unit in item.path.parents] == []
