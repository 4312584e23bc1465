"""What the algorithms of SageMaker accept, and what is said where a set is not that."""

from __future__ import annotations

import pyarrow as pa
import pytest

from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker.formats import FORMATS, FileRoles
from feast_dynamo_ext.sagemaker.targets import (
    TARGETS,
    channel_names,
    check,
    content_type,
    default_formats,
    hyperparameter_problems,
    hyperparameters,
    target_of,
    writer_options,
)

ROWS = {"train": 8, "validation": 4, "test": 4}
SCHEMA = pa.schema({"y": pa.int64(), "a": pa.float64(), "b": pa.int32()})
ROLES = FileRoles("y", None, ("a", "b"))
WEIGHTED = FileRoles("y", "w", ("a", "b"))
OF_WEIGHTED = pa.schema({"y": pa.int64(), "w": pa.float64(), "a": pa.float64(), "b": pa.int32()})
OF_TEXT = pa.schema({"y": pa.int64(), "a": pa.string(), "b": pa.list_(pa.int32())})


def problems(target: str, formats: list[str], schema=SCHEMA, roles=ROLES, **options) -> list[str]:
    try:
        check(target, formats, schema, roles, **{"rows": ROWS} | options)
    except TrainingSetError as error:
        first, *listed = str(error).split("\n- ")
        assert first == f"{target} could not train on this set:"
        return listed
    return []


@pytest.mark.parametrize("target", TARGETS)
def test_numbers_are_accepted_in_every_format_that_a_target_reads(target):
    assert problems(target, list(TARGETS[target].formats)) == []
    assert set(default_formats(target)) <= set(TARGETS[target].formats) <= set(FORMATS)


@pytest.mark.parametrize(
    ("target", "kind", "expected"),
    [
        # The container's VALID_CONTENT_TYPES.
        ("xgboost", "csv", "text/csv"),
        ("xgboost", "parquet", "application/x-parquet"),
        ("xgboost", "recordio", "application/x-recordio-protobuf"),
        ("xgboost", "libsvm", "text/libsvm"),
        ("lightgbm", "csv", "text/csv"),
        ("autogluon", "csv", "text/csv"),
        ("linear-learner", "recordio", "application/x-recordio-protobuf"),
        ("linear-learner", "csv", "text/csv"),
    ],
)
def test_content_types_are_those_that_the_containers_name(target, kind, expected):
    assert content_type(target, kind) == expected


def test_channels_are_those_that_the_containers_name():
    assert {target: dict(channel_names(target)) for target in TARGETS} == {
        "xgboost": {"train": "train", "validation": "validation"},
        "lightgbm": {"train": "train", "validation": "validation"},
        "autogluon": {"train": "training", "validation": "validation"},
        "linear-learner": {"train": "train", "validation": "validation", "test": "test"},
        "script": {"train": "train", "validation": "validation", "test": "test"},
    }


def test_unknown_targets_and_formats_are_refused():
    with pytest.raises(TrainingSetError, match=r"Unknown target `keras`\. Known: xgboost, lightg"):
        target_of("keras")
    with pytest.raises(TrainingSetError, match="`lightgbm` does not read the format `parquet`"):
        content_type("lightgbm", "parquet")


