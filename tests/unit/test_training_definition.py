"""Declared training sets: yaml and Python, and errors that name file and line."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pandas as pd
import pytest

from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.sagemaker import StratifiedSplit, TimeFractions, TimeSplit
from feast_dynamo_ext.sagemaker.declared_sets import load_definition, load_definitions
from feast_dynamo_ext.sagemaker.definition import TrainingSetDefinition

TEXT = """\
# what the churn model trains on
feature_service: churn_v2
entity_rows:
  path: labels/churn.parquet
label: churned
weight: w
columns:
  city: {encoding: one_hot, min_count: 20}
  plan: ordinal
  basket_value: {role: feature, missing: median}
  order_id: helper
split:
  rule: time
  validation_from: 2026-03-01
  test_from: 2026-04-01T12:00:00Z
  embargo: 7d
target: xgboost
formats: [parquet, csv]
output: s3://lake/training/churn
parts: 2
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "training_sets").mkdir()
    return tmp_path


def write(folder, text, name="churn.yaml"):
    path = folder / "training_sets" / name
    path.write_text(text)
    return path


def test_yaml_is_the_serialisation_of_the_python_object(folder):
    found = load_definition(write(folder, TEXT))
    rule = TimeSplit(
        dt.datetime(2026, 3, 1, tzinfo=dt.timezone.utc),
        dt.datetime(2026, 4, 1, 12, tzinfo=dt.timezone.utc),
        dt.timedelta(days=7),
    )
    made = TrainingSetDefinition(
        name="churn",
        feature_service="churn_v2",
        entity_rows={"path": "labels/churn.parquet"},
        label="churned",
        weight="w",
        columns={
            "city": {"encoding": "one_hot", "min_count": 20},
            "plan": "ordinal",
            "basket_value": {"role": "feature", "missing": "median"},
            "order_id": "helper",
        },
        split=rule,
        target="xgboost",
        formats=["parquet", "csv"],
        output="s3://lake/training/churn",
        parts=2,
    )
    assert found.split.to_rule() == made.split.to_rule() == rule
    assert found.model_copy(update={"split": made.split}) == made
    assert TrainingSetDefinition(**found.to_json()) == found
    assert found.with_role("helper") == ("order_id",)
    assert found.with_role("feature") == ("basket_value",)
    assert found.entity_rows_in(folder) == str(folder / "labels/churn.parquet")
    assert found.output_in(folder) == "s3://lake/training/churn"


