"""What `make bench` needs for exports: its steps on a few rows, its bars and report."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import bars
import capture_files
import stream_changes
from capture_files import Round, Step
from stream_changes import Followed


@pytest.mark.slow
def test_all_steps_read_the_same_items(tmp_path):
    assert capture_files.make(3_000, tmp_path) == {}
    lines = (tmp_path / "one.json").read_bytes().splitlines()
    assert len(lines) == 1_500
    assert 340 < sum(map(len, lines)) / len(lines) < 400
    items = [json.loads(line)["Item"] for line in lines]
    missing = 1 - sum("note" in item for item in items) / len(items)
    assert 0.03 < missing < 0.07
    for step in ("plain", "gz", "pair"):
        assert capture_files.STEPS[step](3_000, tmp_path)["rows"] == 3_000
        assert pq.read_metadata(tmp_path / "two.json.parquet").num_rows == 1_485
        assert pq.read_metadata(tmp_path / "two.json.quarantine").num_rows == 15
    assert capture_files.boto3(3_000, tmp_path)["rows"] == 1_500
    assert capture_files.dynamodb_json(3_000, tmp_path).get("rows", 1_500) == 1_500


def test_bars_and_report():
    one = Step(1_000_000, 4.0, 4.0, 300.0)
    rounds = [
        Round(one, one, Step(50_000, 1.0, 1.0, 90.0), None, Step(1_000_000, 4.0, 2.0, 400.0))
    ]
    held = bars.of_capture(rounds)
    assert [figure.median for _, figure in held] == [250_000, 250_000, 5.0, 2.0, 300.0]
    assert all(bar.is_met(figure) for bar, figure in held)
    assert "plain 250,000, gz 250,000" in capture_files.report(rounds, 1)


def test_the_bar_and_the_report_of_a_followed_table():
    rounds = [Followed(4_000, 199.9, 210.4, 480.2, 1.25, 300.0, 4_001)]
    held = bars.of_stream(rounds)
    assert [figure.median for _, figure in held] == [480.2]
    assert all(bar.is_met(figure) for bar, figure in held)
    assert stream_changes.report(rounds) == (
        "4,000 changes, 200/s: online after 210 ms (p50), 480 ms (p99); worker 1.25 ms of CPU a "
        "change, 300 MB; 4,001 rows in history"
    )
