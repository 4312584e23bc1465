"""The whole job on a real shop's purchases, on an embedded AWS: `make demo` runs this file.

It begins with the table of an application: its purchases are captured into history, features
and labels are made of it, a point-in-time training set, and a model, all by one command. New
purchases change an online answer, and a second run of that command trains on them. The model is
served behind HTTP, and by a service of the shop's own that computes features from the purchases at
the request. Each step says what it did and how long it took; what it starts it stops, also
when a step fails or on Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import application
import pandas as pd
import pyarrow.compute as pc
import pyarrow.dataset as pads
import xgboost as xgb
from commands import (
    REPO,
    WORK,
    fail,
    feast,
    feast_dynamo,
    feast_serve,
    following,
    posted,
    served,
)
from demo_service import (
    BUCKET,
    COMPARED,
    PURCHASES,
    SEGMENTS,
    compare_service,
    materialize_purchases,
    newest_rows,
    open_store,
    read_units,
    when_known,
)
from purchases import load_purchases
from service import booster_of
from tabulate import tabulate

from feast_dynamo_ext import aws, local, sagemaker
from feast_dynamo_ext.errors import FeastDynamoError

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICE = "repurchase_v1"
VIEWS = ("customer_90d", "customer_lifetime")
OF_PURCHASES = (PURCHASES, SEGMENTS)
TABLES = (*VIEWS, "last_purchase", *OF_PURCHASES)
PIPELINE = "repurchase"
NEW = 500
# moto takes about 800 rows a second: this many keep the demo at about three minutes on it.
CUSTOMERS_ON_MOTO = 2_000
UNKNOWN_CUSTOMER = 10_000_000


class Demo:
    """The steps, and what they leave behind for the table at the end."""

    def __init__(self, embedded: local.LocalAws) -> None:
        self.on_dynamodb_local = any("dynamodb" in server.name for server in embedded.servers)
        self.settings = aws.AwsSettings(region="us-east-1")
        self.dynamodb = aws.client("dynamodb", self.settings)
        self.made: list[tuple[str, str, str]] = []
        self.step_number = 0

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[list[str]]:
        """Announce a step; afterwards print its time and the facts it appended."""
        self.step_number += 1
        print(f"\n\033[1m[{self.step_number}/9] {title}\033[0m", flush=True)
        started = time.monotonic()
        facts: list[str] = []
        yield facts
        print(f"      {time.monotonic() - started:.1f} s: {'; '.join(facts)}", flush=True)

    def run(self) -> None:
        """All steps, in order."""
        with self.step("The shop's application has its purchases in a DynamoDB table") as facts:
            later = self.fill_table(facts)
        with self.step("feast apply: the registry, the tables, and what is captured") as facts:
            feast("apply")
            self.note_tables(facts)
        with self.step("feast-dynamo refresh: from the table to a model") as facts:
            first = self.refresh(facts)
        with self.step("Online: through the SDK and through feast serve") as facts:
            self.serve(facts)
        with self.step(f"{len(later)} new purchases change an online answer") as facts:
            self.buy(later, facts)
        with self.step("feast-dynamo refresh again: a model that knows of them") as facts:
            second = self.refresh(facts)
            self.compare_runs(first, second, facts)
        with self.step("The model behind HTTP looks its features up") as facts:
            self.serve_model(second, facts)
        with self.step("A service computes features from the purchases at the request") as facts:
            self.serve_purchases(second, when_known(later), facts)
        with self.step("The same every day, on SageMaker") as facts:
            self.schedule(facts)
        self.note_made(second)
        print("\nWhat now exists (and goes with the embedded AWS, but for the model):\n")
        print(tabulate(self.made, headers=("what", "where", "how much"), tablefmt="rounded_grid"))
        print(f"\nThe training set on one page: {os.path.relpath(WORK / 'report.html')}")

    def fill_table(self, facts: list[str]) -> list[dict[str, Any]]:
        """Step 1; gives the purchases that are made later, in order."""
        with aws.translated("s3", f"bucket {BUCKET}"):
            aws.client("s3", self.settings).create_bucket(Bucket=BUCKET)
        purchases = load_purchases()
        if not self.on_dynamodb_local:
            few = pc.less_equal(purchases["customer_id"], CUSTOMERS_ON_MOTO)
            purchases = purchases.filter(few)
            facts.append(f"on moto, the first {CUSTOMERS_ON_MOTO:,} customers")
        customers = pc.count_distinct(purchases["customer_id"]).as_py()
        items = application.items_of(purchases)
        application.create_table(self.dynamodb)
        application.write(self.dynamodb, items[:-NEW])
        application.turn_on_stream(self.dynamodb)
        facts.append(f"{len(items) - NEW:,} purchases of {customers:,} customers in the table")
        return items[-NEW:]

    def note_tables(self, facts: list[str]) -> None:
        """Step 2: what `feast apply` created."""
        for name in self.dynamodb.list_tables()["TableNames"]:
            if name.startswith("shop."):
                table = self.dynamodb.describe_table(TableName=name)["Table"]
                facts.append(f"table {name} ({table['BillingModeSummary']['BillingMode']})")
        facts.append(f"captured: {application.TABLE}")

    def refresh(self, facts: list[str]) -> dict[str, Any]:
        """Steps 3 and 6: pipelines/repurchase.yaml; gives the model's entry."""
        feast_dynamo("refresh", PIPELINE, "--output", str(WORK / "pipeline"))
        entries = (WORK / "pipeline" / "packages").glob("*.json")
        newest = max(entries, key=lambda path: path.stat().st_mtime_ns)
        entry: dict[str, Any] = json.loads(newest.read_text())
        facts.append(f"test AUC {entry['metric']['value']:.3f} (a coin: 0.5)")
        return entry

    def serve(self, facts: list[str]) -> None:
        """Step 4: 200 customers, and one that does not exist, both ways, against the history."""
        expected = {view: newest_rows(view, self.settings) for view in VIEWS}
        known = expected["customer_lifetime"].index.tolist()
        asked = [*random.Random(7).sample(known, COMPARED), UNKNOWN_CUSTOMER]  # noqa: S311 - a sample
        started = time.monotonic()
        by_sdk = online_by_sdk(asked)
        facts.append(f"SDK: {len(asked)} customers in {1e3 * (time.monotonic() - started):.0f} ms")
        with feast_serve() as url:
            started = time.monotonic()
            by_http = online_by_http(url, asked)
            facts.append(f"HTTP: {1e3 * (time.monotonic() - started):.0f} ms")
        for way, answer in (("SDK", by_sdk), ("HTTP", by_http)):
            compare(way, asked, answer, expected)
        facts.append(f"all {COMPARED} equal the newest history; the unknown one is null")

    def buy(self, later: list[dict[str, Any]], facts: list[str]) -> None:
        """Step 5: the application writes, the stream is followed, and what is served changes."""
        store = open_store()
        first, last = (purchase_of(item) for item in (later[0], later[-1]))
        before = last_purchases(store, [last[0]])[last[0]]
        with following(application.TABLE) as worker:
            # The first shows that the worker is there, which takes seconds to start.
            application.write(self.dynamodb, later[:1])
            until_served(store, first, worker)
            started = time.monotonic()
            application.write(self.dynamodb, later[1:])
            until_served(store, last, worker)
            took_ms = 1e3 * (time.monotonic() - started)
            facts.append(f"customer {last[0]} was served {said(before)}, and {said(last[1])}")
            facts.append(f"{took_ms:.0f} ms after the application began to write")
            # In order, so that each customer's last one stays.
            bought = dict(map(purchase_of, later))
            for each in bought.items():
                until_served(store, each, worker)
        facts.append(f"all {len(bought)} customers are served what they bought last")

    def compare_runs(
        self, first: dict[str, Any], second: dict[str, Any], facts: list[str]
    ) -> None:
        """Step 6: what the second model was trained on."""
        rows = [
            sagemaker.load_training_set(run["training_set"], self.settings)
            .manifest.splits["train"]
            .rows
            for run in (first, second)
        ]
        if rows[1] <= rows[0] or first["model"]["sha256"] == second["model"]["sha256"]:
            fail("the second model was not trained on more than the first")
        facts.append(f"trained on {rows[1]:,} rows, before on {rows[0]:,}")

    def serve_model(self, run: dict[str, Any], facts: list[str]) -> None:
        """Step 7: 200 customers scored over HTTP, and by the model on the newest history."""
        archive, model = WORK / "endpoint.tar.gz", Path(run["model"]["path"])
        feast_dynamo(
            *("endpoint", "package", "--training-set", run["training_set"]),
            *("--model", str(model), "--output", str(archive)),
        )
        newest = {view: newest_rows(view, self.settings) for view in VIEWS}
        known = newest["customer_lifetime"].index.tolist()
        customers = random.Random(8).sample(known, COMPARED)  # noqa: S311 - a sample
        served = served_scores(archive, customers)
        training_set = sagemaker.load_training_set(run["training_set"], self.settings)
        rows = pd.concat([of_view.reindex(customers) for of_view in newest.values()], axis=1)
        rows = rows[list(training_set.manifest.features)]
        matrix = rows.to_numpy(dtype="float64", na_value=math.nan)
        expected = booster_of(model).predict(xgb.DMatrix(matrix)).tolist()
        wrong = sum(one != other for one, other in zip(served, expected, strict=True))
        if wrong:
            fail(f"{wrong} of {COMPARED} scores over HTTP are not those of the newest history")
        facts.append(f"{COMPARED} customers over HTTP: each score is that of the newest history")
        size = archive.stat().st_size
        self.made.append(
            ("endpoint's archive", os.path.relpath(archive), f"{size / 1024:,.0f} KB")
        )

    def serve_purchases(self, run: dict[str, Any], moment: pd.Timestamp, facts: list[str]) -> None:
        """Step 8: features of one customer and scores of a segment, compared with history."""
        materialize_purchases(moment)
        figures = compare_service(Path(run["model"]["path"]), moment, self.settings)
        if self.on_dynamodb_local:  # moto counts no bytes
            figures += read_units(self.dynamodb)
        print(tabulate(figures, tablefmt="rounded_grid"))
        facts.append("each feature is that of training, and of the batch job; each score as well")

    def schedule(self, facts: list[str]) -> None:
        """Step 9: the pipeline and what starts it, as AWS has them."""
        feast_dynamo("refresh", PIPELINE, "--schedule", "rate(1 day)")
        found = aws.client("scheduler", self.settings).get_schedule(Name=PIPELINE)
        pipeline = aws.client("sagemaker", self.settings).describe_pipeline(PipelineName=PIPELINE)
        if found["Target"]["Arn"] != pipeline["PipelineArn"]:
            fail("the schedule starts something else")
        steps = json.loads(pipeline["PipelineDefinition"])["Steps"]
        facts.append(f"{len(steps)} steps: {', '.join(step['Name'] for step in steps)}")
        self.made.append(
            ("SageMaker pipeline", pipeline["PipelineArn"], found["ScheduleExpression"])
        )

    def note_made(self, run: dict[str, Any]) -> None:
        """What is there at the end."""
        made: list[tuple[str, str, str]] = []
        for name in (application.TABLE, *(f"shop.{view}" for view in TABLES)):
            # Some items of our tables say what the others stand for: they are no rows.
            is_row = {"FilterExpression": "attribute_exists(f)"}
            filters = is_row if name.startswith("shop.") else {}
            pages = self.dynamodb.get_paginator("scan").paginate(
                TableName=name, Select="COUNT", **filters
            )
            items = sum(page["Count"] for page in pages)
            made.append(("DynamoDB table", name, f"{items:,} items"))
        for view in (*VIEWS, *OF_PURCHASES):
            folder = f"s3://{BUCKET}/history/{view}/"
            filesystem, path = aws.filesystem(folder, self.settings)
            rows = pads.dataset(path, filesystem=filesystem).count_rows()
            made.append(("history", folder, f"{rows:,} rows"))
        training_set = sagemaker.load_training_set(run["training_set"], self.settings)
        for split, found in training_set.manifest.splits.items():
            folder = os.path.relpath(Path(run["training_set"]) / split)
            made.append((f"{split} rows", folder, f"{found.rows:,} rows"))
        model = Path(run["model"]["path"])
        made += [
            ("model", os.path.relpath(model), f"{model.stat().st_size / 1024:,.0f} KB"),
            ("metric", "AUC on the test cutoffs", f"{run['metric']['value']:.3f}"),
        ]
        self.made = [*made, *self.made]
        feast_dynamo(
            *("training-set", "report", run["training_set"]), *("--to", str(WORK / "report.html"))
        )


