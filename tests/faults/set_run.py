"""Builds of a training set, which a test kills or lets meet; started by `test_set_kills`.

Arguments: how to reach S3 (an endpoint, or nothing), a folder to spill to, and whether to
overwrite. Each line of input is `output content`; each is answered by a line of output: `built`,
or the error. Before the first line it says `ready`.
"""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import FeastDynamoError
from feast_dynamo_ext.sagemaker import Encoding, Provenance, TimeSplit, write_training_set

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
ROWS = 10_000
CITIES = ("Ulm", "Bonn", "Rom")


def rows(content: int) -> pa.Table:
    """Rows of which another content differs in each value."""
    at = np.arange(ROWS)
    return pa.table(
        {
            "cid": at,
            "event_timestamp": pa.array(
                np.datetime64("2026-01-01") + at.astype("timedelta64[s]") * 4,
                pa.timestamp("us", "UTC"),
            ),
            "label": (at + content) % 2,
            "city": [CITIES[(place + content) % len(CITIES)] for place in range(ROWS)],
            "spend": at / 4 + content,
        }
    )


def build(output: str, content: int, endpoint: str, spill: str, *, overwrite: bool) -> None:
    """Build the set of a content."""
    write_training_set(
        rows(content),
        label="label",
        event_timestamp="event_timestamp",
        entity_columns=["cid"],
        features=["city", "spend"],
        encodings={"city": Encoding(encoding="ordinal")},
        split=TimeSplit(START + 4 * HOUR, START + 8 * HOUR),
        # Sets of other contents have other files, too.
        parts=2 + content % 2,
        output=output,
        aws=AwsSettings(region="us-east-1", endpoint_url=endpoint or None),
        provenance=Provenance("p", ("v:spend",), {}, (), str(content)),
        overwrite=overwrite,
        spill_folder=spill,
    )


def main(endpoint: str, spill: str, overwrite: str) -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        output, content = line.split()
        try:
            build(output, int(content), endpoint, spill, overwrite=overwrite == "overwrite")
        except FeastDynamoError as error:
            print(f"{type(error).__name__}: {error}".replace("\n", " "), flush=True)
        else:
            print("built", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
