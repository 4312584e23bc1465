"""The state file and its lock."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from feast_dynamo_ext.errors import LocalError
from feast_dynamo_ext.local import Server, down, process, status

MOTO = Server("moto", "http://127.0.0.1:4001", 4711, 1700000000.25, Path("/logs/moto.log"))
OTHER = Server("dynamodb-local", "http://127.0.0.1:4002", 4712, 1700000001.5, Path("/logs/d.log"))


def test_what_is_written_is_read_back(tmp_path) -> None:
    with process.locked(tmp_path):
        process.write(tmp_path, (MOTO, OTHER))
    assert json.loads((tmp_path / ".feast-dynamo" / "local.json").read_text()) == {
        "servers": [
            {
                "name": "moto",
                "endpoint": "http://127.0.0.1:4001",
                "pid": 4711,
                "started_at": 1700000000.25,
                "log": "/logs/moto.log",
            },
            {
                "name": "dynamodb-local",
                "endpoint": "http://127.0.0.1:4002",
                "pid": 4712,
                "started_at": 1700000001.5,
                "log": "/logs/d.log",
            },
        ],
        "ports": {"moto": 4001, "dynamodb-local": 4002},
    }
    assert process.read(tmp_path) == (MOTO, OTHER)


def test_replacing_leaves_nothing_else_behind(tmp_path) -> None:
    with process.locked(tmp_path):
        process.write(tmp_path, (MOTO, OTHER))
        process.write(tmp_path, (MOTO,))
    assert process.read(tmp_path) == (MOTO,)
    names = sorted(path.name for path in (tmp_path / ".feast-dynamo").iterdir())
    assert names == [".gitignore", "local.json", "local.lock"]


def test_git_ignores_the_folder(tmp_path) -> None:
    with process.locked(tmp_path):
        assert (tmp_path / ".feast-dynamo" / ".gitignore").read_text() == "*\n"


def test_a_folder_that_never_had_servers_is_not_touched(tmp_path) -> None:
    assert status(tmp_path) is None
    assert down(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"servers": [{"name": "moto"}]}', '{"servers": [1]}', "\x00"]
)
def test_a_broken_state_file_is_named(content: str, tmp_path) -> None:
    path = tmp_path / ".feast-dynamo" / "local.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(LocalError, match=re.escape(f"{path} cannot be read as the state")):
        status(tmp_path)


def test_a_second_command_is_told_who_holds_the_lock(tmp_path) -> None:
    with process.locked(tmp_path), pytest.raises(LocalError) as raised, process.locked(tmp_path):
        pass
    assert str(raised.value) == (
        f"Another `feast-dynamo local` command (pid {os.getpid()}) is starting or stopping the "
        f"servers of {tmp_path}. Let it end, then run this again."
    )


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path) -> None:
    code = """
import os, signal
from pathlib import Path
from feast_dynamo_ext.local import process
with process.locked(Path()):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert killed.returncode == -9
    assert (tmp_path / ".feast-dynamo" / "local.lock").read_text() != ""
    with process.locked(tmp_path):
        assert (tmp_path / ".feast-dynamo" / "local.lock").read_text() == str(os.getpid())


def test_a_folder_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / ".feast-dynamo").write_text("a file where the folder should be")
    with (
        pytest.raises(LocalError, match=r"\.feast-dynamo cannot be written: File exists\. "),
        process.locked(tmp_path),
    ):
        pass


def test_a_file_that_the_state_names_elsewhere_is_not_moved(tmp_path) -> None:
    notes = tmp_path / "notes.log"
    notes.write_text("mine")
    with process.locked(tmp_path):
        process.write(tmp_path, (Server("moto", "http://127.0.0.1:1", 2**22 + 1, 0.0, notes),))
    stopped = down(tmp_path)
    assert [server.log for server in stopped.died] == [notes]
    assert notes.read_text() == "mine"
    assert not (tmp_path / "notes.died.log").exists()