def online_by_sdk(customers: list[int]) -> dict[str, list[Any]]:
    """The features of customers, through the SDK."""
    store = open_store()
    response = store.get_online_features(
        features=store.get_feature_service(SERVICE),
        entity_rows=[{"customer_id": customer} for customer in customers],
    )
    return dict(response.to_dict())


def last_purchases(store: Any, customers: list[int]) -> dict[int, tuple[int, float]]:
    """Items and amount of the newest purchase of customers, as they are served now."""
    found = store.get_online_features(
        features=["last_purchase:items", "last_purchase:amount"],
        entity_rows=[{"customer_id": customer} for customer in customers],
    ).to_dict()
    values = zip(found["items"], found["amount"], strict=True)
    return dict(zip(customers, values, strict=True))


def purchase_of(item: dict[str, Any]) -> tuple[int, tuple[int, float]]:
    """The customer of an item of the application's table, with what was bought."""
    values = {name: float(value["N"]) for name, value in item.items()}
    return int(values["customer_id"]), (int(values["items"]), values["amount"])


def said(purchase: tuple[int, float]) -> str:
    """A purchase in words; of a customer who never bought anything there are none."""
    return "nothing" if purchase[0] is None else f"{purchase[0]} items for {purchase[1]}"


def until_served(
    store: Any, bought: tuple[int, tuple[int, float]], worker: subprocess.Popen[bytes]
) -> None:
    """Watch what is served of a customer until it is what was bought."""
    customer, purchase = bought
    deadline = time.monotonic() + 60
    while last_purchases(store, [customer])[customer] != purchase:
        if time.monotonic() > deadline or worker.poll() is not None:
            fail(f"customer {customer} is not served {said(purchase)}; {WORK / 'stream.log'}")
        time.sleep(0.02)


