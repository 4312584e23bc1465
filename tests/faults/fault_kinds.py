"""What a failing DynamoDB answers: whole refusals, and answers that leave a part out."""

from __future__ import annotations

import copy
import json
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

PREFIX = "com.amazonaws.dynamodb.v20120810#"
COMMON = "com.amazon.coral.service#"

THROTTLES = (
    (PREFIX + "ProvisionedThroughputExceededException", "The level of configured throughput ..."),
    (COMMON + "ThrottlingException", "Rate of requests exceeds the allowed throughput."),
    (PREFIX + "RequestLimitExceeded", "Throughput exceeds the current limit for your account."),
)
STATEMENT_ERRORS = (
    "ProvisionedThroughputExceeded",
    "ThrottlingError",
    "RequestLimitExceeded",
    "InternalServerError",
    "TransactionConflict",
)


@dataclass(frozen=True)
class Plain:
    """An answer, and the checksum that DynamoDB sends with it."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    def sent(self, body: bytes | None = None, length: int | None = None) -> bytes:
        """As it goes over the connection; with another body, or a length that is not its own."""
        body = self.body if body is None else body
        headers = {
            "Content-Type": "application/x-amz-json-1.0",
            "x-amz-crc32": str(zlib.crc32(self.body)),
            **self.headers,
            "Content-Length": str(len(body) if length is None else length),
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {self.status} X\r\n{lines}\r\n".encode() + body


def refusal(code: str, message: str, status: int = 400, **headers: str) -> Plain:
    return Plain(status, json.dumps({"__type": code, "message": message}).encode(), headers)


def throttled(dice: random.Random) -> Plain:
    return refusal(*dice.choice(THROTTLES))


def broken(dice: random.Random) -> Plain:
    return dice.choice(
        (
            refusal(PREFIX + "InternalServerError", "Internal server error", 500),
            refusal(COMMON + "ServiceUnavailable", "Service is unavailable", 503),
            Plain(503, b"<html><body>503 Service Unavailable</body></html>"),
            Plain(502, b""),
        )
    )


def expired() -> Plain:
    return refusal(
        COMMON + "ExpiredTokenException", "The security token included in the request is expired"
    )


def skewed(stamp: str, now: str) -> Plain:
    return refusal(
        COMMON + "InvalidSignatureException",
        f"Signature expired: {stamp} is not within 5 minutes of {now}",
    )


def flipped(body: bytes, dice: random.Random) -> bytes:
    """The body with one to three of its bytes changed."""
    changed = bytearray(body)
    for place in dice.sample(range(len(body)), min(len(body), dice.randint(1, 3))):
        changed[place] ^= dice.randint(1, 255)
    return bytes(changed)


def misspelt(body: bytes, dice: random.Random) -> bytes:
    """The body with one letter or digit changed into another: mostly as readable as before."""
    alike = (b"0123456789", b"abcdefghijklmnopqrstuvwxyz", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    places = [at for at, byte in enumerate(body) if chr(byte).isalnum()]
    if not places:
        return flipped(body, dice)
    changed, place = bytearray(body), dice.choice(places)
    (group,) = (group for group in alike if body[place] in group)
    changed[place] = dice.choice([byte for byte in group if byte != body[place]])
    return bytes(changed)


@dataclass(frozen=True)
class Partial:
    """A batch of which a part is left out.

    Attributes:
        body: what is done of it; None for nothing.
        complete: the answer to the whole batch, from that to `body`.
    """

    body: dict[str, Any] | None
    complete: Callable[[dict[str, Any]], dict[str, Any]]


def partial(operation: str, body: dict[str, Any], dice: random.Random) -> Partial | None:
    """Leave a part of a batch out; None where it has no parts."""
    if operation == "BatchGetItem":
        return _of_keys(body["RequestItems"], dice)
    if operation == "BatchWriteItem":
        return _of_items(body["RequestItems"], dice)
    if operation == "BatchExecuteStatement":
        return _of_statements(body, dice)
    if operation == "Query":
        # A page ends where DynamoDB likes: its answer says where to go on.
        most = min(dice.randint(1, 3), body.get("Limit", 3))
        return Partial({**body, "Limit": most}, lambda answer: answer)
    return None


def _left_out(count: int, dice: random.Random) -> set[int]:
    # All of it left out is a refusal as a whole, at DynamoDB.
    return set(dice.sample(range(count), dice.randint(1, count - 1)))


def _of_keys(wanted: dict[str, Any], dice: random.Random) -> Partial | None:
    parts = [(table, key) for table, entry in wanted.items() for key in entry["Keys"]]
    if len(parts) < 2:
        return None
    left = _left_out(len(parts), dice)

    def request(chosen: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for table, key in chosen:
            made.setdefault(table, {**wanted[table], "Keys": []})["Keys"].append(key)
        return made

    done = request([part for at, part in enumerate(parts) if at not in left])
    rest = request([part for at, part in enumerate(parts) if at in left])
    return Partial({"RequestItems": done}, lambda answer: {**answer, "UnprocessedKeys": rest})


def _of_items(wanted: dict[str, Any], dice: random.Random) -> Partial | None:
    parts = [(table, put) for table, puts in wanted.items() for put in puts]
    if len(parts) < 2:
        return None
    left = _left_out(len(parts), dice)
    # Now and then the rows are written all the same: then they are written twice.
    is_done_anyway = dice.random() < 0.3
    done: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for at, (table, put) in enumerate(parts):
        if at in left:
            rest.setdefault(table, []).append(put)
        if at not in left or is_done_anyway:
            done.setdefault(table, []).append(put)
    return Partial({"RequestItems": done}, lambda answer: {**answer, "UnprocessedItems": rest})


def _of_statements(body: dict[str, Any], dice: random.Random) -> Partial:
    statements = body["Statements"]
    left = set(dice.sample(range(len(statements)), dice.randint(1, len(statements))))
    is_done_anyway = dice.random() < 0.3
    done = [one for at, one in enumerate(statements) if at not in left or is_done_anyway]
    errors = {
        at: {"Error": {"Code": dice.choice(STATEMENT_ERRORS), "Message": "try again"}}
        for at in sorted(left)
    }

    def complete(answer: dict[str, Any]) -> dict[str, Any]:
        answered = iter(answer["Responses"])
        responses = []
        for at in range(len(statements)):
            real = next(answered) if at not in left or is_done_anyway else None
            responses.append(errors[at] if at in left else real)
        return {"Responses": responses}

    made = copy.copy(body)
    made["Statements"] = done
    return Partial(made if done else None, complete)
