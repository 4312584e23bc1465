"""What DuckDB is given, rows and folders to spill to, goes with its use.

A folder of a killed process goes with the next process that finds it.
"""

from __future__ import annotations

import os
import platform
import signal
import time
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from feast_dynamo_ext import duckdb_connection
from feast_dynamo_ext.duckdb_connection import registered, spill_folder

KILLED = """
import os, signal, sys
from feast_dynamo_ext.duckdb_connection import connected
from feast_dynamo_ext.retrieval.engines.duckdb import DuckDbEngine

limits = DuckDbEngine(memory_limit="40MB", threads=1, spill_folder=sys.argv[1])
with connected(limits, "A test") as duck:
    duck.execute("CREATE TABLE t AS SELECT hash(range) AS a, hash(-range) FROM range(4000000)")
    print("spilled", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def left(tmp_path):
    """What a killed process left an hour ago."""
    folder = tmp_path / "feast-dynamo-left"
    (folder / "spilled").mkdir(parents=True)
    (folder / "spilled" / "duckdb_temp_storage-0.tmp").write_bytes(b"rows")
    lock = folder / "lock"
    lock.write_text(platform.node())
    age(lock)
    return folder


def age(path):
    hour_ago = time.time() - 3_600
    os.utime(path, (hour_ago, hour_ago))


def test_a_folder_lasts_as_long_as_its_use(tmp_path):
    with spill_folder(str(tmp_path)) as folder:
        assert list(Path(folder).iterdir()) == []
        (Path(folder) / "rows").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), spill_folder(str(tmp_path)):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path, left):
    with spill_folder(str(tmp_path)):
        assert not left.exists()


def test_what_is_in_use_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(duckdb_connection, "SETTLED_S", -1)
    with spill_folder(str(tmp_path)) as one, spill_folder(str(tmp_path)) as other:
        assert Path(one).is_dir()
        assert one != other


def test_what_is_new_of_another_machine_or_no_spill_folder_stays(tmp_path, left):
    (left / "lock").write_text(platform.node())  # as of now
    foreign = tmp_path / "feast-dynamo-foreign"
    foreign.mkdir()
    (foreign / "lock").write_text("another-machine")
    age(foreign / "lock")
    (tmp_path / "feast-dynamo-notes").mkdir()
    (tmp_path / "feast-dynamo-file").write_text("")
    before = {path.name for path in tmp_path.iterdir()}
    with spill_folder(str(tmp_path)):
        assert before < {path.name for path in tmp_path.iterdir()}
    assert before == {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    "make",
    [
        lambda lock, _: os.mkfifo(lock),
        lambda lock, other: lock.symlink_to(other),
        lambda lock, _: lock.mkdir(),
    ],
    ids=["FIFO", "link", "folder"],
)
def test_a_lock_that_is_no_plain_file_is_passed_over(tmp_path, left, make):
    other = tmp_path / "other"
    other.write_text(platform.node())
    age(other)
    (left / "lock").unlink()
    make(left / "lock", other)
    with spill_folder(str(tmp_path)):
        assert left.is_dir()


def test_a_link_to_a_folder_is_passed_over(tmp_path, left):
    place = tmp_path / "place"
    place.mkdir()
    (place / "feast-dynamo-link").symlink_to(left)
    with spill_folder(str(place)):
        assert (left / "spilled" / "duckdb_temp_storage-0.tmp").read_bytes() == b"rows"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders to others")
def test_a_folder_of_another_user_is_passed_over(tmp_path, left):
    os.chown(left, 12_345, -1)
    with spill_folder(str(tmp_path)):
        assert left.is_dir()


def test_one_that_cannot_be_removed_is_told(tmp_path, left, monkeypatch, caplog):
    remove = duckdb_connection.shutil.rmtree

    def refuse(path, *args, **more):
        if path == left:
            raise OSError(5, "Input/output error")
        remove(path, *args, **more)

    monkeypatch.setattr(duckdb_connection.shutil, "rmtree", refuse)
    with spill_folder(str(tmp_path)):
        assert "feast-dynamo-left, which a killed process left, stays" in caplog.text


@pytest.mark.slow
def test_after_a_kill_the_next_use_removes_what_was_spilled(tmp_path, monkeypatch, fork_server):
    with fork_server.start("-c", KILLED, tmp_path) as process:
        assert process.stdout.readline() == "spilled\n"
        monkeypatch.setattr(duckdb_connection, "SETTLED_S", -1)
        with spill_folder(str(tmp_path)):
            spilled = list(tmp_path.glob("feast-dynamo-*/spilled/*tmp*"))
            assert sum(file.stat().st_size for file in spilled) > 1 << 20  # in use: it stays
        process.send_signal(signal.SIGKILL)
    assert all(file.exists() for file in spilled)
    with spill_folder(str(tmp_path)):
        assert not any(file.exists() for file in spilled)
    assert list(tmp_path.iterdir()) == []


# Rows


def test_rows_are_a_relation_as_long_as_the_context_lasts():
    with duckdb.connect(config={"python_enable_replacements": "false"}) as duck:
        with registered(duck, "given", pa.table({"a": [1, 2]})):
            assert duck.execute("SELECT sum(a) FROM given").fetchall() == [(3,)]
        with pytest.raises(duckdb.CatalogException, match="given does not exist"):
            duck.execute("FROM given")


def test_the_error_of_a_reader_is_raised_in_place_of_duckdbs(tmp_path):
    failures: list[Exception] = []

    def batches():
        try:
            yield pa.record_batch({"a": [1]})
            (tmp_path / "orders.parquet").read_bytes()
        except FileNotFoundError as error:
            failures.append(error)
            raise

    reader = pa.RecordBatchReader.from_batches(pa.schema([("a", pa.int64())]), batches())
    with duckdb.connect(config={"python_enable_replacements": "false"}) as duck:
        with (
            pytest.raises(FileNotFoundError, match=r"orders\.parquet"),
            registered(duck, "given", reader, failures),
        ):
            duck.execute("SELECT sum(a) FROM given").fetchall()
        with (
            pytest.raises(duckdb.BinderException, match="nowhere"),
            registered(duck, "given", pa.table({"a": [1]}), []),
        ):
            duck.execute("SELECT nowhere FROM given")
        with pytest.raises(duckdb.CatalogException, match="given does not exist"):
            duck.execute("FROM given")
