"""Builds of training sets are killed at any moment, or meet: what is there is the set of one.

`FAULT_TIMES=10` makes it ten times as many.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
import uuid
from pathlib import Path

import boto3
import pytest
from set_run import build

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker import load_training_set, verify
from feast_dynamo_ext.sagemaker.output_folder import open_folder

TIMES = int(os.environ.get("FAULT_TIMES", "1"))
KILLS, MEETINGS = 8 * TIMES, 3 * TIMES

RUN = Path(__file__).with_name("set_run.py")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 * TIMES)]


class Builder:
    """A process that builds what it is told to."""

    def __init__(self, programs, place, *, overwrite):
        paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        with place.log.open("a") as said:
            self.program = programs.start(
                *(RUN, place.endpoint, place.spill, "overwrite" if overwrite else "once"),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                stderr=said,
            )
        assert self.answer() == "ready", place.log.read_text()

    def begin(self, output, content):
        self.program.stdin.write(f"{output} {content}\n")
        self.program.stdin.flush()

    def answer(self):
        return self.program.stdout.readline().strip()

    def kill_after(self, seconds):
        """Kill it after a while; whether it was at work."""
        try:
            self.program.wait(seconds)
        except subprocess.TimeoutExpired:
            self.program.kill()
            self.program.wait()
        is_done = self.answer()
        self.close()
        return not is_done

    def end(self):
        self.program.stdin.close()
        assert self.program.wait() == 0
        self.close()

    def close(self):
        for stream in (self.program.stdin, self.program.stdout):
            stream.close()


class Place:
    """Where sets are built, on a disk or on S3."""

    def __init__(self, tmp_path, endpoint):
        self.spill, self.endpoint = str(tmp_path / "spill"), endpoint
        self.log = tmp_path / "builders.log"
        Path(self.spill).mkdir()
        self.aws = AwsSettings(region="us-east-1", endpoint_url=endpoint or None)
        self.base = str(tmp_path / "sets")
        if endpoint:
            self._s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
            self._bucket = f"sets-{uuid.uuid4().hex}"
            self._s3.create_bucket(Bucket=self._bucket)
            self.base = f"s3://{self._bucket}"

    def output(self, name):
        return f"{self.base}/{name}"

    def files(self, output):
        if self.endpoint:
            prefix = output.removeprefix(f"{self.base}/") + "/"
            listed = self._s3.list_objects_v2(Bucket=self._bucket, Prefix=prefix)
            return {entry["Key"].removeprefix(prefix) for entry in listed.get("Contents", ())}
        found = (path for path in Path(output).rglob("*") if path.is_file())
        return {path.relative_to(output).as_posix() for path in found}

    def content_of(self, output):
        """The content of the set that is there, which is whole, or nothing."""
        if not open_folder(output, self.aws).has_set():
            # What a build has begun is said to be that.
            with pytest.raises(TrainingSetError, match=r"has no manifest|holds no complete"):
                load_training_set(output, self.aws)
            return None
        made = load_training_set(output, self.aws)
        found = verify(output, self.aws)
        assert found.ok, found
        return int(made.manifest.provenance.entity_rows_sha256)


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path):
    endpoint = "" if request.param == "disk" else request.getfixturevalue("moto_endpoint")
    return Place(tmp_path, endpoint)


def time_of_a_build(programs, place):
    """How many seconds a build takes that nobody kills: a machine may be fast, or busy."""
    builder = Builder(programs, place, overwrite=True)
    began = time.monotonic()
    builder.begin(place.output("whole"), 0)
    assert builder.answer()
    took = time.monotonic() - began
    builder.end()
    return took


def test_what_a_killed_build_leaves_is_no_set_and_the_next_build_succeeds(place, fork_server):
    output, chance = place.output("set"), random.Random(TIMES)  # noqa: S311 - moments, no secrets
    at_work, whole = 0, time_of_a_build(fork_server, place)
    for kill in range(KILLS):
        builder = Builder(fork_server, place, overwrite=True)
        before = place.content_of(output)
        builder.begin(output, kill)
        at_work += builder.kill_after(chance.uniform(0.0, whole))
        # The old set, the new one, or none.
        assert place.content_of(output) in (before, kill, None)
        assert not any(Path(place.spill).iterdir())
        if kill % 4 == 3:
            build(output, 1000 + kill, place.endpoint, place.spill, overwrite=True)
            assert place.content_of(output) == 1000 + kill
            files = {file.path for file in load_training_set(output, place.aws).manifest.files}
            # A manifest that was killed at its renaming may be of a build at work: it stays for
            # a minute, hidden.
            hidden = {path for path in place.files(output) if path.startswith(".manifest.json.")}
            assert place.files(output) - hidden == files | {"manifest.json"}
    assert at_work  # the others had ended already


REFUSALS = (
    "holds a training set already",
    "Another process wrote a training set",
    "Another build has taken over",
    "Another process deleted files in",
    "Another process changed",
)


@pytest.mark.parametrize("overwrite", [False, True], ids=["once", "overwrite"])
@pytest.mark.parametrize("contents", [(4, 4), (4, 7)], ids=["same", "different"])
def test_of_two_builds_at_once_one_wins_or_both_refuse(place, fork_server, contents, overwrite):
    builders = [Builder(fork_server, place, overwrite=overwrite) for _ in contents]
    won = 0
    for meeting in range(MEETINGS):
        output = place.output(f"set-{meeting}")
        if overwrite:
            build(output, 1, place.endpoint, place.spill, overwrite=False)
        for builder, content in zip(builders, contents, strict=True):
            builder.begin(output, content)
        answers = [builder.answer() for builder in builders]
        built = [
            content for content, said in zip(contents, answers, strict=True) if said == "built"
        ]
        for said in answers:
            assert said == "built" or any(words in said for words in REFUSALS), said
        if not overwrite:
            assert len(built) <= 1
        # Whole, and of one that says so; the old one or none where both refused.
        found = place.content_of(output)
        assert found in built or (not built and found in (1, None)), (found, answers)
        won += bool(built)
    for builder in builders:
        builder.end()
    assert won
