"""What is declared of columns and cannot apply: refused before anything is written."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pytest

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker import Encoding, NoSplit, Provenance, write_training_set

AWS = AwsSettings()
PROVENANCE = Provenance("shop", ("sales:spend",), {"sales": "ab" * 32}, (), "cd" * 32)
START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
TIMES = pa.array([START + dt.timedelta(hours=n) for n in range(6)], pa.timestamp("us", "UTC"))


def write(output, encodings=None, split=None, **columns):
    """A set of six rows; columns but `label`, `w` and `h_...` are features."""
    given = {"cid": range(6), "event_timestamp": TIMES, "label": [0, 1] * 3} | columns
    options = {key: given.pop(key) for key in ("target", "formats") if key in given}
    table = pa.table({name: pa.array(values) for name, values in given.items()})
    known = {"cid", "event_timestamp", "label", "w"}
    features = [name for name in given if name not in known and not name.startswith("h_")]
    return write_training_set(
        table,
        label="label",
        event_timestamp="event_timestamp",
        entity_columns=["cid"],
        features=features,
        output=str(output),
        split=split or NoSplit(),
        aws=AWS,
        provenance=PROVENANCE,
        weight="w" if "w" in given else None,
        helpers=[name for name in given if name.startswith("h_")],
        encodings={name: Encoding(**each) for name, each in (encodings or {}).items()},
        **options,
    )


def refusal(output: Path, *args, **columns) -> str:
    """The error of a set that cannot be, which leaves no file."""
    with pytest.raises(TrainingSetError) as caught:
        write(output, *args, **columns)
    assert [path for path in output.rglob("*") if path.is_file()] == []
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("aa", "`aa` is no column. Did you mean `a`?"),
        ("lable", "`lable` is no column. Did you mean `label`"),
        ("cid", "`cid` has an encoding, and is kept as it is"),
        ("h_x", "`h_x` has an encoding, and is kept as it is"),
        ("event_timestamp", "`event_timestamp` is the event time, and kept as it is"),
    ],
)
def test_an_encoding_of_nothing_is_an_error(tmp_path, name, words):
    found = refusal(tmp_path, {name: {"missing": 0}}, a=range(6), h_x=range(6))
    assert found.startswith("Declarations that apply to no column: 1: ")
    assert words in found
