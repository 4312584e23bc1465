"""A measured client: Feast with our store or with its own, on tables of its own.

Runs in either environment, so it imports nothing of feast_dynamo_ext: Feast loads the store that
the settings name. `client.py load SETTINGS` creates, fills and checks the tables and ends;
`client.py serve SETTINGS` does what `protocol.py` says.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import TYPE_CHECKING

import boto3
from operations import AsyncReads, Reads, ServiceReads, Writes
from projects import SERVICE, declare, fill, open_store
from protocol import Operation, serve
from sizes import ROW
from workload import Workload

if TYPE_CHECKING:
    from feast import FeatureStore

CHECKED = [0, 1, 2]
OPERATIONS = {"read": Reads, "read async": AsyncReads, "service": ServiceReads, "write": Writes}


def load(settings: dict, workload: Workload) -> None:
    # Feast's own DynamoDB store has no precomputed services: it reads the same ones plainly.
    precomputed = settings["store"] == "ours"
    store = open_store(settings, workload)
    declare(store, workload, precomputed=precomputed)
    fill(store, workload)
    if Reads(store, workload).answer(CHECKED) != workload.answer(CHECKED):
        raise RuntimeError(f"{workload.project(settings['store'])}: not what was written.")
    if precomputed and workload.name == SERVICE:
        precompute(settings, store, workload)


def precompute(settings: dict, store: FeatureStore, workload: Workload) -> None:
    """Write the service's vectors, and prove that they are what answers it."""
    written = store._get_provider().precompute_feature_service(SERVICE)
    if written != workload.entities:
        raise RuntimeError(f"{written} vectors of {workload.entities} entities are precomputed.")
    view, *_ = workload.names()
    table = boto3.resource(
        "dynamodb", region_name=settings["region"], endpoint_url=settings["endpoint"]
    ).Table(f"{workload.project('ours')}.{view}")
    row = next(item for item in table.scan()["Items"] if ROW["ours"] in item)
    # Behind the store's back, so the vector stays as it is.
    table.delete_item(Key={"k": row["k"]})
    entities = list(range(workload.entities))
    plain, service = (
        reads(store, workload).answer(entities) == workload.answer(entities)
        for reads in (Reads, ServiceReads)
    )
    table.put_item(Item=row)
    if plain or not service:
        raise RuntimeError("The precomputed service is not answered from its vectors alone.")


def open_operation(settings: dict, workload: Workload, operation: str) -> Operation:
    return OPERATIONS[operation](open_store(settings, workload), workload)


def main() -> None:
    settings = json.loads(sys.argv[2])
    workloads = [Workload(**one) for one in settings["workloads"]]
    if sys.argv[1] == "load":
        for workload in workloads:
            load(settings, workload)
    else:
        # One: Feast keeps the objects of one project at a time, and reads them anew at a change.
        (workload,) = workloads
        serve(partial(open_operation, settings, workload))


if __name__ == "__main__":
    main()
