"""Options of `feast-dynamo capture` that mean nothing are usage errors, before all else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from feast_dynamo_ext.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

SYNC, STREAM = ("capture", "sync", "purchases"), ("capture", "stream", "purchases")
POSITIVE = "is not in the range x>0."
FINITE = "is no finite number."
OF_SCAN = "--read-units is of --scan: exports take no read units."
OF_EXPORTS = "--full, --exports and --kms-key are of exports, and --scan makes none"
OF_BOOTSTRAP = "--scan and --exports are of --bootstrap"


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        *(
            (command, (*scan, "--read-units", given), said)
            for command, scan in ((SYNC, ("--scan",)), (STREAM, ("--bootstrap", "--scan")))
            for given, said in (
                ("0", f"0.0 {POSITIVE}"),
                ("-5", f"-5.0 {POSITIVE}"),
                ("-inf", f"-inf {POSITIVE}"),
                ("nan", f"nan {FINITE}"),
                ("inf", f"inf {FINITE}"),
                ("many", "'many' is not a valid float"),
            )
        ),
        (SYNC, ("--read-units", "5"), OF_SCAN),
        (SYNC, ("--scan", "--full"), OF_EXPORTS),
        (SYNC, ("--scan", "--exports", "s3://bucket/exports"), OF_EXPORTS),
        (SYNC, ("--scan", "--kms-key", "a-key"), OF_EXPORTS),
        (STREAM, ("--bootstrap", "--read-units", "5"), OF_SCAN),
        (STREAM, ("--read-units", "5"), OF_SCAN),
        (STREAM, ("--scan",), OF_BOOTSTRAP),
        (STREAM, ("--exports", "s3://bucket/exports"), OF_BOOTSTRAP),
        (
            STREAM,
            ("--bootstrap", "--scan", "--exports", "s3://bucket/exports"),
            "--exports is of exports, and --scan makes none.",
        ),
        (STREAM, ("--history-every", "nan"), f"nan {FINITE}"),
        (STREAM, ("--lease", "inf"), f"inf {FINITE}"),
    ],
)
def test_options_that_mean_nothing_are_usage_errors(
    tmp_path: Path, command: tuple[str, ...], options: tuple[str, ...], said: str
):
    found = CliRunner().invoke(main, [*command, "-c", str(tmp_path), *options])
    assert found.exit_code == 2, found.output
    words = " ".join(found.stderr.split())
    assert said in words


@pytest.mark.parametrize("options", [("--scan",), ("--scan", "--read-units", "0.5"), ("--full",)])
def test_what_means_something_goes_on_to_the_repo(tmp_path: Path, options: tuple[str, ...]):
    found = CliRunner().invoke(main, [*SYNC, "-c", str(tmp_path), *options])
    assert found.exit_code == 1, found.output
    assert "feature_store.yaml" in found.stderr
