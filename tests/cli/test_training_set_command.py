"""`feast-dynamo training-set`: sets of a feature repo on this machine, built, listed and shown."""

from __future__ import annotations

import datetime as dt
import json
import re
import tarfile

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource
from feast.types import Float64, Int64, String
from feast.value_type import ValueType

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.sagemaker import hash_table, load_training_set, verify

AWS = AwsSettings()
START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
YAML = """\
project: shop
provider: feast_dynamo_ext.DynamoProvider
registry: data/registry.db
online_store:
  type: feast_dynamo_ext.DynamoOnlineStore
  region: us-east-1
offline_store:
  type: feast_dynamo_ext.S3ParquetOfflineStore
entity_key_serialization_version: 3
"""
SET = """\
feature_service: churn
entity_rows: {path: labels.parquet}
label: churned
weight: w
columns:
  city: {encoding: ordinal, unknown: -1}
  basket: {role: feature}
  order: helper
split: {rule: time, validation_from: 2026-01-07, test_from: 2026-01-09}
target: script
formats: [parquet]
output: out/churn
"""
DAYS = [START + n * dt.timedelta(days=1) for n in range(10)]
LABELS = pa.table(
    {
        "cid": pa.array([n % 3 for n in range(10)], pa.int64()),
        "event_timestamp": pa.array(DAYS, pa.timestamp("us", "UTC")),
        "churned": [n % 2 for n in range(10)],
        "w": [1.0] * 10,
        "basket": [float(n) for n in range(10)],
        "order": [f"o{n}" for n in range(10)],
    }
)


@pytest.fixture
def repo(tmp_path):
    (tmp_path / "feature_store.yaml").write_text(YAML)
    (tmp_path / "training_sets").mkdir()
    (tmp_path / "training_sets/churn.yaml").write_text(SET)
    pq.write_table(LABELS, tmp_path / "labels.parquet")
    history = pa.table(
        {
            "cid": pa.array([0, 1, 2, 0], pa.int64()),
            "event_timestamp": pa.array(
                [*[START - dt.timedelta(days=1)] * 3, DAYS[4]], pa.timestamp("us", "UTC")
            ),
            "spend": [0.5, 1.5, 2.5, 9.5],
            "city": ["Ulm", "Bonn", "Ulm", "Rom"],
        }
    )
    pq.write_table(history, tmp_path / "history.parquet")
    entity = Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)
    view = FeatureView(
        name="sales",
        entities=[entity],
        schema=[
            Field(name="cid", dtype=Int64),
            Field(name="spend", dtype=Float64),
            Field(name="city", dtype=String),
        ],
        source=FileSource(
            path=str(tmp_path / "history.parquet"), timestamp_field="event_timestamp"
        ),
        online=False,
    )
    store = FeatureStore(repo_path=str(tmp_path))
    store.apply([entity, view, FeatureService(name="churn", features=[view])])
    return tmp_path


def run(repo, *args, code=0):
    result = CliRunner().invoke(main, ["training-set", *args, "--chdir", str(repo)])
    assert result.exit_code == code, result.output
    return result.output if code else result.stdout


def test_a_declared_set_is_built_listed_and_shown(repo):
    assert "not built" in run(repo, "list")
    answer = json.loads(run(repo, "build", "churn", "--json"))
    assert answer["output"] == str(repo / "out/churn")
    assert [(row["split"], row["rows"]) for row in answer["splits"]] == [
        ("train", 6),
        ("validation", 2),
        ("test", 2),
    ]
    read = pq.read_table(repo / "out/churn/train/parquet/part-00000.parquet").to_pydict()
    assert read == {
        "churned": [0, 1, 0, 1, 0, 1],
        "w": [1.0] * 6,
        "basket": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
        "spend": [0.5, 1.5, 2.5, 0.5, 1.5, 2.5],
        "city": [0, 1, 0, 0, 1, 0],
    }
    # Rome was first seen after train ended.
    test = pq.read_table(repo / "out/churn/test/parquet/part-00000.parquet").to_pydict()
    assert test["city"] == [0, -1]

    manifest = load_training_set(str(repo / "out/churn"), AWS).manifest
    assert manifest.provenance.feature_service == "churn"
    assert manifest.entity_columns == ("cid",)
    assert manifest.helpers == ("order",)
    assert manifest.definition["columns"]["city"] == {"encoding": "ordinal", "unknown": -1}
    origin = manifest.provenance.entity_rows
    assert (origin.kind, origin.text) == ("path", str(repo / "labels.parquet"))
    assert [file.size for file in origin.files] == [(repo / "labels.parquet").stat().st_size]
    sources = {column.name: column.source for column in manifest.columns}
    assert sources["basket"] == sources["w"] == "entity_rows"
    assert sources["spend"] == "features"

    listed = json.loads(run(repo, "list", "--json"))
    assert listed[0]["rows"] == "train 6, validation 2, test 2"
    assert listed[0]["declared in"] == "training_sets/churn.yaml"
    shown = run(repo, "show", "churn")
    assert "ordinal" in shown
    by_output = json.loads(run(repo, "show", str(repo / "out/churn"), "--json"))
    assert [column["role"] for column in by_output["columns"]][:2] == ["label", "weight"]
    assert "holds a training set already" in run(repo, "build", "churn", code=1)
    before = (repo / "out/churn/manifest.json").read_bytes()
    run(repo, "build", "churn", "--overwrite")
    assert (repo / "out/churn/manifest.json").read_bytes() == before