WRONG = {
    "an unknown key": ("label: churned", "labels: churned", 5, "`labels`. Did you mean `label`?"),
    "an unknown key inside": ("min_count: 20", "mincount: 20", 8, "`columns.city.mincount`. Did"),
    "a wrong encoding": (
        "plan: ordinal",
        "plan: ordinals",
        9,
        "`columns.plan.encoding` is `ordin",
    ),
    "a wrong number": ("parts: 2", "parts: two", 20, "`parts` is `two`: must be a whole number"),
    "a contradiction": (
        "encoding: one_hot, min_count",
        "encoding: hash, min_count",
        8,
        "`min_count` is not an option of `hash`",
    ),
    "a wrong split": ("test_from: 2026-04-01", "test_from: 2026-02-01", 12, "must be later than"),
    "a wrong embargo": ("embargo: 7d", "embargo: a week", 12, "`embargo` is `a week`"),
    "another rule's option": ("rule: time", "rule: random", 12, "is not an option of `random`"),
    "a wrong format": ("[parquet, csv]", "[parquet, orc]", 18, "`formats.1` is `orc`"),
    "a key twice": ("parts: 2", "label: other", 20, "`label` stands in line 5 already"),
    "the 30th of February": ("2026-03-01", "2026-02-30", 14, "`2026-02-30` is no timestamp: day"),
    "month 13": ("2026-03-01", "2026-13-01", 14, "`2026-13-01` is no timestamp: month must be"),
    "a wrong tag": ("label: churned", "label: !!int foo", 5, "`foo` is no int: invalid literal"),
    "a wrong float": ("parts: 2", "parts: !!float foo", 20, "`foo` is no float: could not conve"),
    "a wrong bool": ("parts: 2", "parts: !!bool foo", 20, "`foo` is no bool"),
    "a list as key": ("parts: 2", "? [a, b]\n: 2", 20, "a key is a list or a mapping. Write a na"),
    "a mapping as key": (
        "  plan: ordinal",
        "  ? {a: b}\n  : 2",
        9,
        "a key is a list or a mapping",
    ),
    "an alias of itself": ("parts: 2", "parts: &a [*a]", 20, "it holds an alias of itself"),
    "a mapping in itself": ("columns:", "columns: &c\n  x: *c", 7, "it holds an alias of itself"),
    "no mapping": (TEXT, "# sets\n- a\n", 2, "it is no mapping of settings"),
    "a huge embargo": ("embargo: 7d", "embargo: 99999999999999d", 12, "which is too long"),
    "a number as instant": ("2026-03-01", "20260301", 14, "is the number 20260301: write an inst"),
    "a quoted number": ("2026-03-01", "'20260301'", 14, "is the number 20260301: write an inst"),
    "values of lists": (
        "rule: time\n  validation_from: 2026-03-01\n  test_from: 2026-04-01T12:00:00Z\n"
        "  embargo: 7d",
        "rule: column\n  column: a\n  values: {train: [[a]], test: b}",
        15,
        "`split.values`: A split by a column goes by texts",
    ),
    "infinity": (
        "missing: median",
        "missing: .inf",
        10,
        "`columns.basket_value.missing` is `inf`",
    ),
    "a label with a role": ("plan: ordinal", "churned: helper", 9, "is the label and a helper"),
    "a weight with a role": ("plan: ordinal", "w: feature", 9, "is the weight and a feature"),
    "a filled label": (
        "plan: ordinal",
        "churned: {missing: 0}",
        9,
        "the label `churned` has the opt",
    ),
    "a filled weight": (
        "plan: ordinal",
        "w: {missing: 0}",
        9,
        "the weight `w` has the option `mis",
    ),
    "features twice": ("label: churned", "features: [a:b]\nlabel: churned", 5, "one of the two"),
    "another key of rows": ("  path: labels", "  pth: labels", 4, "`entity_rows` is `{sql: ...}`"),
    "a wrong name": (
        "label: churned",
        "name: a b\nlabel: churned",
        5,
        "`name` is `a b`: up to 63",
    ),
    "no yaml": ("label: churned", "label: [churned", 6, "it is no yaml"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_name_file_and_line(folder, name):
    old, new, line, words = WRONG[name]
    assert old in TEXT
    write(folder, TEXT.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_definitions(folder)
    assert f"training_sets/churn.yaml, line {line}: " in str(caught.value)
    assert words in str(caught.value)
    assert not str(caught.value).endswith("..")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("output: s3://lake/training/churn\n", "", "churn.yaml: `output` is missing. Add it."),
        ("label: churned\n", "features: [a:b]\nlabel: churned\n", "one of the two"),
        ("  path: labels/churn.parquet", "  file: x", "`entity_rows` is `{sql: ...}`, `{path"),
        (TEXT, "- a\n", "it is no mapping of settings"),
        (TEXT, "", "it is no mapping of settings"),
    ],
)
def test_errors_of_the_whole_name_the_file(folder, old, new, words):
    write(folder, TEXT.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_definitions(folder)
    assert str(caught.value).startswith("training_sets/churn.yaml")
    assert words in str(caught.value)


MODULE = """
import pandas as pd
from feast_dynamo_ext.sagemaker import StratifiedSplit
from feast_dynamo_ext.sagemaker.definition import TrainingSetDefinition

returns = TrainingSetDefinition(
    name="returns",
    features=["orders:total"],
    entity_rows=pd.DataFrame({"cid": [1]}),
    label="returned",
    split=StratifiedSplit({"train": 0.8, "test": 0.2}, seed=3),
    output="out/returns",
)
"""


def test_a_repo_declares_sets_in_yaml_and_in_python(folder):
    write(folder, TEXT)
    (folder / "sets.py").write_text(MODULE)
    (folder / "other.py").write_text("raise RuntimeError('is not loaded')")
    found = load_definitions(folder)
    assert {name: each.where for name, each in found.items()} == {
        "churn": "training_sets/churn.yaml",
        "returns": "sets.py",
    }
    returns = found["returns"].definition
    assert returns.split.to_rule() == StratifiedSplit({"train": 0.8, "test": 0.2}, seed=3)
    assert isinstance(returns.entity_rows_in(folder), pd.DataFrame)
    assert "entity_rows" not in returns.to_json()
    assert returns.output_in(folder) == str(folder / "out/returns")


def test_one_name_stands_for_one_set(folder):
    write(folder, TEXT)
    write(folder, "name: churn\n" + TEXT, "other.yaml")
    with pytest.raises(ConfigError, match=r"other.yaml: a training set `churn` is declared in "):
        load_definitions(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            MODULE.replace("label=", "labels="),
            "no setting `labels`. Did you mean `label`?",
        ),
        (MODULE.replace("pd.DataFrame", "pd.Frame"), "sets.py cannot be loaded: AttributeError"),
        (MODULE.replace('name="returns",', ""), "the training set `returns` has no `name`"),
        (MODULE.replace("label=", "labels="), "sets.py, line 6: "),
    ],
)
def test_errors_of_python_name_the_module(folder, text, words):
    (folder / "sets.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_definitions(folder)
    assert words in str(caught.value)
    assert "sets.py" in str(caught.value)


@pytest.mark.parametrize(
    ("split", "rule"),
    [
        (
            {"rule": "time", "fractions": {"train": 0.8, "test": 0.2}, "embargo": "90min"},
            TimeFractions({"train": 0.8, "test": 0.2}, dt.timedelta(minutes=90)),
        ),
        (
            {"rule": "time", "test_from": "2026-01-01"},
            TimeSplit(test_from=dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)),
        ),
    ],
)
def test_splits(split, rule):
    given = {"features": ["a:b"], "entity_rows": "rows.csv", "label": "y", "output": "o"}
    found = TrainingSetDefinition(**given, split=split)
    assert found.split.to_rule() == rule
    assert TrainingSetDefinition(**given, split=rule).split.to_rule() == rule


DEEP = "[" * 5000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"label: {DEEP}", "it is nested too deep"),
        (f"label: {DEEP}{']' * 5000}\n", "it is nested too deep"),
        ("label: \x00\n", "it is no yaml"),
    ],
)
def test_what_no_yaml_can_be_is_one_error(folder, text, words):
    write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_definitions(folder)
    assert str(caught.value).startswith("training_sets/churn.yaml")
    assert words in str(caught.value)


def test_an_alias_may_stand_twice(folder):
    text = TEXT.replace("plan: ordinal", "plan: &c {encoding: ordinal}\n  tier: *c")
    found = load_definition(write(folder, text))
    assert found.columns["plan"] == found.columns["tier"]


def test_files_of_editors_are_passed_over(folder):
    write(folder, TEXT)
    (folder / "training_sets/.#churn.yaml").symlink_to("user@host.1:2")
    (folder / "training_sets/.churn.yaml").write_text("half")
    assert list(load_definitions(folder)) == ["churn"]


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("/nowhere/at/all")])
def test_what_is_no_file_is_named(folder, make):
    make(folder / "training_sets/x.yaml")
    with pytest.raises(ConfigError, match=r"training_sets/x\.yaml cannot be read: "):
        load_definitions(folder)
