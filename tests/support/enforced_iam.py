"""The policies of docs/reference/iam.md, on a moto that enforces them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import boto3
import urllib3

POLICIES = Path(__file__).parents[2] / "docs" / "snippets" / "iam"


def statements(name: str) -> list[dict[str, Any]]:
    """The statements of a policy as the page has it."""
    found: list[dict[str, Any]] = json.loads((POLICIES / f"{name}.json").read_text())["Statement"]
    return found


def policy_of(name: str, without: str | None = None) -> str:
    """A policy of the page in the terms that moto enforces, without the statement of one Sid."""
    kept = [each for each in statements(name) if each["Sid"] != without]
    for statement in kept:
        if "s3:ListBucket" in statement["Action"]:
            statement["Action"].append("s3:HeadBucket")  # AWS has no such action, moto has
        if not statement["Action"][0].startswith("s3:"):
            statement["Resource"] = "*"  # moto compares names of resources for S3 alone
        if "dynamodb:PartiQLUpdate" in statement["Action"]:
            statement["Action"].append("dynamodb:PutItem")  # moto's PartiQL takes no binary values
    return json.dumps({"Version": "2012-10-17", "Statement": kept})


def new_user(name: str, without: str | None = None) -> dict[str, str]:
    """The access key of a new user who has a policy."""
    iam = boto3.client("iam")
    user = f"{name}-{without}"
    iam.create_user(UserName=user)
    iam.put_user_policy(UserName=user, PolicyName=name, PolicyDocument=policy_of(name, without))
    found: dict[str, str] = iam.create_access_key(UserName=user)["AccessKey"]
    return found


def enforce(endpoint: str) -> None:
    """Have a moto server refuse what no policy allows, from now on."""
    octets = {"Content-Type": "application/octet-stream"}
    urllib3.request("POST", f"{endpoint}/moto-api/reset-auth", body=b"0", headers=octets)


def document_of(actions: set[str], bucket: str = "my-features") -> str:
    """A policy that allows these and nothing else: names of actions, of S3 with a place."""
    statements = []
    for text in sorted(actions):
        action, _, place = text.partition(" ")
        also: list[str] = []
        if action == "s3:ListBucket":
            also, resource = ["s3:HeadBucket"], f"arn:aws:s3:::{bucket}"  # as moto calls it
        elif place:
            resource = f"arn:aws:s3:::{bucket}/{place}"
        else:
            resource = "*"  # moto compares names of resources for S3 alone
        statements.append({"Effect": "Allow", "Action": [action, *also], "Resource": resource})
        if action == "s3:DeleteObject":  # of several at once: moto asks the bucket
            whole = f"arn:aws:s3:::{bucket}"
            statements.append({"Effect": "Allow", "Action": [action], "Resource": whole})
    return json.dumps({"Version": "2012-10-17", "Statement": statements})