def online_by_http(url: str, customers: list[int]) -> dict[str, list[Any]]:
    """The same through `feast serve`."""
    body = {"feature_service": SERVICE, "entities": {"customer_id": customers}}
    decoded = posted(f"{url}/get-online-features", body)
    names = decoded["metadata"]["feature_names"]
    return {name: result["values"] for name, result in zip(names, decoded["results"], strict=True)}


def served_scores(archive: Path, customers: list[int]) -> list[float]:
    """The scores of customers, from a model that `feast-dynamo endpoint local` serves."""
    command = ["feast-dynamo", "endpoint", "local", str(archive)]
    with served(command, "SAGEMAKER_BIND_TO_PORT", "/ping") as url:
        body = {"instances": [{"customer_id": customer} for customer in customers]}
        decoded = posted(f"{url}/invocations", body)
    return [prediction["score"] for prediction in decoded["predictions"]]


def compare(
    way: str,
    customers: list[int],
    answer: dict[str, list[Any]],
    expected: dict[str, pd.DataFrame],
) -> None:
    """Fail at any difference between what is served and the newest history."""
    for view, rows in expected.items():
        for name in rows.columns:
            for customer, value in zip(customers, answer[name], strict=True):
                known = rows[name].get(customer)
                if not same(value, known):
                    fail(f"{way}: {view}:{name} of customer {customer}: {value}, not {known}")


def same(served: Any, known: Any) -> bool:
    """Whether a served value is the known one; nulls and NaN are the same nothing."""
    if known is None or (isinstance(known, float) and math.isnan(known)):
        return served is None
    return bool(served == known)


def main() -> int:
    """Start the embedded AWS, run the demo, stop what was started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # A shell starts background jobs with Ctrl-C ignored; Python would leave it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(REPO.parent)
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    started = time.monotonic()
    try:
        with_java = shutil.which("java") is not None and local.dynamodb_local_folder() is not None
        embedded = local.up(WORK, dynamodb_local=with_java)
        os.environ.update(embedded.environment())
        os.environ["FEATURE_BUCKET"] = BUCKET
        names = ", ".join(f"{server.name} at {server.endpoint}" for server in embedded.servers)
        print(f"Embedded AWS: {names}")
        Demo(embedded).run()
    except FeastDynamoError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    finally:
        local.down(WORK)
    print(f"\nDone in {time.monotonic() - started:.0f} s; the embedded AWS is stopped.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
