"""The policies of an endpoint's user and role: enough, and no more than is needed."""

from __future__ import annotations

import json
import re

import boto3
import pytest
from botocore.client import BaseClient
from click.testing import CliRunner
from enforced_iam import enforce, new_user, statements
from repos import REGION, write_repo_yaml
from served_model import AWS, make_manifest, make_store, train

from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.errors import FeastDynamoError, ServingError
from feast_dynamo_ext.local import start_moto, stop
from feast_dynamo_ext.sagemaker.serving.opening import open_handler
from feast_dynamo_ext.sagemaker.serving.package import unpack

pytestmark = pytest.mark.server
# Feast's registry on S3 leaves its temporary files to the garbage collector.
leaves_files = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
MODELS = "s3://my-features/models/churn"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/churn:1"
ROLE = "arn:aws:iam::123456789012:role/sagemaker-endpoint"
DENIED = re.compile("denied|forbidden|403|may not|can't be accessed", re.IGNORECASE)
BODY = b'{"customer_id": 1, "amount": 20}'
S3_OF_PACKAGE = ("Bucket", "ReadRegistryAndTrainingSets", "ReadModelsAndWriteArchives")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A moto that enforces IAM, with registry, set, model and tables; access keys by policy."""
    folder = tmp_path_factory.mktemp("iam")
    server = start_moto(folder / "moto")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL", "FEAST_S3_ENDPOINT_URL"):
            patch.setenv(name, server.endpoint)
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
            patch.setenv(name, REGION)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="my-features")
        registry = "s3://my-features/registry.db"
        store = make_store(folder, server.endpoint, "shop", registry=registry)
        manifest = make_manifest(store).to_json().encode()
        s3.put_object(Bucket="my-features", Key="training/churn/manifest.json", Body=manifest)
        train(folder / "model.ubj")
        s3.upload_file(str(folder / "model.ubj"), "my-features", "models/churn/model.ubj")
        repo = folder / "repo"
        repo.mkdir()
        online = {"region": REGION, "expired": "status"}
        write_repo_yaml(repo, project="shop", registry=registry, online=online)
        keys = {
            ("endpoint", None): new_user("endpoint"),
            ("role", None): new_user("endpoint_role"),
        }
        keys |= {("endpoint", sid): new_user("endpoint", sid) for sid in S3_OF_PACKAGE}
        for sid in ("ReadTables", "ReadArchiveAndRegistry"):
            keys["role", sid] = new_user("endpoint_role", sid)
        enforce(server.endpoint)

        yield server.endpoint, keys, repo
    stop(server)


@pytest.fixture
def as_user(world, monkeypatch):
    """Acts as the user of a policy, without one of its statements."""
    endpoint, keys, _ = world
    for name in ("AWS_ENDPOINT_URL", "FEAST_S3_ENDPOINT_URL"):
        monkeypatch.setenv(name, endpoint)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, REGION)

    def as_user(name, without=None):
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys[name, without]["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys[name, without]["SecretAccessKey"])

    return as_user


@pytest.fixture
def repo(world):
    return world[2]


def run(*arguments, **more):
    return CliRunner().invoke(main, ["endpoint", *arguments], **more)


def package(repo):
    return run(
        "package", "-c", str(repo), "--training-set", "s3://my-features/training/churn",
        "--model", f"{MODELS}/model.ubj", "--output", f"{MODELS}/model.tar.gz",
    )  # fmt: skip


@pytest.fixture
def sent(monkeypatch):
    """What botocore sends of SageMaker's operations, with its parameters."""
    found = []
    send = BaseClient._make_api_call

    def noted(client, operation, parameters):
        if client.meta.service_model.service_name.startswith("sagemaker"):
            found.append((operation, parameters))
        return send(client, operation, parameters)

    monkeypatch.setattr(BaseClient, "_make_api_call", noted)
    return found


@leaves_files
def test_the_user_of_an_endpoint(as_user, repo, sent):
    """Moto checks what its policy allows; what it allows is what is sent."""
    as_user("endpoint")
    made = package(repo)
    assert made.exit_code == 0, made.output
    given = ["churn", "--archive", f"{MODELS}/model.tar.gz", "--image", IMAGE, "--role", ROLE]
    done = run("deploy", *given)
    assert done.exit_code == 0, done.output
    answered = run("invoke", "churn", "-", input=BODY)
    assert answered.exit_code == 0, answered.output
    # Moto has no UpdateEndpoint, and says so: it is sent, and nobody has refused it.
    updated = run("deploy", *given, "--env", "A=b")
    assert (updated.exit_code, DENIED.search(updated.output)) == (1, None)
    deleted = run("delete", "churn", "--yes")
    assert deleted.exit_code == 0, deleted.output

    needed = {f"sagemaker:{operation}" for operation, _ in sent}
    parameters = [given for _, given in sent]
    if any("Tags" in given for given in parameters):
        needed.add("sagemaker:AddTags")
    if any("ExecutionRoleArn" in given for given in parameters):
        needed.add("iam:PassRole")
    allowed = {
        action
        for statement in statements("endpoint")
        for action in statement["Action"]
        if not action.startswith("s3:")
    }
    assert allowed == needed


@leaves_files
@pytest.mark.parametrize("without", S3_OF_PACKAGE)
def test_each_statement_of_packaging_is_needed(as_user, repo, without):
    as_user("endpoint", without)
    refused = package(repo)
    assert refused.exit_code == 1
    assert DENIED.search(refused.output + str(refused.exception)), refused.output


@leaves_files
def test_the_role_of_an_endpoint(as_user, repo, tmp_path):
    as_user("endpoint")
    made = package(repo)
    assert made.exit_code == 0, made.output
    as_user("role")
    (tmp_path / "model").mkdir()
    unpack(f"{MODELS}/model.tar.gz", tmp_path / "model", AWS)  # as SageMaker does with the role
    settings = json.loads((tmp_path / "model" / "features" / "serving.json").read_text())
    assert settings["live_registry"] == "s3://my-features/registry.db"
    handler = open_handler(tmp_path / "model")
    answer = handler.answer(BODY, "application/json", None)
    assert answer.status == 200
    assert json.loads(answer.body)["features"]["missing"] == {}
    handler.close()

    as_user("role", "ReadTables")
    handler = open_handler(tmp_path / "model")
    assert handler.answer(BODY, "application/json", None).status == 503
    handler.close()
    as_user("role", "ReadArchiveAndRegistry")
    with pytest.raises(FeastDynamoError, match=DENIED):
        unpack(f"{MODELS}/model.tar.gz", tmp_path, AWS)
    with pytest.raises(ServingError, match=r"The registry s3://my-features/registry\.db cannot"):
        open_handler(tmp_path / "model")


def test_the_rest_of_the_role_is_what_sagemaker_does_itself():
    """Pulling the image, logs and metrics are the same as of the role of jobs."""

    def actions(name):
        return {action for each in statements(name) for action in each["Action"]}

    ours = {"dynamodb:BatchGetItem", "s3:GetObject", "s3:ListBucket"}
    of_jobs = actions("sagemaker_role") - {"s3:PutObject", "s3:AbortMultipartUpload"}
    assert actions("endpoint_role") - ours == of_jobs - ours
    for statement in statements("endpoint_role"):
        if statement["Resource"] == "*":
            assert statement["Action"] in (
                ["ecr:GetAuthorizationToken"], ["cloudwatch:PutMetricData"],
            )  # fmt: skip
