"""What monitoring measures may be larger than `memory_limit`: DuckDB spills."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROWS, GROUP, CODES = 9_000_000, 100_000, 200_000
SPOOLED_MB = 137
"""Nine million rows of a double and an int64."""

LIMIT_MB, READING_MB = 64, 192
"""What DuckDB may take, and what reading a file and DuckDB outside its limit do beside it."""

MEASURE = """
import json, sys
from pathlib import Path
from feast import FileSource, RepoConfig
from feast_dynamo_ext import S3ParquetOfflineStore

def megabytes(what):
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in status if line.startswith(what))

config = RepoConfig(
    project="p", provider="feast_dynamo_ext.DynamoProvider", registry="registry.db",
    online_store={"type": "feast_dynamo_ext.DynamoOnlineStore"},
    offline_store={
        "type": "feast_dynamo_ext.S3ParquetOfflineStore",
        "memory_limit": sys.argv[1], "threads": 2, "spill_folder": "spill",
    },
    entity_key_serialization_version=3,
)
config.repo_path = Path.cwd()
source = FileSource(name="h", path="history.parquet", timestamp_field="at")
before = megabytes("VmRSS")
x, code = S3ParquetOfflineStore.compute_monitoring_metrics(
    config, source, [("x", "numeric"), ("code", "categorical")], "at"
)
print(json.dumps([megabytes("VmHWM") - before, x, code]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are Linux's")
def test_columns_beyond_the_memory_limit(tmp_path):
    (tmp_path / "spill").mkdir()
    _write(tmp_path / "history.parquet")
    # A file, for DuckDB takes `python -c` for a session at a terminal, and shows progress there.
    (tmp_path / "measure.py").write_text(MEASURE)
    done = subprocess.run(
        [sys.executable, "measure.py", f"{LIMIT_MB}MB"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak_mb, x, code = json.loads(done.stdout)
    assert SPOOLED_MB > 2 * LIMIT_MB
    assert peak_mb < LIMIT_MB + READING_MB
    assert list((tmp_path / "spill").iterdir()) == []
    # All integers from 0 to 8,999,999, each once.
    assert (x["row_count"], x["null_count"], x["mean"]) == (ROWS, 0, 4_499_999.5)
    assert (x["min_val"], x["max_val"]) == (0.0, 8_999_999.0)
    assert x["p50"] == 4_499_999.5
    assert [x[name] for name in ("p75", "p90", "p95", "p99")] == pytest.approx(
        [6_749_999.25, 8_099_999.1, 8_549_999.05, 8_909_999.01], rel=1e-15
    )
    assert x["histogram"]["counts"] == [450_000] * 20
    # 45 of each code; of equally frequent ones those that come first, from the greatest on.
    assert code["histogram"] == {
        "values": [{"value": 199_999 - at, "count": 45} for at in range(10)],
        "other_count": ROWS - 450,
        "unique_count": CODES,
    }


def _write(path: Path) -> None:
    schema = pa.schema(
        [("at", pa.timestamp("us", "UTC")), ("x", pa.float64()), ("code", pa.int64())]
    )
    at = pa.array(np.zeros(GROUP, dtype=np.int64), schema.field("at").type)
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, ROWS, GROUP):
            row = np.arange(start, start + GROUP)
            # 7,919 has no factor in common with ROWS, so that each number comes once.
            columns = [row * 7919 % ROWS, CODES - 1 - row % CODES]
            arrays = [
                pa.array(column, field.type, safe=False)
                for column, field in zip(columns, list(schema)[1:], strict=True)
            ]
            writer.write_table(pa.table([at, *arrays], schema))
