"""The entry script of submitted jobs, run as a process by itself, as the services run it."""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from submit_repo import bundle_of, write_submit_repo

from feast_dynamo_ext.submit.job_bundle import ENTRY

SCRIPT = """
import os, pathlib, sys
print("in", sorted(path.name for path in pathlib.Path().iterdir()))
print("is", os.environ["AWS_REGION"], os.environ.get("COLOUR"), sys.argv[1:])
print("trouble", file=sys.stderr)
raise SystemExit(int(sys.argv[1]))
"""


@pytest.fixture
def run(tmp_path):
    """Lays the files of a job out as SageMaker does, and runs the entry script alone."""
    processes = []

    def run(*command, package="installed", options=(), changes=None, wait=True, **more):
        repo = tmp_path / "repo"
        if not repo.exists():
            write_submit_repo(repo)
            (repo / "script.py").write_text(SCRIPT)
        files = bundle_of(repo, command=command, **more).files(package)
        inputs = tmp_path / "input"
        for kind, upload in zip(("wheel", "repo", "entry", "job"), files.uploads, strict=True):
            path = inputs / kind / upload.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(upload.data)
        path = inputs / "job" / "job.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | (changes or {})))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        environment |= {"TMPDIR": str(tmp_path)}
        given = ["--feast-dynamo-job", path, "--feast-dynamo-inputs", inputs, *options]
        # Glue's own, before and after.
        given = ["--JOB_NAME", "x", *given, "--JOB_RUN_ID", "jr_1"]
        process = subprocess.Popen(
            [sys.executable, "-I", inputs / "entry" / ENTRY.name, *map(str, given)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        processes.append(process)
        if not wait:
            return process
        out, error = process.communicate()
        return process.returncode, out, error

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def test_the_command_runs_in_the_repo_with_its_environment_and_its_exit_code_is_the_jobs(run):
    code, out, error = run("python", "script.py", "0", environment={"COLOUR": "red"})
    assert (code, error) == (0, "")
    assert out.splitlines() == [
        "feast-dynamo job: python script.py 0",
        "in ['feature_store.yaml', 'script.py', 'views.py']",
        "is us-east-1 red ['0']",
        "trouble",
    ]


def test_a_command_that_fails_ends_the_job_with_its_code_and_a_reason(run, tmp_path):
    message = tmp_path / "output" / "message"
    options = ("--feast-dynamo-message", message)
    code, _, error = run("python", "script.py", "7", options=options)
    assert code == 7
    reason = "`python script.py 7` ended with exit code 7: "
    assert error.startswith(reason)
    assert error.rstrip().endswith("| trouble")
    assert message.read_text() == error.rstrip()


def test_a_reason_ends_with_what_went_wrong_however_much_was_printed(run, tmp_path):
    message = tmp_path / "message"
    text = "print('x' * 5_000); raise SystemExit('error: no rows')"
    run("python", "-c", text, options=("--feast-dynamo-message", message))
    reason = message.read_text()
    assert reason.startswith("`python -c ")
    assert reason.endswith("error: no rows")
    assert len(reason) <= 1_000


def test_glue_gets_the_reason_as_an_exception(run):
    code, _, error = run(
        "python", "script.py", "7", options=("--feast-dynamo-on-failure", "raise")
    )
    assert code == 1
    assert "JobError: `python script.py 7` ended with exit code 7: " in error.splitlines()[-1]


@pytest.mark.slow
def test_the_command_is_this_packages_own_unpacked_from_the_wheel(run):
    code, out, error = run("feast-dynamo", "--version", package="unpack")
    assert (code, error) == (0, "")
    assert out.splitlines()[-1] == "feast-dynamo, version 0.1.0"
    where = "import feast_dynamo_ext; print(feast_dynamo_ext.__file__)"
    code, out, _ = run("python", "-c", where, package="unpack")
    assert "/packages/feast_dynamo_ext/__init__.py" in out.splitlines()[-1]


@pytest.mark.slow
def test_a_command_of_feast_runs(run):
    code, out, _ = run("feast", "version")
    assert code == 0
    assert "Feast SDK Version" in out


def test_a_package_that_pip_cannot_install_is_a_reason(run):
    code, _, error = run(
        "python", "script.py", "0", package="install", requirements=("no-such==",)
    )
    assert code == 70
    assert error.startswith("The package could not be installed: ")
    assert "no-such==" in error


@pytest.mark.slow
def test_pip_installs_the_package_before_the_command_runs(run, tmp_path, monkeypatch):
    target = tmp_path / "installed"
    # What the command needs besides is here already.
    for name, value in (("NO_INDEX", "1"), ("NO_DEPS", "1"), ("TARGET", str(target))):
        monkeypatch.setenv(f"PIP_{name}", value)
    where = "import feast_dynamo_ext; print(feast_dynamo_ext.__file__)"
    environment = {"PYTHONPATH": str(target)}
    code, out, error = run(
        *("python", "-c", where), package="install", requirements=(), environment=environment
    )
    assert (code, error) == (0, "")
    assert out.splitlines()[-1] == f"{target}/feast_dynamo_ext/__init__.py"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="PySpark is not installed")
def test_a_session_that_the_command_opens_is_that_of_the_job(tmp_path):
    """spark-submit starts the entry script, whose command is a process of its own."""
    import pyspark

    repo = write_submit_repo(tmp_path / "repo")
    (repo / "count.py").write_text(
        "from pyspark.sql import SparkSession\n"
        "session = SparkSession.builder.getOrCreate()\n"
        "print(session.range(100).count(), session.conf.get('spark.of.job'))\n"
    )
    packed = bundle_of(repo, command=("python", "count.py")).files("installed")
    (tmp_path / "repo.tar.gz").write_bytes(packed.repo.data)
    job = json.loads(packed.job.data) | {"repo": str(tmp_path / "repo.tar.gz")}
    (tmp_path / "job.json").write_text(json.dumps(job))
    home = str(Path(pyspark.__file__).parent)
    command = [f"{home}/bin/spark-submit", "--master", "local[1]", "--conf", "spark.of.job=yes"]
    command += ["--conf", "spark.ui.enabled=false", str(ENTRY)]
    done = subprocess.run(
        [*command, "--feast-dynamo-job", str(tmp_path / "job.json")],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_HOME": home},
    )
    assert done.stdout.splitlines()[-1] == "100 yes"


def tar_of(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return buffer.getvalue()


def test_an_archive_that_is_not_the_one_that_was_packed_is_refused(run, tmp_path):
    code, _, error = run("python", "script.py", "0", changes={"repo_sha256": "0" * 64})
    assert (code, "is not the repo that was packed" in error) == (70, True)
    code, _, error = run("python", "script.py", "0", changes={"format": 2})
    assert (code, "is of format 2, and this reads 1" in error) == (70, True)
    code, _, error = run("rm", "-rf", "x")
    assert (code, "and not `rm -rf x`" in error) == (70, True)


@pytest.mark.parametrize("name", ["../outside.py", "/outside.py", "a/../../b.py"])
def test_no_file_is_written_outside_of_the_repo(run, tmp_path, name):
    packed = tar_of(name)
    run("python", "script.py", "0")
    archive = tmp_path / "other.tar.gz"
    archive.write_bytes(gzip.compress(packed))
    job = {**json.loads((tmp_path / "input" / "job" / "job.json").read_text())}
    job |= {"repo": str(archive), "repo_sha256": hashlib.sha256(packed).hexdigest()}
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, "-I", str(ENTRY), "--feast-dynamo-job", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 70
    assert f"holds `{name}`, which is no file within the repo" in done.stderr


def test_what_cannot_be_read_is_named(tmp_path):
    command = [sys.executable, "-I", str(ENTRY), "--feast-dynamo-job", str(tmp_path / "no.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        70,
        f"{tmp_path}/no.json cannot be read: No such file or directory.\n",
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 9), (signal.SIGINT, 9)])
def test_signals_reach_the_command_and_its_end_is_the_jobs(run, tmp_path, number, code):
    write_submit_repo(tmp_path / "repo")
    (tmp_path / "repo" / "script.py").write_text(
        "import signal, sys\n"
        "def leave(number, frame): sys.exit(9)\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "signal.signal(signal.SIGINT, leave)\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    process = run("python", "script.py", wait=False)
    lines = iter(process.stdout.readline, "")
    assert "ready\n" in [next(lines), next(lines)]
    process.send_signal(number)
    assert process.wait() == code


def test_nothing_is_left_behind(run, tmp_path):
    run("python", "script.py", "0")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("feast-dynamo-")]


def test_the_script_imports_nothing_but_the_standard_library_and_boto3():
    names = set()
    for node in ast.walk(ast.parse(ENTRY.read_text())):
        if isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
    assert names - sys.stdlib_module_names == {"boto3", "botocore"}
