"""Versions of a table: listed, named, gone back to, and expired with what only they list."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import pytest
from history_tables import contents, delete_rows, new_table, rows
from pyiceberg.exceptions import CommitFailedException

from feast_dynamo_ext.errors import ConfigError, NotCommittedError, OfflineStoreError
from feast_dynamo_ext.parquet.iceberg.expire import expire
from feast_dynamo_ext.parquet.iceberg.optimize import optimize
from feast_dynamo_ext.parquet.iceberg.snapshot_files import remove_snapshots, tidy_after_append
from feast_dynamo_ext.parquet.iceberg.snapshots import history, rollback, tag, untag

UTC = dt.timezone.utc
FAR = dt.datetime(2999, 1, 1, tzinfo=UTC)


@pytest.fixture
def handle(tmp_path):
    """Three appends."""
    handle = new_table(tmp_path)
    for at in range(3):
        handle.append(rows((at, at, None, float(at), "a")))
    return handle


def files_below(folder):
    """Parquet and Avro files."""
    return {path for path in folder.rglob("*") if path.suffix in (".parquet", ".avro")}


def listed(handle):
    """All files that a snapshot of a table lists, by pyiceberg's own reading."""
    table = handle.load()
    found = set()
    for snapshot in table.snapshots():
        found.add(snapshot.manifest_list)
        for manifest in snapshot.manifests(table.io):
            found.add(manifest.manifest_path)
            found |= {
                entry.data_file.file_path for entry in manifest.fetch_manifest_entry(table.io)
            }
    return {Path(uri.removeprefix("file://")) for uri in found}


def test_history_names_what_each_commit_did(handle):
    tag(handle, "first", history(handle)[-1].snapshot_id)
    optimize(handle)
    handle.load().delete("cid = 1")
    found = history(handle)
    assert [info.operation for info in found] == ["overwrite", "optimize", *["append"] * 3]
    assert [info.rows for info in found] == [2, 3, 3, 2, 1]
    assert [info.files for info in found] == [1, 1, 3, 2, 1]
    assert [(info.rows_added, info.rows_removed) for info in found] == [
        (2, 3),
        (3, 3),
        (1, 0),
        (1, 0),
        (1, 0),
    ]
    assert [info.tags for info in found] == [(), (), (), (), ("first",)]
    assert [info.branches for info in found] == [("main",), (), (), (), ()]
    assert [info.is_current for info in found] == [True, False, False, False, False]
    assert all(info.is_in_line for info in found)
    assert [bool(info.commit_id) for info in found] == [False, True, True, True, True]
    assert found[0].time > found[-1].time > dt.datetime(2026, 1, 1, tzinfo=UTC)


def test_a_table_without_rows_has_no_history(tmp_path):
    handle = new_table(tmp_path)
    assert history(handle) == []
    assert expire(handle, FAR).expired == ()
    with pytest.raises(ConfigError, match="is empty"):
        tag(handle, "first")


def test_rollback_to_an_id_a_tag_and_a_time(handle):
    newest, middle, first = history(handle)
    tag(handle, "first", first.snapshot_id)
    assert rollback(handle, middle.snapshot_id).is_current
    assert len(contents(handle)) == 2
    assert rollback(handle, middle.snapshot_id).is_current  # is so already
    # What was gone back from is in the history, and not in the line.
    assert [info.is_in_line for info in history(handle)] == [False, True, True]
    with pytest.raises(ConfigError, match="did not come from"):
        rollback(handle, newest.snapshot_id)
    assert rollback(handle, "first").snapshot_id == first.snapshot_id
    handle.append(rows((7, 7, None, 7.0, "b")))
    assert len(contents(handle)) == 2
    before = dt.datetime.now(UTC)
    handle.append(rows((8, 8, None, 8.0, "b")))
    assert rollback(handle, before).rows == 2
    for missing in (5, "nothing", dt.datetime(2000, 1, 1, tzinfo=UTC)):
        with pytest.raises(ConfigError, match=re.escape(f"no snapshot for `{missing}`")):
            rollback(handle, missing)


def test_rollback_past_versions_that_are_expired(handle):
    newest, _, first = history(handle)
    tag(handle, "first", first.snapshot_id)
    tag(handle, "newest", newest.snapshot_id)
    handle.append(rows((7, 7, None, 7.0, "b")))
    before = dt.datetime.now(UTC)
    handle.append(rows((8, 8, None, 8.0, "b")))
    expire(handle, FAR)
    # Nobody knows any more whether the current one came from those.
    assert [info.is_in_line for info in history(handle)] == [True, None, None]
    assert rollback(handle, before).snapshot_id == newest.snapshot_id
    assert len(contents(handle)) == 3
    assert rollback(handle, "first").is_current
    assert len(contents(handle)) == 1
    with pytest.raises(ConfigError, match="the current version did not come from snapshot"):
        rollback(handle, "newest")


def test_rollback_refuses_a_version_that_nobody_knows_to_have_been_current(handle):
    tag(handle, "first", history(handle)[-1].snapshot_id)
    with handle.load().transaction() as transaction:
        branch = transaction.update_snapshot(branch="side").fast_append()
        branch.commit()
    side = handle.load().snapshot_by_name("side")
    handle.append(rows((7, 7, None, 7.0, "b")))
    handle.append(rows((8, 8, None, 8.0, "b")))
    expire(handle, FAR)
    with pytest.raises(
        ConfigError, match=rf"has no tag.*table tag .* --snapshot {side.snapshot_id}"
    ):
        rollback(handle, side.snapshot_id)
    tag(handle, "mine", side.snapshot_id)
    assert rollback(handle, side.snapshot_id).tags == ("mine",)


