"""What items take in DynamoDB, by its own rule, as both stores left them there.

https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html

`sizes.py SETTINGS` prints the bytes of each row, by workload and store. It reads the raw items
with boto3 and knows no more of the two layouts than which items are rows.
"""

from __future__ import annotations

import json
import sys
from typing import Any

ROW = {"ours": "t", "feast": "values"}  # an attribute that rows have and no other item
CONTAINER = 3  # bytes of a list or map, and one for each element


def item_bytes(item: dict[str, dict[str, Any]]) -> int:
    """An item as boto3's client gives it: {attribute: {type: value}}."""
    return sum(len(name.encode()) + value_bytes(value) for name, value in item.items())


def value_bytes(value: dict[str, Any]) -> int:
    ((kind, held),) = value.items()
    if kind in ("NULL", "BOOL"):
        return 1
    if kind == "M":
        return CONTAINER + len(held) + item_bytes(held)
    if kind == "L":
        return CONTAINER + len(held) + sum(map(value_bytes, held))
    if kind in ("SS", "NS", "BS"):
        return sum(_scalar_bytes(kind[0], one) for one in held)
    return _scalar_bytes(kind, held)


def _scalar_bytes(kind: str, held: str | bytes) -> int:
    if isinstance(held, bytes):
        return len(held)
    return number_bytes(held) if kind == "N" else len(held.encode())


def number_bytes(text: str) -> int:
    """One byte, one for each two significant digits, one for a minus."""
    digits = text.lstrip("-").partition("E")[0].replace(".", "").strip("0")
    return 1 + (len(digits) + 1) // 2 + text.startswith("-")


def main() -> None:
    import boto3
    from workload import Workload

    settings = json.loads(sys.argv[1])
    client = boto3.client(
        "dynamodb", region_name=settings["region"], endpoint_url=settings["endpoint"]
    )
    sizes: dict[str, dict[str, list[int]]] = {}
    for workload in (Workload(**one) for one in settings["workloads"]):
        (view,) = workload.names()
        sizes[workload.name] = {
            store: [
                item_bytes(item)
                for page in client.get_paginator("scan").paginate(
                    TableName=f"{workload.project(store)}.{view}"
                )
                for item in page["Items"]
                if attribute in item
            ]
            for store, attribute in ROW.items()
        }
    print(json.dumps(sizes))


if __name__ == "__main__":
    main()
