"""What `make bench` needs for training sets: its steps on a few rows, its bars and report."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import bars
import training_sets
from training_sets import Round, Step


def test_the_steps_build_and_write_the_same_columns(tmp_path):
    assert training_sets.make(3_000, tmp_path) == {}
    built = training_sets.build(3_000, tmp_path)
    written = training_sets.write(3_000, tmp_path)
    assert built["bytes"] > 0
    assert written["bytes"] > 0
    assert not (tmp_path / "copy.parquet").exists()
    rows = [
        pq.read_table(path).num_rows for path in sorted((tmp_path / "set").glob("*/parquet/*"))
    ]
    assert rows == [600, 2_100, 300]
    schema = pq.read_schema(tmp_path / "set/train/parquet/part-00000.parquet")
    assert len(schema) == 51
    with pytest.raises(RuntimeError, match="has 3000 rows in place of 4000"):
        training_sets.write(4_000, tmp_path)


def test_bars_and_report():
    rounds = [Round(Step(10.0, 9.0, 900.0, 5), Step(5.0, 4.0, 300.0, 5 * 10**6))]
    (speed, percent), (memory, peak) = bars.of_sets(rounds)
    assert (percent.median, peak.median) == (50.0, 900.0)
    assert speed.is_met(percent)
    assert memory.is_met(peak)
    assert "50% of its speed" in training_sets.report(rounds, 1)
    assert training_sets.as_json(rounds)[0]["percent"] == 50.0
