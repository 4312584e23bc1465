"""The function of Lambda as it is deployed: its image's folder, and its role's policy enforced."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
from typing import TYPE_CHECKING, Any

import boto3
import captured
import pytest
import stream_events
import yaml
from click.testing import CliRunner
from enforced_iam import enforce, new_user, statements
from feast import FeatureStore
from packaging.requirements import Requirement
from repos import REGION, write_repo_yaml

from feast_dynamo_ext.capture.lambda_handler import Function
from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.errors import ConfigError, FeastDynamoError
from feast_dynamo_ext.local import start_moto, stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.server

HISTORY = "s3://my-features/history/purchases"
DENIED = r"(?i)not allowed|may not|denied|allow `|add the missing action"


@pytest.fixture(scope="module")
def repo(tmp_path_factory: Any) -> Iterator[Path]:
    """A repo with everything on AWS, applied, on a moto of its own that enforces policies."""
    folder = tmp_path_factory.mktemp("repo")
    server = start_moto(tmp_path_factory.mktemp("moto"))
    with pytest.MonkeyPatch.context() as environment:
        for name in ("AWS_ENDPOINT_URL", "FEAST_S3_ENDPOINT_URL"):
            environment.setenv(name, server.endpoint)
        environment.setenv("AWS_DEFAULT_REGION", REGION)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "test")
        environment.setattr(boto3, "DEFAULT_SESSION", None)
        boto3.client("s3").create_bucket(Bucket="my-features")
        boto3.client("dynamodb").create_table(
            TableName="purchases",
            KeySchema=[{"AttributeName": "customer", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "customer", "AttributeType": "N"}],
            BillingMode="PAY_PER_REQUEST",
            StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
        )
        aws = {"region": REGION, "endpoint_url": server.endpoint}
        catalog = {"type": "glue", "warehouse": "s3://my-features/tables"}
        write_repo_yaml(
            folder,
            project="shop",
            registry="s3://my-features/registry.db",
            online={**aws, "max_future": None},
            offline={**aws, "catalog": catalog},
        )
        source = captured.source_of(history=HISTORY)
        views = [
            captured.view_of(source, "applies"),
            captured.view_of(source, "ignores", deletes="ignore"),
        ]
        FeatureStore(str(folder)).apply([captured.CUSTOMER, *views])
        settings = yaml.safe_load((folder / "feature_store.yaml").read_text())
        disk = tmp_path_factory.mktemp("disk")
        (disk / "feature_store.yaml").write_text(yaml.safe_dump({**settings, "project": "disk"}))
        FeatureStore(str(disk)).apply([captured.source_of(name="local", history="data/local")])
        keys = {None: new_user("capture_lambda")}
        for each in statements("capture_lambda"):
            keys[each["Sid"]] = new_user("capture_lambda", each["Sid"])
        enforce(server.endpoint)
        (folder / "keys.json").write_text(
            json.dumps(
                {
                    name or "": [key["AccessKeyId"], key["SecretAccessKey"]]
                    for name, key in keys.items()
                }
            )
        )
        (folder / "endpoint").write_text(server.endpoint)
    yield folder
    stop(server)


@pytest.fixture
def act_as(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Become a user who has the policy without one of its statements."""
    endpoint = (repo / "endpoint").read_text()
    for name in ("AWS_ENDPOINT_URL", "FEAST_S3_ENDPOINT_URL"):
        monkeypatch.setenv(name, endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    keys = json.loads((repo / "keys.json").read_text())

    def act(without: str) -> None:
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        key, secret = keys[without]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)

    return act


def event(*records: tuple[int, int, str]) -> dict[str, Any]:
    made = []
    for number, customer, value in records:
        item = {"customer": {"N": str(customer)}, "bought": {"N": "5"}, "value": {"N": value}}
        second = float(1_767_608_400 + number)
        made.append(stream_events.record(number, second, new=item, keys=("customer",)))
    return {"Records": made}


def image(repo: Path, folder: Path, *more: str) -> Any:
    arguments = ["capture", "lambda-image", str(folder), "--chdir", str(repo), *more]
    return CliRunner().invoke(main, arguments)


