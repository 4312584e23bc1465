"""`feast-dynamo capture stream` under the policy of the docs, on a moto that enforces IAM.

Moto compares names of resources for S3 alone: what is tested is the list of actions.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from enforced_iam import enforce, new_user, statements
from feast import FeatureStore
from followed import QUICK, FollowedShop, following, until
from repos import REGION, open_repo_config

from feast_dynamo_ext.errors import AccessDeniedError, CaptureError
from feast_dynamo_ext.local import start_moto, stop

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.server

POLICY = "capture_stream"
DENIED = {
    "LookAtTable": (CaptureError, "dynamodb:DescribeTimeToLive"),
    "Follow": (AccessDeniedError, "DescribeStream"),
    "Leases": (AccessDeniedError, "CreateTable"),
    "WriteOnline": (AccessDeniedError, "GetItem"),
}


@pytest.mark.slow
def test_the_actions_of_the_page_are_enough_and_each_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert {each["Sid"] for each in statements(POLICY)} == set(DENIED)
    server = start_moto(tmp_path / "moto")
    try:
        _run(server.endpoint, tmp_path, monkeypatch)
    finally:
        stop(server)


def _run(endpoint: str, folder: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_ENDPOINT_URL", endpoint)
    environment.setenv("AWS_DEFAULT_REGION", REGION)
    environment.setattr(boto3, "DEFAULT_SESSION", None)
    config = open_repo_config(
        folder,
        project="shop",
        online={"endpoint_url": endpoint, "region": REGION, "newest_wins_with": "put_item"},
        offline={"catalog": {"type": "sql"}, "region": REGION},
    )
    owner = FollowedShop.make(FeatureStore(config=config), endpoint, "purchases", folder)
    users = {sid: new_user(POLICY, sid) for sid in (*DENIED, None)}
    enforce(endpoint)

    def shop_of(key: dict[str, Any]) -> FollowedShop:
        """The same, as a user."""
        environment.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        environment.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        environment.setattr(boto3, "DEFAULT_SESSION", None)
        client = boto3.client("dynamodb", region_name=REGION, endpoint_url=endpoint)
        return dataclasses.replace(owner, store=FeatureStore(config=config), client=client)

    def follow(shop: FollowedShop) -> None:
        with following(shop.worker(QUICK)) as worker:
            until(lambda: worker.is_ending or worker.figures.shards == 1)

    # Before the table of leases is there, which is made once.
    for sid in ("Leases", "LookAtTable"):
        kind, said = DENIED[sid]
        with pytest.raises(kind, match=said):
            follow(shop_of(users[sid]))
    follow(shop_of(users[None]))
    for sid in ("Follow", "WriteOnline"):
        kind, said = DENIED[sid]
        with pytest.raises(kind, match=said):
            follow(shop_of(users[sid]))
    writer = boto3.client(
        "dynamodb",
        region_name=REGION,
        endpoint_url=endpoint,
        aws_access_key_id=users[None]["AccessKeyId"],
        aws_secret_access_key=users[None]["SecretAccessKey"],
    )
    allowed = dataclasses.replace(owner, client=writer)
    allowed.put(1, at=1, amount=5)  # moto: PutItem of any table
    follower = shop_of(users[None])
    with following(follower.worker(QUICK)):
        until(lambda: follower.online([1]) == [5])
    assert follower.rows() == allowed.expected()
