"""Training sets of a feature repo: verified, compared, and their features' ages measured."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import os
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from feast import FeatureService, FeatureStore
from shop_sets import (
    DAY,
    DAYS,
    START,
    apply,
    build,
    entity_rows,
    history,
    iceberg_source,
    shop,
    view,
)

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.duckdb_connection import Limits
from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
from feast_dynamo_ext.parquet.iceberg.erase import erase
from feast_dynamo_ext.parquet.iceberg.expire import expire
from feast_dynamo_ext.parquet.iceberg.optimize import optimize
from feast_dynamo_ext.sagemaker import Encoding, load_training_set, verify
from feast_dynamo_ext.sagemaker.rebuild import rebuild
from feast_dynamo_ext.sagemaker.set_difference import difference
from feast_dynamo_ext.sagemaker.set_inspection import inspect
from feast_dynamo_ext.sagemaker.set_rows import opened_rows
from feast_dynamo_ext.sagemaker.set_verification import changed_sources

AWS = AwsSettings()
DOCS = Path(__file__).parents[2] / "docs"
LIMITS = Limits(memory_limit="200MB", threads=2)


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    store = shop(folder)
    build(store, folder / "set")
    return folder


@pytest.fixture
def store(repo):
    return FeatureStore(repo_path=str(repo))


@pytest.fixture
def copied(repo, tmp_path):
    """The set, to be spoilt."""
    shutil.copytree(repo / "set", tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def own(tmp_path):
    """A repo to be changed, with a set."""
    store = shop(tmp_path)
    build(store, tmp_path / "set")
    return store


def run(*arguments):
    result = CliRunner().invoke(main, ["training-set", *map(str, arguments)], terminal_width=100)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


# verify


def positions(data, path):
    """One byte of each kind of place in a file."""
    found = {"first": 0, "last": len(data) - 1, "middle": len(data) // 2}
    if path.suffix == ".parquet":
        footer = int.from_bytes(data[-8:-4], "little")
        found |= {"in a page": 10, "in the footer": len(data) - 8 - footer // 2, "its length": -6}
    elif path.suffix == ".csv":
        found |= {"a comma": data.index(b","), "an end of line": data.index(b"\n")}
    return found.values()


def test_one_flipped_byte_is_found_wherever_it_is(copied):
    files = sorted(path for path in copied.rglob("*") if path.is_file())
    assert {path.suffix for path in files} == {".csv", ".parquet", ".json"}
    assert verify(str(copied), AWS).ok
    for path in files:
        data = path.read_bytes()
        for at in positions(data, path):
            flipped = bytearray(data)
            flipped[at] ^= 1
            path.write_bytes(flipped)
            name = path.relative_to(copied).as_posix()
            if name == "manifest.json":
                with pytest.raises(TrainingSetError, match=r"manifest\.json"):
                    verify(str(copied), AWS)
            else:
                assert verify(str(copied), AWS).changed == (name,)
        path.write_bytes(data)
    assert verify(str(copied), AWS).ok


def test_every_byte_of_the_manifest_counts(copied):
    path = copied / "manifest.json"
    data = path.read_bytes()
    random = np.random.default_rng(2)
    for at in random.integers(0, len(data), 150):
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(random.integers(0, 7))
        path.write_bytes(flipped)
        with contextlib.suppress(TrainingSetError):
            assert verify(str(copied), AWS).changed == ("manifest.json",)


def test_deleted_and_added_files_are_found(copied):
    (copied / "test/csv/part-00000.csv").unlink()
    (copied / "train/parquet/part-00001.parquet").write_bytes(b"")
    (copied / "train/parquet/.hidden").write_bytes(b"")
    report = verify(str(copied), AWS)
    assert report.missing == ("test/csv/part-00000.csv",)
    assert report.unexpected == ("train/parquet/.hidden", "train/parquet/part-00001.parquet")
    result = run("verify", copied, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["missing"] == ["test/csv/part-00000.csv"]
    assert "is not as it was written" in result.stderr


def test_untouched_sets_verify_by_the_settings_of_the_repo(repo, store):
    manifest = load_training_set(str(repo / "set"), AWS).manifest
    assert changed_sources(manifest, AWS, store) == ()
    result = run("verify", repo / "set", "-c", repo)
    assert result.exit_code == 0
    assert result.stdout == "10 files are as they were written, and so are the sources.\n"


def test_changed_sources_are_named(own, tmp_path):
    manifest = load_training_set(str(tmp_path / "set"), AWS).manifest
    source = tmp_path / "visits.parquet"
    rows = pq.read_table(source)
    pq.write_table(rows.slice(1), source)
    apply(tmp_path, view("purchases", iceberg_source(tmp_path), ttl=DAY))
    own.refresh_registry()
    found = {change.kind: change for change in changed_sources(manifest, AWS, own)}
    assert set(found) == {"file", "definition"}
    assert found["file"].name == str(source)
    assert f"{source.stat().st_size:,} bytes, and had" in found["file"].words
    assert found["definition"].name == "purchases"
    source.unlink()
    assert changed_sources(manifest, AWS)[0].words == "is gone"
    result = run("verify", tmp_path / "set", "-c", tmp_path)
    assert result.exit_code == 1
    assert "source file" in result.stdout
    assert "cannot be built again as it is" in result.stderr
    assert run("verify", tmp_path / "set", "-c", tmp_path, "--files-only").exit_code == 0


def test_a_source_of_the_same_size_and_time_with_other_bytes_is_named(own, tmp_path):
    source = tmp_path / "visits.parquet"
    before = source.stat()
    data = bytearray(source.read_bytes())
    data[len(data) // 3] ^= 1
    source.write_bytes(data)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (source.stat().st_size, source.stat().st_mtime_ns) == (
        before.st_size,
        before.st_mtime_ns,
    )
    manifest = load_training_set(str(tmp_path / "set"), AWS).manifest
    (found,) = changed_sources(manifest, AWS, own)
    assert (found.kind, found.name) == ("file", str(source))
    assert found.words == "has other bytes than it had"


def test_manifests_without_hashes_of_local_files_are_as_they_were(tmp_path):
    """Those of earlier versions, whose text verifies by its own seal."""
    store = shop(tmp_path)
    made = build(store, tmp_path / "set").manifest
    without = tuple(
        dataclasses.replace(file, sha256=None) for file in made.provenance.source_files
    )
    older = dataclasses.replace(
        made, provenance=dataclasses.replace(made.provenance, source_files=without)
    )
    assert len(without) > 0
    assert "sha256" not in json.loads(older.to_json())["provenance"]["source_files"][0]
    (tmp_path / "set/manifest.json").write_text(older.to_json())
    assert verify(str(tmp_path / "set"), AWS).ok
    assert changed_sources(older, AWS, store) == ()


def test_expire_keeps_what_a_set_was_made_of_until_its_tag_is_gone(own, tmp_path):
    handle = TableHandle.from_source(iceberg_source(tmp_path), own.config)
    for at in range(3):
        handle.append(history(range(DAYS + at, DAYS + at + 1)))
    optimize(handle, 200 << 20)
    later = dt.datetime.now(dt.timezone.utc) + 30 * DAY
    expire(handle, older_than=later, keep_last=1)
    assert rebuild(own, str(tmp_path / "set"), str(tmp_path / "again")).same_bytes
    table = handle.load()
    for tag in [name for name in table.refs() if name.startswith("training-set-")]:
        table.manage_snapshots().remove_tag(tag).commit()
    manifest = load_training_set(str(tmp_path / "set"), AWS).manifest
    assert changed_sources(manifest, AWS, own) == ()
    expire(handle, older_than=later, keep_last=1)
    kinds = {change.kind for change in changed_sources(manifest, AWS, own)}
    assert "snapshot" in kinds
    with pytest.raises(TrainingSetError, match="has no snapshot"):
        rebuild(own, str(tmp_path / "set"), str(tmp_path / "third"))
    assert not (tmp_path / "third").exists()


def test_an_expired_snapshot_is_named(own, tmp_path):
    manifest = load_training_set(str(tmp_path / "set"), AWS).manifest
    handle = TableHandle.from_source(iceberg_source(tmp_path), own.config)
    handle.append(history(range(DAYS, DAYS + 1)))
    assert changed_sources(manifest, AWS, own) == ()
    table = handle.load()
    (tag,) = [name for name in table.refs() if name.startswith("training-set-")]
    table.manage_snapshots().remove_tag(tag).commit()
    read = manifest.provenance.snapshots["purchases"].snapshot
    table.maintenance.expire_snapshots().by_id(int(read)).commit()
    found = changed_sources(manifest, AWS, own)[0]
    assert (found.kind, found.name) == ("snapshot", "purchases")
    assert found.words == f"has no snapshot {read} any more: it is expired"
    # Where it was expired as somebody was erased, that is the reason.
    erase(handle, {"cid": 0}, expire_now=True)
    words = changed_sources(manifest, AWS, own)[0].words
    assert re.fullmatch(
        rf"has no snapshot {read} any more: rows were erased from \S+ at 20\S+, with all versions "
        "that held them, and erasing somebody comes before building a set again",
        words,
    )


# rows


@pytest.mark.parametrize("drop", [(), ("parquet",)])
def test_rows_are_the_files_and_stand_beside_their_keys(copied, drop):
    training_set = load_training_set(str(copied), AWS)
    manifest = training_set.manifest
    if drop:
        object.__setattr__(manifest, "formats", ("csv",))
        shutil.rmtree(copied / "train/parquet")
    with opened_rows(training_set.output, manifest, AWS) as rows:
        assert rows.splits == ("train", "validation", "test")
        columns = ["spend", "cid", "bought"]
        found = pa.Table.from_batches(rows.batches("test", columns))
    assert found.column_names == columns
    expected = pq.read_table(copied / "test/parquet/part-00000.parquet")
    assert found["spend"].to_pylist() == expected["spend"].to_pylist()
    assert found["bought"].to_pylist() == expected["bought"].to_pylist()
    keys = pq.read_table(copied / "rows/test/part-00000.parquet")
    assert found["cid"].to_pylist() == keys["cid"].to_pylist()


def test_a_file_that_is_no_parquet_is_named(copied):
    (copied / "train/parquet/part-00000.parquet").write_bytes(b"PAR1 and more")
    training_set = load_training_set(str(copied), AWS)
    with (
        pytest.raises(TrainingSetError, match=r"train/parquet/part-00000\.parquet cannot be read"),
        opened_rows(training_set.output, training_set.manifest, AWS),
    ):
        pass


# report


def test_ages_are_those_of_the_rows_that_the_join_took(repo, store):
    report = inspect(load_training_set(str(repo / "set"), AWS), AWS, LIMITS, store)
    # History has a row of each customer each midnight, so an age is the time of day.
    rows = entity_rows()
    hours = [moment.hour for moment in rows["event_timestamp"].to_pylist()]
    assert {ages.column for ages in report.ages} == {
        "purchases__event_timestamp",
        "visits__event_timestamp",
    }
    for ages in report.ages:
        assert ages.rows == rows.num_rows
        assert (ages.younger, ages.unmatched) == (0, 0)
        assert ages.youngest_s == min(hours) * 3_600
        assert ages.oldest_s == max(hours) * 3_600
        assert sum(ages.counts[:3]) == sum(hour < 1 for hour in hours)
    levels = {finding.check: finding.level for finding in report.findings}
    assert levels["Features younger than their row"] == "ok"
    assert levels["Entities in several splits"] == "note"


def test_ages_are_measured_on_the_snapshot_of_the_set_after_the_history_has_grown(own, tmp_path):
    training_set = load_training_set(str(tmp_path / "set"), AWS)
    before = inspect(training_set, AWS, LIMITS, own).ages
    handle = TableHandle.from_source(iceberg_source(tmp_path), own.config)
    later = history(range(DAYS))
    moved = pc.add(later["event"], pa.scalar(1_000_000, pa.duration("us")))
    handle.append(later.set_column(1, "event", moved))
    assert inspect(training_set, AWS, LIMITS, own).ages == before


def test_without_a_repo_ages_are_unknown_and_the_page_says_why(repo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("report", repo / "set", "--json")
    found = json.loads(result.stdout)
    page = (tmp_path / "training-set-report.html").read_text()
    assert found["bytes"] == len(page.encode())
    assert "this was not run in the feature repo" in page
    levels = {finding["check"]: finding["level"] for finding in found["leakage"]}
    assert levels["Features younger than their row"] == "unknown"


def test_the_page_of_a_repo_has_the_ages(repo, tmp_path):
    result = run("report", repo / "set", "-c", repo, "--to", tmp_path / "page.html")
    assert "bytes. Leakage: warning." in result.stdout
    page = (tmp_path / "page.html").read_text()
    assert "purchases__event_timestamp" in page
    assert "of 2 views, no row that a feature came from is after its entity row" in page


# rebuild


CITIES = ["Ulm", "Bonn", "Rom"]


def with_city(rows):
    return rows.append_column("city", pa.array([CITIES[at % 3] for at in range(rows.num_rows)]))


def encoded(store, output, **more):
    """A set with every part that a rebuild must repeat."""
    rows = with_city(entity_rows())
    rows = rows.append_column("worth", pa.array(np.arange(300.0)))
    rows = rows.append_column("note", pa.array([f"n{at}" for at in range(300)]))
    return build(
        store,
        output,
        rows,
        weight="worth",
        helpers=["note"],
        given_features=["city"],
        encodings={"city": Encoding(encoding="one_hot", max_categories=2, unknown="column")},
        parts=2,
        **more,
    )


def files_of(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_rebuild_is_equal_byte_for_byte_after_appends_and_an_optimize(own, tmp_path):
    encoded(own, tmp_path / "encoded")
    handle = TableHandle.from_source(iceberg_source(tmp_path), own.config)
    for at in range(10):
        handle.append(history(range(at, at + 3), more=1_000.0 * at))
    optimize(handle, 200 << 20)
    assert len(handle.load().history()) > 10
    report = rebuild(own, str(tmp_path / "encoded"), str(tmp_path / "again"))
    assert report.same_bytes
    assert report.ok
    assert files_of(tmp_path / "again") == files_of(tmp_path / "encoded")
    # The newest history gives another set.
    newest = encoded(own, tmp_path / "newest").manifest
    assert newest.content != load_training_set(str(tmp_path / "encoded"), AWS).manifest.content


def test_rebuild_proves_itself_without_leaving_anything(own, tmp_path):
    result = run("rebuild", tmp_path / "set", "-c", tmp_path)
    assert result.stdout == f"{tmp_path / 'set'} was built again: equal byte for byte.\n"
    before = files_of(tmp_path / "set")
    result = run("rebuild", tmp_path / "set", "-c", tmp_path, "--to", tmp_path / "to", "--json")
    assert json.loads(result.stdout)["same_bytes"] is True
    assert files_of(tmp_path / "to") == before == files_of(tmp_path / "set")


def test_other_libraries_are_said_and_content_is_compared(own, tmp_path):
    path = tmp_path / "set/manifest.json"
    manifest = load_training_set(str(tmp_path / "set"), AWS).manifest
    older = dataclasses.replace(manifest, libraries={**manifest.libraries, "pyarrow": "1.0"})
    path.write_text(older.to_json())
    report = rebuild(own, str(tmp_path / "set"), str(tmp_path / "again"))
    assert (report.same_bytes, report.same_content, report.ok) == (False, True, True)
    assert report.libraries == {"pyarrow": ("1.0", pa.__version__)}
    result = run("rebuild", tmp_path / "set", "-c", tmp_path)
    assert "equal in content; libraries are others: pyarrow 1.0" in result.stdout


def files_changed(own, folder):
    rows = pq.read_table(folder / "visits.parquet")
    pq.write_table(rows.slice(1), folder / "visits.parquet")


def views_changed(own, folder):
    apply(folder, view("purchases", iceberg_source(folder), ttl=DAY))


def table_erased(own, folder):
    handle = TableHandle.from_source(iceberg_source(folder), own.config)
    erase(handle, {"cid": 3}, expire_now=True, drop_tags=True)


def copy_changed(own, folder):
    path = folder / "set/rows/entity_rows.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"2")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (files_changed, "file {0}/visits.parquet has "),
        (views_changed, "definition purchases has another definition in the registry"),
        (table_erased, "snapshot purchases has no snapshot "),
        (copy_changed, "set/rows/entity_rows.parquet, the copy of the entity rows, is missing or"),
    ],
)
def test_what_has_changed_is_named_before_anything_is_written(own, tmp_path, change, words):
    change(own, tmp_path)
    own.refresh_registry()
    with pytest.raises(TrainingSetError) as error:
        rebuild(own, str(tmp_path / "set"), str(tmp_path / "again"))
    assert words.format(tmp_path) in str(error.value)
    assert not (tmp_path / "again").exists()


def test_a_set_is_not_built_over_itself(own, tmp_path):
    with pytest.raises(TrainingSetError, match="is where the training set is"):
        rebuild(own, str(tmp_path / "set"), str(tmp_path / "set/"), overwrite=True)


def test_entity_rows_are_read_again_from_a_path_and_by_sql(own, tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(entity_rows(), path)
    by_path = build(own, tmp_path / "by_path", entity_rows=str(path))
    assert by_path.manifest.provenance.entity_rows.kind == "path"
    assert rebuild(own, by_path.output, str(tmp_path / "path_again")).same_bytes
    sql = "SELECT cid, event AS event_timestamp, orders % 2 AS bought FROM purchases ORDER BY 2, 1"
    by_sql = build(own, tmp_path / "by_sql", entity_rows=sql)
    assert by_sql.manifest.provenance.entity_rows.kind == "sql"
    assert rebuild(own, by_sql.output, str(tmp_path / "sql_again")).same_bytes
    pq.write_table(entity_rows().slice(1), path)
    with pytest.raises(TrainingSetError, match=f"entity rows {path} has"):
        rebuild(own, by_path.output, str(tmp_path / "third"))


def test_sql_that_answers_otherwise_is_said(own, tmp_path):
    sql = (
        "SELECT cid, event AS event_timestamp, (random() < 0.5)::INT AS bought FROM purchases "
        "ORDER BY 2, 1"
    )
    made = build(own, tmp_path / "drawn", entity_rows=sql)
    report = rebuild(own, made.output, str(tmp_path / "again"))
    assert not report.same_entity_rows
    assert not report.ok
    result = run("rebuild", tmp_path / "drawn", "-c", tmp_path)
    assert result.exit_code == 1
    assert "not equal; the entity rows are others" in result.stdout


def test_another_zone_and_language_build_the_same(own, tmp_path, fork_server):
    sql = (
        "SELECT cid, event AS event_timestamp, day(event) % 2 AS bought FROM purchases "
        "ORDER BY 2, 1"
    )
    build(own, tmp_path / "by_sql", entity_rows=sql)
    environment = {**os.environ, "TZ": "Asia/Kathmandu", "LC_ALL": "de_DE.UTF-8"}
    for name in ("set", "by_sql"):
        done = fork_server.run(
            *("feast-dynamo", "training-set", "rebuild", tmp_path / name, "-c", tmp_path),
            env=environment,
        )
        assert done.stdout.endswith("was built again: equal byte for byte.\n"), done.stderr


def test_a_feature_service_must_be_as_it_was(own, tmp_path):
    views = {view.name: view for view in own.list_batch_feature_views()}
    service = FeatureService(name="churn", features=[views["purchases"], views["visits"]])
    apply(tmp_path, service)
    own.refresh_registry()
    made = build(own, tmp_path / "served", features=own.get_feature_service("churn"))
    assert rebuild(own, made.output, str(tmp_path / "again")).same_bytes
    apply(tmp_path, FeatureService(name="churn", features=[views["purchases"]]))
    own.refresh_registry()
    with pytest.raises(TrainingSetError, match="service `churn` has changed: visits:minutes"):
        rebuild(own, made.output, str(tmp_path / "third"))


def test_the_page_of_the_docs_runs(own, tmp_path, monkeypatch, capsys):
    (tmp_path / "training").mkdir()
    (tmp_path / "set").rename(tmp_path / "training/june")
    build(own, tmp_path / "training/july", entity_rows(seed=2))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(DOCS / "snippets/check_sets.py"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "True ()"
    assert lines[2] == "True"
    assert "purchases__event_timestamp" in (tmp_path / "june.html").read_text()


# diff


def test_a_set_built_again_is_the_same(repo, store, tmp_path):
    old = load_training_set(str(repo / "set"), AWS)
    new = build(store, tmp_path / "again")
    found = difference(old, new, AWS, LIMITS)
    assert found.is_same
    assert found.rows.old == found.rows.new == 300
    result = run("diff", repo / "set", tmp_path / "again", "-c", repo)
    assert result.stdout == "The two training sets have the same rows, features and inputs.\n"


def test_what_is_different_is_said(own, tmp_path):
    old = load_training_set(str(tmp_path / "set"), AWS)
    handle = TableHandle.from_source(iceberg_source(tmp_path), own.config)
    handle.append(history(range(20, DAYS), more=100.0))
    rows = entity_rows()
    twice = pa.concat_tables([rows.slice(10), rows.slice(40, 1)])
    new = build(
        own,
        tmp_path / "new",
        twice,
        features=["visits:minutes", "purchases:spend"],
    )
    found = difference(old, new, AWS, LIMITS)
    assert not found.is_same
    assert (found.features_added, found.features_removed) == ((), ("orders",))
    assert found.is_reordered
    assert (found.rows.old, found.rows.new) == (300, 291)
    assert (found.rows.removed, found.rows.added) == (10, 1)
    assert found.rows.moved == 0
    removed = [row for row in found.rows.examples if row["change"] == "removed"]
    assert len(removed) == 5
    gone = {
        (str(row["cid"]), str(row["event_timestamp"])[:19])
        for row in rows.slice(0, 10).to_pylist()
    }
    assert {(row["cid"], row["event_timestamp"]) for row in removed} <= gone
    inputs = {name: (was, now) for name, was, now in found.inputs}
    assert [name for name in inputs if not name.startswith("file ")] == [
        "entity rows",
        "snapshot of purchases",
    ]
    assert found.splits["train"]["rows"][0] - found.splits["train"]["rows"][1] == 9
    assert found.to_dict()["is_same"] is False
    assert json.dumps(found.to_dict(), default=str)

    result = run("diff", tmp_path / "set", tmp_path / "new", "-c", tmp_path)
    for words in (
        "- orders",
        "~ in another order",
        "rows 300 -> 291: 1 added, 10 removed, 0 in another split",
        "snapshot of purchases",
    ):
        assert words in result.stdout
    assert json.loads(
        run("diff", tmp_path / "set", tmp_path / "new", "-c", tmp_path, "--json").stdout
    )


def test_rows_in_other_splits_and_shifted_columns_are_counted(own, tmp_path):
    from feast_dynamo_ext.sagemaker import TimeSplit

    rows = pa.concat_tables([entity_rows(2_500, seed=3)])
    later = rows.set_column(2, "bought", pc.subtract(1, rows["bought"]))
    old = build(own, tmp_path / "a", rows)
    new = build(own, tmp_path / "b", later, split=TimeSplit(START + 20 * DAY, START + 24 * DAY))
    found = difference(old, new, AWS, LIMITS)
    moments = rows["event_timestamp"].to_pylist()
    cids = rows["cid"].to_pylist()
    pairs = {
        (cid, moment)
        for cid, moment in zip(cids, moments, strict=True)
        if START + 18 * DAY <= moment < START + 20 * DAY
    }
    assert found.rows.moved == len(pairs)
    psi = {change.column: change.psi for change in found.columns}
    assert set(psi) == {"bought", "spend", "orders", "minutes"}
    assert 0 < psi["orders"] < psi["spend"]


def test_sets_without_a_key_in_common_are_refused(repo, store, tmp_path):
    old = load_training_set(str(repo / "set"), AWS)
    other = load_training_set(str(repo / "set"), AWS)
    object.__setattr__(other.manifest, "entity_columns", ("customer",))
    with pytest.raises(TrainingSetError, match="Rows are compared by entity columns"):
        difference(old, other, AWS, LIMITS)
