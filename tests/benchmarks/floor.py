"""The floor: bare signed BatchGetItem requests for the keys that our store reads, and no more.

All requests of a call at once, each on a kept-alive connection, answers decoded with orjson;
nothing becomes a feature value. Feast is imported for its key encoding only.
"""

from __future__ import annotations

import base64
import http.client
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import orjson
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from protocol import serve
from workload import JOIN_KEY, Workload

MAX_KEYS = 100  # BatchGetItem's limit


class BareReads:
    """Reads items of the tables that `client.py load` filled for our store."""

    def __init__(self, settings: dict, workload: Workload) -> None:
        self.url = settings["endpoint"] + "/"
        self.region = settings["region"]
        self.workload = workload
        self.tables = [f"{workload.project('ours')}.{view}" for view in workload.names()]
        self.credentials = ReadOnlyCredentials("test", "test", None)
        self.connections = threading.local()
        self.threads = ThreadPoolExecutor(max_workers=10)  # as both stores have for reads

    def requests(self, calls: int, size: int, part: int) -> list[list[dict]]:
        return [self.request_of(call) for call in self.workload.requests(calls, size, part)]

    def request_of(self, entities: list[int]) -> list[dict]:
        """BatchGetItem bodies: the keys of all tables, 100 a request."""
        pairs = [(table, _key(entity)) for table in self.tables for entity in entities]
        bodies = []
        for start in range(0, len(pairs), MAX_KEYS):
            items: dict[str, dict] = {}
            for table, key in pairs[start : start + MAX_KEYS]:
                items.setdefault(table, {"Keys": []})["Keys"].append({"k": {"B": key}})
            bodies.append({"RequestItems": items})
        return bodies

    def run(self, request: list[dict]) -> list[dict]:
        if len(request) == 1:
            return [self._call(request[0])]
        return list(self.threads.map(self._call, request))

    def answer(self, entities: list[int]) -> dict[str, list[str]]:
        """The keys found, by table."""
        found: dict[str, list[str]] = {}
        for answer in self.run(self.request_of(entities)):
            for table, items in answer["Responses"].items():
                found.setdefault(table, []).extend(item["k"]["B"] for item in items)
        return found

    def close(self) -> None:
        self.threads.shutdown()

    def _call(self, body: dict) -> dict:
        data = orjson.dumps(body)
        headers = {
            "Content-Type": "application/x-amz-json-1.0",
            "X-Amz-Target": "DynamoDB_20120810.BatchGetItem",
        }
        signed = AWSRequest(method="POST", url=self.url, data=data, headers=headers)
        SigV4Auth(self.credentials, "dynamodb", self.region).add_auth(signed)
        connection = self._connection()
        connection.request("POST", "/", data, dict(signed.headers))
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != http.client.OK:
            raise RuntimeError(f"BatchGetItem: HTTP {answer.status}: {content.decode()}")
        return orjson.loads(content)

    def _connection(self) -> http.client.HTTPConnection:
        if not hasattr(self.connections, "own"):
            address = urlsplit(self.url)
            self.connections.own = http.client.HTTPConnection(address.hostname, address.port)
        return self.connections.own


def _key(entity: int) -> str:
    key = EntityKey(join_keys=[JOIN_KEY], entity_values=[Value(int64_val=entity)])
    return base64.b64encode(serialize_entity_key(key, 3)).decode()


def main() -> None:
    settings = json.loads(sys.argv[1])
    (workload,) = settings["workloads"]
    serve(lambda _: BareReads(settings, Workload(**workload)))


if __name__ == "__main__":
    main()
