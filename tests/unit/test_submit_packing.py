"""What a submitted job is made of: the wheel, the repo, and the files of both on S3."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from submit_repo import bundle_of, write_submit_repo

import feast_dynamo_ext
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.submit.repo_archive import pack_repo, refuse_written_secrets
from feast_dynamo_ext.submit.wheel import (
    checked_requirement,
    given_wheel,
    installed_wheel,
    requirements,
)


def test_the_wheel_holds_the_package_as_it_runs_here_and_is_the_same_each_time():
    wheel = installed_wheel()
    assert (wheel.name, wheel.version) == ("feast_dynamo_ext-0.1.0-py3-none-any.whl", "0.1.0")
    assert installed_wheel().data == wheel.data
    with zipfile.ZipFile(io.BytesIO(wheel.data)) as archive:
        names = archive.namelist()
        here = Path(feast_dynamo_ext.__file__)
        assert archive.read("feast_dynamo_ext/__init__.py") == here.read_bytes()
        (record,) = [name for name in names if name.endswith(".dist-info/RECORD")]
        rows = list(csv.reader(archive.read(record).decode().splitlines()))
    assert sorted(row[0] for row in rows) == names
    own = {path.relative_to(here.parents[1]).as_posix() for path in here.parent.rglob("*.*ml*")}
    assert {name for name in own if "__pycache__" not in name} <= set(names)
    assert not [name for name in names if name.endswith(".pyc") or "__pycache__" in name]


@pytest.mark.slow
def test_pip_installs_the_wheel_and_its_command_runs(tmp_path):
    wheel = installed_wheel()
    (tmp_path / wheel.name).write_bytes(wheel.data)
    target = tmp_path / "target"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", target]
    subprocess.run([*pip, tmp_path / wheel.name], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    command = [sys.executable, "-m", "feast_dynamo_ext.cli.main", "--version"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True
    )
    assert done.stdout == "feast-dynamo, version 0.1.0\n"
    assert (target / "feast_dynamo_ext-0.1.0.dist-info" / "entry_points.txt").exists()


def test_a_wheel_that_is_given_is_taken_and_another_package_is_not(tmp_path):
    made = installed_wheel()
    path = tmp_path / made.name
    path.write_bytes(made.data)
    assert given_wheel(path) == made
    other = tmp_path / "other-1.0-py3-none-any.whl"
    other.write_bytes(made.data)
    with pytest.raises(
        ConfigError, match=r"is a wheel of `other`. Name one of `feast-dynamo-ext`"
    ):
        given_wheel(other)
    platform = tmp_path / "feast_dynamo_ext-0.1.0-cp311-cp311-linux_x86_64.whl"
    platform.write_bytes(made.data)
    with pytest.raises(ConfigError, match=r"is a wheel of one platform"):
        given_wheel(platform)
    (tmp_path / "feast_dynamo_ext-0.2.0-py3-none-any.whl").write_bytes(b"no zip")
    with pytest.raises(ConfigError, match=r"is no wheel that can be read"):
        given_wheel(tmp_path / "feast_dynamo_ext-0.2.0-py3-none-any.whl")


def test_what_the_wheel_requires_is_pinned_to_what_is_installed_here():
    wheel = installed_wheel()
    found = requirements(wheel, [])
    assert f"feast=={metadata.version('feast')}" in found
    assert f"pyarrow=={metadata.version('pyarrow')}" in found
    assert not [text for text in found if text.startswith(("pyiceberg", "moto", "deltalake"))]
    iceberg = requirements(wheel, ["iceberg"])
    version = metadata.version("pyiceberg")
    assert f"pyiceberg[glue,sql-sqlite]=={version}" in iceberg
    assert set(found) < set(iceberg)
    with pytest.raises(ConfigError, match=r"no extra `iceburg`. Did you mean `iceberg`"):
        requirements(wheel, ["iceburg"])


def test_a_version_that_is_not_for_the_python_of_the_job_is_left_to_pip():
    wheel = installed_wheel()
    assert requirements(wheel, [], "2.7") == ()
    (ranged, _) = [
        text for text in requirements(wheel, ["iceberg"], "2.7") if text.startswith("pyiceberg")
    ]
    assert ranged == "pyiceberg[glue,sql-sqlite]<0.13,>=0.12"


def test_a_requirement_is_one_of_pips():
    assert checked_requirement("lightgbm == 4.6") == "lightgbm==4.6"
    with pytest.raises(ConfigError, match=r"`light gbm` is no requirement of pip's"):
        checked_requirement("light gbm")


# -- the repo ---------------------------------------------------------------------------------


def names_in(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getnames()


def test_a_repo_is_packed_without_caches_environments_and_secrets(tmp_path):
    repo = write_submit_repo(tmp_path / "repo")
    kept = ["feature_store.yaml", "requirements.txt", "training_sets/churn.yaml", "views.py"]
    left_out = [
        *(
            ".git/config",
            "__pycache__/views.cpython-311.pyc",
            "venv/pyvenv.cfg",
            "venv/bin/python",
        ),
        *("conda/conda-meta/history", "node_modules/a.js", ".feast-dynamo/moto.log", "old.pyc"),
        *("repo.egg-info/PKG-INFO", ".pytest_cache/x", ".mypy_cache/x", ".venv/lib/x.py"),
    ]
    secrets = [".aws/credentials", ".env", ".env.production", "keys/id_rsa", "keys/tls.PEM"]
    for name in [*kept[1:3], *left_out, *secrets]:
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / name).write_text("x")
    (repo / "shared").mkdir()
    (repo / ".venv" / "python").symlink_to(sys.executable)
    found = pack_repo(repo)
    assert names_in(found.data) == list(found.files) == kept
    assert sorted(found.secrets) == [".aws", *secrets[1:]]
    assert pack_repo(repo, exclude=["*.txt", "training_sets/*"]).files == (kept[0], kept[3])


def test_equal_repos_are_equal_archives(tmp_path):
    one, other = (pack_repo(write_submit_repo(tmp_path / name)) for name in ("a", "b"))
    assert (one.data, one.sha256) == (other.data, other.sha256)
    (tmp_path / "b" / "views.py").write_text("VIEWS = 2\n")
    assert pack_repo(tmp_path / "b").sha256 != one.sha256


def test_a_large_repo_is_refused_with_what_is_large(tmp_path):
    repo = write_submit_repo(tmp_path)
    (repo / "history.parquet").write_bytes(b"x" * 3_000)
    with pytest.raises(ConfigError, match=r"3.\d+kB, and 2kB are the most. The largest: history"):
        pack_repo(repo, most_bytes=2_000)


def test_links_and_folders_that_are_no_repo_are_refused(tmp_path):
    repo = write_submit_repo(tmp_path / "repo")
    (repo / "data").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match=r"data is a link, which a container cannot follow"):
        pack_repo(repo)
    with pytest.raises(ConfigError, match=r"There is no feature_store.yaml"):
        pack_repo(repo, exclude=["data", "*.yaml"])


@pytest.mark.parametrize(
    ("online", "message"),
    [
        ({"access_key": "abc"}, "`online_store.access_key` holds a secret"),
        ({"nested": {"password": "abc"}}, "`online_store.nested.password` holds a secret"),
        ({"path": "postgresql://me:pw@host/db"}, "`online_store.path` holds a secret"),
        ({"password": "${PASSWORD}"}, ""),
        ({"region": "us-east-1"}, ""),
    ],
)
def test_a_secret_in_feature_store_yaml_is_refused_but_for_variables(tmp_path, online, message):
    write_submit_repo(tmp_path, online=online)
    if not message:
        refuse_written_secrets(tmp_path / "feature_store.yaml")
        return
    with pytest.raises(ConfigError, match=message):
        refuse_written_secrets(tmp_path / "feature_store.yaml")


# -- the files of a job -----------------------------------------------------------------------


def test_the_files_of_a_job_are_named_by_what_they_hold(tmp_path):
    repo = write_submit_repo(tmp_path)
    one, same = bundle_of(repo).files("installed"), bundle_of(repo).files("installed")
    assert [upload.uri for upload in one.uploads] == [upload.uri for upload in same.uploads]
    other = bundle_of(repo, command=("feast", "apply")).files("installed")
    differ = [a.name for a, b in zip(one.uploads, other.uploads, strict=True) if a.uri != b.uri]
    assert differ == ["job.json"]
    assert bundle_of(repo).files("unpack").wheel.name == "feast_dynamo_ext-0.1.0.zip"


@pytest.mark.parametrize("destination", ["jobs", "https://bucket/jobs", "s3://B/jobs", "s3://"])
def test_a_destination_is_a_place_on_s3(tmp_path, destination):
    with pytest.raises(ConfigError, match=r"Write the destination as s3://bucket/prefix"):
        bundle_of(write_submit_repo(tmp_path), destination)