@pytest.mark.parametrize(
    ("target", "formats", "options", "expected"),
    [
        ("lightgbm", ["parquet"], {}, ["`lightgbm` does not read the format `parquet`"]),
        ("xgboost", ["orc"], {}, ["does not read the format `orc`: it reads parquet, csv, recor"]),
        ("xgboost", [], {}, ["`formats` is empty"]),
        ("xgboost", ["csv", "csv"], {}, ["`formats` names csv more than once"]),
        ("xgboost", ["csv"], {"header": True}, ["would read the line of names as a row"]),
        ("script", ["csv"], {"header": True}, []),
        ("xgboost", ["csv"], {"schema": OF_TEXT}, ["`a` is string", "`b` is list"]),
        ("script", ["parquet"], {"schema": OF_TEXT}, []),
        ("script", ["csv"], {"schema": OF_TEXT}, ["column `b` is list<"]),
        ("script", ["libsvm"], {"schema": OF_TEXT}, ["column `a` is string", "column `b`"]),
        (
            "xgboost",
            ["csv", "parquet", "recordio", "libsvm"],
            {"schema": OF_WEIGHTED, "roles": WEIGHTED},
            [
                "it reads no row weights from parquet, and `w` is one: weights are read from csv, "
                "libsvm",
                "it reads no row weights from recordio",
            ],
        ),
        (
            "linear-learner",
            ["recordio"],
            {"schema": OF_WEIGHTED, "roles": WEIGHTED},
            ["weights are read from none of its formats"],
        ),
        ("xgboost", ["csv"], {"roles": WEIGHTED}, ["the columns are y, a, b, and must be y, w"]),
        (
            "xgboost",
            ["csv"],
            {"schema": SCHEMA.remove(2).remove(1), "roles": FileRoles("y", None, ())},
            ["there is no feature"],
        ),
        ("linear-learner", ["csv"], {"missing": {"test": {"a": 2}}}, ["test has in `a` (2 rows)"]),
        ("xgboost", ["csv"], {"missing": {"train": {"a": 8, "b": 7}}}, []),
        ("xgboost", ["libsvm"], {"missing": {"train": {"b": 8}}}, ["last feature `b` has no val"]),
        ("xgboost", ["parquet"], {"missing": {"train": {"b": 8}}}, []),
        ("script", ["csv"], {"missing": {"test": {"y": 1}}}, ["`y` is missing in 1 rows of test"]),
        ("lightgbm", ["csv"], {"rows": {"train": 8}}, ["take 20% of the rows of train at random"]),
        ("xgboost", ["csv"], {"rows": {"train": 8}}, []),
        ("xgboost", ["csv"], {"rows": {"validation": 8}}, ["the split `train` has no rows"]),
        ("xgboost", ["csv"], {"rows": {"train": 8, "test": 0}}, ["the split `test` has no rows"]),
        ("xgboost", ["csv"], {"parts": 0}, ["`parts` is 0, and must be at least 1"]),
        ("xgboost", ["csv"], {"parts": 5}, ["the smallest split has 4 rows"]),
        ("xgboost", ["csv"], {"parts": 2, "instances": 3}, ["3 instances share 2 files of train"]),
        ("autogluon", ["csv"], {"parts": 2, "instances": 2}, ["trains on 1 instance, not on 2"]),
    ],
)
def test_each_rule_has_its_words(target, formats, options, expected):
    found = problems(target, formats, **options)
    assert len(found) == len(expected), found
    for problem, words in zip(found, expected, strict=True):
        assert words in problem


def test_all_problems_are_named_at_once():
    found = problems(
        "lightgbm",
        ["parquet", "csv"],
        OF_TEXT,
        header=True,
        parts=9,
        missing={"train": {"y": 3}},
        rows={"train": 8},
    )
    assert len(found) == 7


def test_files_are_written_as_the_target_reads_them():
    assert writer_options("xgboost", "csv") == {"float32": True, "header": False}
    # Its reader of Parquet rounds to the nearest by itself.
    assert writer_options("xgboost", "parquet") == {"float32": False, "within_float32": True}
    assert writer_options("script", "parquet") == {"float32": False, "within_float32": False}
    assert writer_options("linear-learner", "recordio") == {"float32": True}
    assert writer_options("script", "csv", header=True) == {"float32": False, "header": True}


def test_weights_of_csv_need_a_hyperparameter():
    assert hyperparameters("xgboost", "csv", WEIGHTED) == {"csv_weights": "1"}
    assert hyperparameters("xgboost", "libsvm", WEIGHTED) == {}
    assert hyperparameters("xgboost", "csv", ROLES) == {}


@pytest.mark.parametrize(
    ("target", "roles", "given", "labels", "expected"),
    [
        ("xgboost", WEIGHTED, {"csv_weights": 1}, None, ""),
        ("xgboost", WEIGHTED, {}, None, "`csv_weights` must be 1"),
        ("xgboost", ROLES, {"csv_weights": "1"}, None, "`csv_weights` must be left out"),
        ("xgboost", ROLES, {"csv_weights": "0"}, None, ""),
        ("xgboost", ROLES, {"objective": "binary:logistic"}, {0, 1}, ""),
        ("xgboost", ROLES, {"objective": "binary:logistic"}, {1, 2}, "from 0 to 1, and 1 of"),
        ("xgboost", ROLES, {"objective": "multi:softmax"}, {0, 1}, "`num_class` must be the numb"),
        (
            "xgboost",
            ROLES,
            {"objective": "multi:softmax", "num_class": 2},
            {0, 1.5, 2},
            "and 2 of",
        ),
        ("xgboost", ROLES, {"objective": "reg:squarederror"}, {5, -1.5}, ""),
        (
            "linear-learner",
            ROLES,
            {"predictor_type": "binary_classifier"},
            {0.5},
            "must be 0 or 1",
        ),
        (
            "linear-learner",
            ROLES,
            {"predictor_type": "multiclass_classifier", "num_classes": 3},
            {0, 1, 2},
            "",
        ),
        ("linear-learner", ROLES, {"feature_dim": 3}, None, "the files have 2 features"),
        ("linear-learner", ROLES, {"feature_dim": 2}, None, ""),
        ("lightgbm", ROLES, {"objective": "binary:logistic"}, {7}, ""),
    ],
)
def test_hyperparameters_go_with_the_files(target, roles, given, labels, expected):
    found = hyperparameter_problems(target, "csv", roles, given, labels)
    assert len(found) == bool(expected)
    assert expected in "".join(found)
