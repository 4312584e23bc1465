"""Requests of a bulk load against botocore's own model, and how operations are followed."""

from __future__ import annotations

import boto3
import pytest
from botocore.stub import Stubber

from feast_dynamo_ext.dynamo.tables.describe import TableSpec
from feast_dynamo_ext.errors import AccessDeniedError, BulkLoadError, ConfigError, ThrottledError
from feast_dynamo_ext.materialize.bulk_import.files import Folder
from feast_dynamo_ext.materialize.bulk_import.import_table import (
    Import,
    follow,
    import_request,
)
from feast_dynamo_ext.polling import Poll
from feast_dynamo_ext.view_settings import TableSettings

ARN = "arn:aws:dynamodb:us-east-1:111122223333:table/shop.orders/import/01658528578619-c4d4e311"
GROUP = "arn:aws:logs:us-east-1:111122223333:log-group:/aws-dynamodb/imports:*"
FOLDER = Folder("loads", "first/orders/1/files/")
SPEC = TableSpec("shop.orders", "orders", "shop")


@pytest.fixture
def stubbed():
    client = boto3.client("dynamodb", region_name="us-east-1")
    with Stubber(client) as stub:
        yield client, stub
        stub.assert_no_pending_responses()
    client.close()


def described(status, **more) -> dict:
    return {"ImportTableDescription": {"ImportArn": ARN, "ImportStatus": status, **more}}


# Requests


def test_an_import_is_of_the_table_that_apply_would_make(stubbed):
    client, stub = stubbed
    settings = TableSettings(
        billing="provisioned",
        read_units=5,
        write_units=7,
        kms_key="alias/shop",
        table_class="infrequent_access",
        stream="new_image",
        deletion_protection=True,
        warm_read_units=13_000,
    )
    spec = TableSpec("shop.orders", "orders", "shop", {"team": "growth"}, settings)
    expected = {
        "ClientToken": "run-1",
        "S3BucketSource": {"S3Bucket": "loads", "S3KeyPrefix": "first/orders/1/files/"},
        "InputFormat": "DYNAMODB_JSON",
        "InputCompressionType": "GZIP",
        "TableCreationParameters": {
            "TableName": "shop.orders",
            "AttributeDefinitions": [{"AttributeName": "k", "AttributeType": "B"}],
            "KeySchema": [{"AttributeName": "k", "KeyType": "HASH"}],
            "BillingMode": "PROVISIONED",
            "ProvisionedThroughput": {"ReadCapacityUnits": 5, "WriteCapacityUnits": 7},
            "SSESpecification": {
                "Enabled": True,
                "SSEType": "KMS",
                "KMSMasterKeyId": "alias/shop",
            },
        },
    }
    assert import_request(spec, FOLDER, "run-1") == expected
    stub.add_response("import_table", described("IN_PROGRESS"), expected)
    assert Import.start(client, spec, FOLDER, "run-1").arn == ARN


def test_an_import_of_a_table_on_demand():
    settings = TableSettings(billing="on_demand", max_write_units=4_000)
    spec = TableSpec("shop.orders", "orders", settings=settings)
    parameters = import_request(spec, FOLDER, "run-1")["TableCreationParameters"]
    assert parameters["BillingMode"] == "PAY_PER_REQUEST"
    assert parameters["OnDemandThroughput"] == {"MaxWriteRequestUnits": 4_000}


def test_an_import_makes_the_indexes_of_cohorts():
    spec = TableSpec("shop.customers", "customers", cohorts=("segment",))
    parameters = import_request(spec, FOLDER, "run-1")["TableCreationParameters"]
    (index,) = parameters["GlobalSecondaryIndexes"]
    assert index["IndexName"] == "cohort_segment"
    assert [each["AttributeName"] for each in parameters["AttributeDefinitions"]] == [
        "k",
        "g_segment",
        "t",
    ]


@pytest.mark.parametrize("uri", ["/tmp/load", "gs://bucket/load", "s3://", "bucket"])  # noqa: S108
def test_files_go_to_s3_alone(uri):
    with pytest.raises(ConfigError, match="Give --output s3://bucket/prefix"):
        Folder.parse(uri)


def test_folders():
    assert Folder.parse("s3://b") == Folder("b", "")
    assert Folder.parse("s3://b/of?2026#1/") == Folder("b", "of?2026#1/")
    assert Folder.parse("s3://b/x/y/").inside("orders", "1").uri == "s3://b/x/y/orders/1/"