def test_the_image_runs_under_its_policy(repo, act_as, tmp_path):
    act_as("")
    made = image(repo, tmp_path / "image", "--json")
    assert json.loads(made.stdout)["files"] == [
        "Dockerfile",
        "requirements.txt",
        "constraints.txt",
        "feature_store.yaml",
    ]
    docker = (tmp_path / "image" / "Dockerfile").read_text()
    (command,) = re.findall(r'^CMD \["(.+)"\]$', docker, re.MULTILINE)
    module, _, name = command.rpartition(".")
    entry = getattr(importlib.import_module(module), name)
    assert isinstance(entry, Function)
    assert re.search(r"^FROM public\.ecr\.aws/lambda/python:3\.1[2-9]$", docker, re.MULTILINE)
    assert re.search(r"^USER 1000$", docker, re.MULTILINE)
    settings = (tmp_path / "image" / "feature_store.yaml").read_bytes()
    assert settings == (repo / "feature_store.yaml").read_bytes()

    function = Function(
        {"LAMBDA_TASK_ROOT": str(tmp_path / "image"), "AWS_LAMBDA_FUNCTION_NAME": "f"}
    )
    for _ in range(2):
        answer = function(event((0, 1, "1"), (1, 2, "1.5"), (2, 3, "3")))
        assert answer == {"batchItemFailures": []}
    # What a role may do to features is not to read them: the test does.
    store = FeatureStore(str(repo))
    rows = [{"customer": key} for key in (1, 2, 3)]
    found = store.get_online_features(["applies:value"], rows).to_dict()
    assert found["value"] == [1, None, 3]
    history = captured.TableHandle.from_source(captured.source_of(history=HISTORY), store.config)
    assert sorted(history.load().scan().to_arrow()["value"].to_pylist()) == [1, 3]


def test_versions_are_those_that_are_installed_here(repo, act_as, tmp_path):
    act_as("")
    image(repo, tmp_path / "image")
    lines = (tmp_path / "image" / "constraints.txt").read_text().splitlines()
    pins = {made.name: str(made.specifier) for made in map(Requirement, lines)}
    assert len(pins) == len(lines)
    for name in ("pyiceberg", "pyarrow", "feast", "boto3"):
        assert pins[name] == f"=={importlib.metadata.version(name)}"
    assert "feast-dynamo-ext" not in pins
    ours = Requirement((tmp_path / "image" / "requirements.txt").read_text().strip())
    assert (ours.name, ours.extras) == ("feast-dynamo-ext", {"iceberg"})
    assert str(ours.specifier) == f"=={importlib.metadata.version('feast-dynamo-ext')}"


def test_a_folder_with_something_in_it_is_left_alone(repo, act_as, tmp_path):
    act_as("")
    (tmp_path / "there").write_text("x")
    refused = image(repo, tmp_path)
    assert refused.exit_code == 1
    assert "has something in it. Name a new folder." in refused.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["there"]
    made = image(repo, tmp_path / "image", "--requirement", "mine[iceberg] @ file:///x")
    assert made.exit_code == 0
    text = (tmp_path / "image" / "requirements.txt").read_text()
    assert text == "mine[iceberg] @ file:///x\n"


LOCAL = [
    ({"registry": "registry.db"}, "`registry` of feature_store.yaml is the file `.*registry.db`"),
    ({"catalog": {"type": "sql"}}, "`catalog` is a file of SQLite, which in Lambda is gone"),
    ({"type": "file"}, "offline_store of feature_store.yaml is another one"),
    ({"project": "disk"}, "`local`: its `history` is a folder, which in Lambda is gone"),
]


@pytest.mark.parametrize(("block", "message"), LOCAL)
def test_what_would_be_gone_with_the_function_is_refused(repo, act_as, tmp_path, block, message):
    act_as("")
    settings = yaml.safe_load((repo / "feature_store.yaml").read_text())
    if {"registry", "project"} & set(block):
        settings |= block
    elif "type" in block:
        settings["offline_store"] = block
    else:
        settings["offline_store"] |= block
    (tmp_path / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    function = Function(
        {"LAMBDA_TASK_ROOT": str(tmp_path), "AWS_LAMBDA_FUNCTION_NAME": "feast-dynamo-capture"}
    )
    with pytest.raises(ConfigError, match=message):
        function(event((0, 1, "1")))


def test_without_a_statement_the_function_fails_in_words(repo, act_as, tmp_path):
    """But for what Lambda itself does with the role: reading streams, and logs."""
    failed = {}
    for number, each in enumerate(statements("capture_lambda")):
        sid = each["Sid"]
        act_as(sid)
        environment = {"LAMBDA_TASK_ROOT": str(repo), "AWS_LAMBDA_FUNCTION_NAME": "f"}
        try:
            Function(environment)(event((10 + number, 1, "1")))
        except FeastDynamoError as error:
            failed[sid] = str(error)
    assert set(failed) == {
        "DescribeCaptured",
        "WriteTables",
        "Bucket",
        "ReadRegistry",
        "FilesOfHistories",
        "Catalog",
    }
    for sid, message in failed.items():
        assert re.search(DENIED, message), (sid, message)