def test_entity_rows_of_python_are_kept_for_a_rebuild(repo):
    code = (
        "import pyarrow.parquet as pq\n"
        "from feast_dynamo_ext.sagemaker import RandomSplit\n"
        "from feast_dynamo_ext.sagemaker.definition import TrainingSetDefinition\n"
        f"rows = pq.read_table({str(repo / 'labels.parquet')!r})\n"
        "s = TrainingSetDefinition(name='rows', features=['sales:spend'], entity_rows=rows,\n"
        "    label='churned', split=RandomSplit({'train': 0.7, 'test': 0.3}), output='out/rows',\n"
        "    columns={'w': 'helper', 'basket': 'helper', 'order': 'helper'})\n"
    )
    (repo / "sets.py").write_text(code)
    run(repo, "build", "rows")
    manifest = load_training_set(str(repo / "out/rows"), AWS).manifest
    assert manifest.provenance.entity_rows.kind == "copy"
    copy = pq.read_table(repo / "out/rows" / manifest.provenance.entity_rows.text)
    assert copy.sort_by("event_timestamp").equals(LABELS.cast(copy.schema))
    names = [name for name in copy.column_names if name != "event_timestamp"]
    assert manifest.provenance.entity_rows_sha256 == hash_table(
        copy.select([*names, "event_timestamp"])
    )
    assert verify(str(repo / "out/rows"), AWS).ok


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  order: helper\n", "", "columns without a role: order. Declare under"),
        ("service: churn", "service: chrn", "no feature service `chrn`. Did you mean `churn`?"),
        (
            "label: churned",
            "label: churn",
            "training_sets/churn.yaml, line 3: The label `churn` is no column of the entity rows. "
            "Did you mean `churned`?",
        ),
        ("weight: w", "weight: W2", "line 4: The weight `W2` is no column of the entity rows. "),
        ("target: script", "target: xgboost, x", "training_sets/churn.yaml, line 10: "),
        ("ordinal, unknown: -1", "age", "`city` (string): `age` does not take string"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(repo, old, new, words):
    assert old in SET
    (repo / "training_sets/churn.yaml").write_text(SET.replace(old, new))
    output = run(repo, "build", "churn", code=1)
    assert words in output
    assert output.startswith("error: ")
    assert not (repo / "out").exists()


IDLE = "training_sets/churn.yaml, line 6: "


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ("ctiy: ordinal", "`ctiy` is no column. Did you mean `city`?"),
        ("sales__city: ordinal", "`sales__city` is no column. "),
        ("cid: ordinal", "`cid` has an encoding, and is kept as it is: leave it out, or declare"),
        ("cid: helper", "`cid` is a join key, and so it is an entity: leave out its role"),
        ("event_timestamp: epoch", "`event_timestamp` is the event time, and kept as it is"),
        ("event_timestamp: helper", "`event_timestamp` is the event time, and kept as it is"),
        ("event_timestamp: entity", "`event_timestamp` is the event time, and kept as it is"),
        ("spend: helper", "`spend` is looked up, and so it is a feature: leave out its role"),
        ("spend: entity", "`spend` is looked up, and so it is a feature: leave out its role"),
        ("spend: {role: feature, missing: 0}", "`spend` is looked up, and so it is a feature"),
    ],
)
def test_a_declaration_that_applies_to_nothing_is_an_error(repo, declared, words):
    text = SET.replace("columns:\n", f"columns:\n  {declared}\n")
    (repo / "training_sets/churn.yaml").write_text(text)
    assert IDLE + words in run(repo, "build", "churn", code=1)
    assert not (repo / "out").exists()


def test_all_declarations_that_apply_to_nothing_are_named_at_once(repo):
    text = SET.replace("columns:\n", "columns:\n  ctiy: ordinal\n  spend: helper\n")
    text = text.replace("  basket: {role: feature}", "  basket: {missing: 0}")
    (repo / "training_sets/churn.yaml").write_text(text)
    output = run(repo, "build", "churn", code=1)
    assert output == (
        "error: Declarations that apply to no column: 3: "
        "training_sets/churn.yaml, line 6: `ctiy` is no column. Did you mean `city`?; "
        "training_sets/churn.yaml, line 9: `basket` has an encoding, and is kept as it is: leave "
        "it out, or declare `role: feature` beside it, in Python `given_features`, to train on "
        "it; training_sets/churn.yaml, line 7: `spend` is looked up, and so it is a feature: "
        "leave out its role `helper`.\n"
    )