# Following


def patient(**more) -> Poll:
    return Poll(sleep=lambda _seconds: None, **more)


def test_an_import_is_followed_to_its_end(stubbed):
    client, stub = stubbed
    pauses: list[float] = []
    for word in ("IN_PROGRESS", "IN_PROGRESS", "IN_PROGRESS", "COMPLETED"):
        counts = {"ProcessedItemCount": 3, "ImportedItemCount": 3, "ErrorCount": 0}
        stub.add_response("describe_import", described(word, **counts), {"ImportArn": ARN})
    said: list[str] = []
    poll = Poll(first_s=1, most_s=2, sleep=pauses.append)
    status = follow(Import(client, SPEC, ARN), 3, said.append, poll)
    assert (status.word, status.processed, status.loaded, status.failed) == ("COMPLETED", 3, 3, 0)
    assert pauses == [1, 1.5, 2]
    name = "import into table shop.orders (feature view `orders`)"
    assert said == [
        f"{name}: IN_PROGRESS, 3 items processed",
        f"{name}: COMPLETED, 3 items processed",
    ]


def test_throttled_polls_are_sent_again(stubbed):
    client, stub = stubbed
    for code in ("ThrottlingException", "InternalServerError", "ThrottlingException"):
        stub.add_client_error("describe_import", code, http_status_code=400)
    stub.add_response("describe_import", described("COMPLETED"))
    assert follow(Import(client, SPEC, ARN), 3, print, patient()).word == "COMPLETED"


def test_nobody_waits_for_ever_for_an_answer(stubbed):
    client, stub = stubbed
    for _ in range(2):
        stub.add_client_error("describe_import", "ThrottlingException")
    with pytest.raises(ThrottledError, match=r"DescribeImport on table shop\.orders"):
        follow(Import(client, SPEC, ARN), 3, print, patient(max_failures=2))


def test_who_may_not_poll_gets_the_error_at_once(stubbed):
    client, stub = stubbed
    stub.add_client_error("describe_import", "AccessDeniedException")
    with pytest.raises(AccessDeniedError):
        follow(Import(client, SPEC, ARN), 3, print, patient())


def test_items_that_were_not_imported_are_an_error_that_names_the_log(stubbed):
    client, stub = stubbed
    counts = {"ProcessedItemCount": 3, "ImportedItemCount": 1, "ErrorCount": 2}
    stub.add_response(
        "describe_import", described("COMPLETED", CloudWatchLogGroupArn=GROUP, **counts)
    )
    with pytest.raises(BulkLoadError) as raised:
        follow(Import(client, SPEC, ARN), 3, print, patient())
    assert str(raised.value) == (
        "import into table shop.orders (feature view `orders`): 2 of 3 items could not be loaded. "
        f"Each error is in CloudWatch, log group {GROUP}. Delete the table before you load it "
        f"again. ({ARN})"
    )
    assert raised.value.arn == ARN


def test_an_import_that_failed_says_why(stubbed):
    client, stub = stubbed
    why = {"FailureCode": "S3NoSuchBucket", "FailureMessage": "The bucket does not exist"}
    stub.add_response("describe_import", described("FAILED", **why))
    with pytest.raises(BulkLoadError, match="it ended as FAILED: S3NoSuchBucket: The bucket does"):
        follow(Import(client, SPEC, ARN), 3, print, patient())


@pytest.mark.parametrize("processed", [2, 4])
def test_other_numbers_of_items_are_an_error(stubbed, processed):
    client, stub = stubbed
    counts = {"ProcessedItemCount": processed, "ErrorCount": 0}
    stub.add_response("describe_import", described("COMPLETED", **counts))
    with pytest.raises(BulkLoadError, match=f"read {processed} items, but 3 were written"):
        follow(Import(client, SPEC, ARN), 3, print, patient())


def test_ctrl_c_says_that_an_import_goes_on(stubbed):
    client, stub = stubbed
    stub.add_response("describe_import", described("IN_PROGRESS"))

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        follow(Import(client, SPEC, ARN), 3, said.append, Poll(sleep=interrupt))
    (_, note) = said
    assert note.startswith("DynamoDB has no way to cancel the import into table shop.orders")
    assert f"--import-arn {ARN}" in note