def test_tags(handle):
    newest, _, first = history(handle)
    assert tag(handle, "now").tags == ("now",)
    assert tag(handle, "now", newest.snapshot_id).tags == ("now",)  # is so already
    assert tag(handle, "then", "now").tags == ("now", "then")
    with pytest.raises(ConfigError, match="has a tag `now` already"):
        tag(handle, "now", first.snapshot_id)
    with pytest.raises(ConfigError, match="cannot be named `main`"):
        tag(handle, "main")
    with pytest.raises(ConfigError, match=r"no tag `main`\. Its tags: now, then"):
        untag(handle, "main")
    untag(handle, "now")
    assert history(handle)[0].tags == ("then",)


def test_expired_snapshots_go_with_the_files_that_only_they_list(tmp_path, handle):
    optimize(handle)
    handle.append(rows((5, 5, None, 5.0, "a")))
    foreign = tmp_path / "warehouse" / "shop" / "orders" / "data" / "other.parquet"
    foreign.write_bytes(b"of someone else")
    before, count = contents(handle), len(files_below(tmp_path))
    planned = expire(handle, FAR, dry_run=True)
    assert len(files_below(tmp_path)) == count
    report = expire(handle, FAR)
    assert report == planned
    assert len(report.expired) == 4
    assert (report.kept, report.data_files, report.delete_files) == (1, 3, 0)
    assert contents(handle) == before
    assert files_below(tmp_path) == listed(handle) | {foreign}
    assert report.metadata_files == count - len(files_below(tmp_path)) - 3
    assert expire(handle, FAR).expired == ()


def test_what_is_named_stays(tmp_path, handle):
    ids = [info.snapshot_id for info in history(handle)][::-1]
    for at in range(3, 7):
        handle.append(rows((at, at, None, float(at), "a")))
    tag(handle, "pinned", ids[1])
    handle.load().manage_snapshots().create_branch(ids[0], "side").commit()
    optimize(handle)
    ids = [info.snapshot_id for info in history(handle)][::-1]
    versions = {number: contents(handle, number) for number in ids}
    report = expire(handle, FAR, keep_last=2, keep_ids=[ids[3]])
    assert report.expired == (ids[2], ids[4], ids[5])
    assert report.kept_by == {
        ids[0]: "branch `side`",
        ids[1]: "tag `pinned`",
        ids[3]: "named to be kept",
        ids[6]: "one of the last 2",
        ids[7]: "current",
    }
    for number in (ids[0], ids[1], ids[3], ids[6], ids[7]):
        assert contents(handle, number) == versions[number]
    assert files_below(tmp_path) == listed(handle)
    assert expire(handle).expired == ()  # none is five days old


def test_files_of_deleted_rows_and_files_that_are_gone(tmp_path, handle):
    path = next(iter(handle.load().scan().plan_files())).file.file_path
    delete_rows(handle, path, [0])
    optimize(handle)
    gone = next(iter(files_below(tmp_path) & {Path(path.removeprefix("file://"))}))
    gone.unlink()
    first = handle.load().snapshots()[0].manifest_list
    Path(first.removeprefix("file://")).unlink()
    report = expire(handle, FAR)
    assert (report.data_files, report.delete_files) == (3, 1)
    assert len(contents(handle)) == 2
    assert files_below(tmp_path) == listed(handle)


def test_a_table_that_keeps_its_files_is_refused(handle):
    with handle.load().transaction() as transaction:
        transaction.set_properties({"gc.enabled": "false"})
    with pytest.raises(OfflineStoreError, match=r"gc\.enabled"):
        expire(handle, FAR)


def test_a_tag_that_is_set_meanwhile_keeps_its_snapshot(handle):
    table = handle.load()
    first = history(handle)[-1].snapshot_id
    tag(handle, "meanwhile", first)
    with pytest.raises(CommitFailedException, match="meanwhile"):
        remove_snapshots(table, [first])
    assert history(handle)[-1].tags == ("meanwhile",)
    report = expire(handle, FAR)
    assert first not in report.expired


def test_a_rollback_refuses_to_take_away_what_others_append_meanwhile(handle):
    newest, middle, _ = history(handle)

    class Slow(type(handle)):
        """Another writer appends just after the table was loaded."""

        def load(self):
            table = super().load()
            if not appended:
                appended.append(handle.append(rows((9, 9, None, 9.0, "b"))))
            return table

    appended: list = []
    slow = Slow(handle.address, handle.name, handle.settings)
    with pytest.raises(NotCommittedError, match="changed by another writer meanwhile"):
        rollback(slow, middle.snapshot_id)
    assert len(contents(handle)) == 4
    assert history(handle)[1].snapshot_id == newest.snapshot_id


def test_many_appends_are_tidied_and_all_rows_stay(tmp_path, handle):
    oldest = history(handle)[-1].snapshot_id
    for at in range(3, 12):
        table = handle.append(rows((at, at, None, float(at), "a")))
        if at == 3:
            tag(handle, "pinned", oldest)
        tidy_after_append(table, handle.settings, most=4, kept=2)
    found = history(handle)
    assert 2 <= len(found) - 1 <= 4
    assert found[-1].tags == ("pinned",)
    assert len(contents(handle)) == 12
    assert [len(contents(handle, info.snapshot_id)) for info in found] == [
        info.rows for info in found
    ]
    assert files_below(tmp_path) == listed(handle)
    # Of commits that removed files, nothing is known to be left over: they stay.
    optimize(handle)
    table = handle.append(rows((1, 1, None, 1.0, "a")))
    count = len(table.snapshots())
    tidy_after_append(table, handle.settings, most=0, kept=0)
    tidy_after_append(table, handle.settings, most=1, kept=0)
    assert len(handle.load().snapshots()) == count