@pytest.mark.parametrize("column", ["cid", "event_timestamp"])
def test_a_key_that_is_a_feature_stays_a_key(repo, tmp_path, column):
    encoding = ", encoding: epoch, unit: day" if column == "event_timestamp" else ""
    text = SET.replace("columns:\n", f"columns:\n  {column}: {{role: feature{encoding}}}\n")
    (repo / "training_sets/churn.yaml").write_text(text)
    run(repo, "build", "churn")
    manifest = load_training_set(str(repo / "out/churn"), AWS).manifest
    assert manifest.entity_columns == ("cid",)
    assert manifest.features == (column, "basket", "spend", "city")
    test = repo / "out/churn/test/parquet/part-00000.parquet"
    expected = {"cid": [2, 0], "event_timestamp": [20462, 20463]}[column]  # 9 January 2026
    assert pq.read_table(test)[column].to_pylist() == expected
    beside = pq.read_table(repo / "out/churn/rows/test/part-00000.parquet")
    assert beside.column_names == ["cid", "event_timestamp", "order"]
    assert beside["cid"].to_pylist() == [2, 0]
    assert beside["event_timestamp"].to_pylist() == DAYS[8:]
    again = str(tmp_path / "again")
    assert json.loads(run(repo, "rebuild", "churn", "--to", again, "--json"))["same_bytes"] is True
    assert "the same rows, features and inputs" in run(repo, "diff", "churn", again)
    run(repo, "report", "churn", "--to", str(tmp_path / "churn.html"))


def test_an_unknown_set(repo):
    words = "There is no training set `chrn`. Did you mean `churn`?"
    assert words in run(repo, "build", "chrn", code=1)


def test_sql_is_kept_as_it_is(repo):
    sql = "SELECT cid, event_timestamp, cid > 0 AS churned FROM sales"
    text = SET.replace("{path: labels.parquet}", f"{{sql: '{sql}'}}").replace("weight: w\n", "")
    text = text.replace("  basket: {role: feature}\n  order: helper\n", "")
    text = re.sub(r"split: .*", "split: {rule: none}", text)
    (repo / "training_sets/churn.yaml").write_text(text)
    run(repo, "build", "churn")
    origin = load_training_set(str(repo / "out/churn"), AWS).manifest.provenance.entity_rows
    assert (origin.kind, origin.text) == ("sql", sql)
    read = pd.read_parquet(repo / "out/churn/train/parquet/part-00000.parquet")
    assert sorted(read["churned"]) == [0, 0, 1, 1]


def test_a_declared_set_is_verified_rebuilt_compared_and_reported_by_its_name(repo, tmp_path):
    run(repo, "build", "churn")
    assert "files are as they were written, and so are the sources" in run(repo, "verify", "churn")
    report = json.loads(run(repo, "rebuild", "churn", "--json"))
    assert report["same_bytes"] is True
    assert report["same_entity_rows"] is True
    again = str(tmp_path / "again")
    run(repo, "rebuild", "churn", "--to", again)
    assert "the same rows, features and inputs" in run(repo, "diff", "churn", again)
    page = tmp_path / "churn.html"
    run(repo, "report", "churn", "--to", str(page))
    text = page.read_text()
    assert "<h1>churn</h1>" in text
    assert "string as codes" in text
    assert "sales__event_timestamp" in text
    pq.write_table(LABELS.slice(1), repo / "labels.parquet")
    assert "entity rows" in run(repo, "rebuild", "churn", code=1)


SCRIPT = """\
import json, os, pathlib
import pyarrow.parquet as pq
rows = {}
for split in ("train", "validation"):
    (path,) = pathlib.Path(os.environ[f"SM_CHANNEL_{split.upper()}"]).rglob("*.parquet")
    rows[split] = pq.read_table(path).num_rows
pathlib.Path(os.environ["SM_MODEL_DIR"], "rows.json").write_text(json.dumps(rows))
"""


def test_a_declared_set_is_trained_on_by_its_name_from_the_format_that_it_has(repo, tmp_path):
    pytest.importorskip("sagemaker_training")
    run(repo, "build", "churn")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    models = tmp_path / "models"
    given = ["train", "churn", "--local", "--script", str(script), "--output-path", str(models)]
    work = ["--work-dir", str(tmp_path / "work"), "--chdir", str(repo), "--json"]
    done = CliRunner().invoke(main, [*given, *work])
    assert done.exit_code == 0, done.output
    (archive,) = models.rglob("model.tar.gz")
    with tarfile.open(archive) as files:
        assert json.load(files.extractfile("rows.json")) == {"train": 6, "validation": 2}
