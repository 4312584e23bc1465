"""The whole job on a real shop's purchases, on an embedded AWS: `make demo` runs this file.

Declare, apply, materialize, serve online, retrieve a point-in-time training set, train on it under
SageMaker's contract. Each step says what it did and how long it took; what it starts it stops,
also when a step fails or on Ctrl-C.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pandas as pd
import pyarrow.compute as pc
import pyarrow.dataset as pads
from history import build_history, write_history
from labels import entity_rows
from purchases import load_purchases
from tabulate import tabulate

from feast_dynamo_ext import aws, local, sagemaker
from feast_dynamo_ext.errors import FeastDynamoError

if TYPE_CHECKING:
    from collections.abc import Iterator

REPO = Path(__file__).resolve().parent
WORK = REPO.parent / ".feast-dynamo" / "demo"
BUCKET = "feast-dynamo-demo"
SERVICE = "repurchase_v1"
VIEWS = ("customer_90d", "customer_lifetime")
LABEL = "bought_again_60d"
COMPARED = 200
# moto takes about 800 rows a second: this many keep the demo well under three minutes on it.
CUSTOMERS_ON_MOTO = 10_000
UNKNOWN_CUSTOMER = 10_000_000

# Label windows overlap for 60 days, so two cutoffs between the parts belong to none (labels.py).
TRAIN_UNTIL = pd.Timestamp("1997-09-01", tz="UTC")
SPLIT = sagemaker.TimeSplit(
    validation_from=dt.datetime(1997, 11, 1, tzinfo=dt.timezone.utc),
    test_from=dt.datetime(1998, 2, 1, tzinfo=dt.timezone.utc),
)
VALIDATION_UNTIL = pd.Timestamp("1997-12-01", tz="UTC")


class Demo:
    """The steps, and what they leave behind for the table at the end."""

    def __init__(self, embedded: local.LocalAws) -> None:
        self.on_dynamodb_local = any("dynamodb" in server.name for server in embedded.servers)
        self.settings = aws.AwsSettings(region="us-east-1")
        self.made: list[tuple[str, str, str]] = []
        self.step_number = 0

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[list[str]]:
        """Announce a step; afterwards print its time and the facts it appended."""
        self.step_number += 1
        print(f"\n\033[1m[{self.step_number}/6] {title}\033[0m", flush=True)
        started = time.monotonic()
        facts: list[str] = []
        yield facts
        print(f"      {time.monotonic() - started:.1f} s: {'; '.join(facts)}", flush=True)

    def run(self) -> None:
        """All steps, in order."""
        with self.step("Purchases become dated feature history on S3") as facts:
            purchases = self.write_history(facts)
        with self.step("feast apply: the registry and the DynamoDB tables") as facts:
            feast("apply")
            self.note_tables(facts)
        with self.step("feast materialize: the newest row of each customer") as facts:
            self.materialize(facts)
        with self.step("Online: through the SDK and through feast serve") as facts:
            self.serve(facts)
        with self.step("Point-in-time training set on S3") as facts:
            training_set = self.write_training_set(entity_rows(purchases), facts)
        with self.step("Train under SageMaker's contract") as facts:
            self.train(training_set, facts)
        print("\nWhat now exists (and goes with the embedded AWS, but for the model):\n")
        print(tabulate(self.made, headers=("what", "where", "how much"), tablefmt="rounded_grid"))

    def write_history(self, facts: list[str]) -> Any:
        """Step 1."""
        with aws.translated("s3", f"bucket {BUCKET}"):
            aws.client("s3", self.settings).create_bucket(Bucket=BUCKET)
        purchases = load_purchases()
        if not self.on_dynamodb_local:
            few = pc.less_equal(purchases["customer_id"], CUSTOMERS_ON_MOTO)
            purchases = purchases.filter(few)
            facts.append(f"on moto, the first {CUSTOMERS_ON_MOTO:,} customers")
        customers = pc.count_distinct(purchases["customer_id"]).as_py()
        facts.append(f"{purchases.num_rows:,} purchases of {customers:,} customers")
        history = build_history(purchases)
        write_history(history, f"s3://{BUCKET}/history", self.settings)
        for view, table in history.items():
            facts.append(f"{view}: {table.num_rows:,} rows")
            self.made.append(
                ("history", f"s3://{BUCKET}/history/{view}/", f"{table.num_rows:,} rows")
            )
        return purchases

    def note_tables(self, facts: list[str]) -> None:
        """Step 2: what `feast apply` created."""
        client = aws.client("dynamodb", self.settings)
        for name in client.list_tables()["TableNames"]:
            table = client.describe_table(TableName=name)["Table"]
            ttl = client.describe_time_to_live(TableName=name)["TimeToLiveDescription"]
            billing = table["BillingModeSummary"]["BillingMode"]
            facts.append(f"table {name} ({billing}, TTL {ttl['TimeToLiveStatus'].lower()})")

    def materialize(self, facts: list[str]) -> None:
        """Step 3."""
        feast("materialize", "1997-01-01T00:00:00", "1998-07-02T00:00:00")
        client = aws.client("dynamodb", self.settings)
        for view in VIEWS:
            name = f"shop.{view}"
            pages = client.get_paginator("scan").paginate(TableName=name, Select="COUNT")
            # One item of each table says what its rows stand for.
            rows = sum(page["Count"] for page in pages) - 1
            facts.append(f"{name}: {rows:,} items")
            self.made.append(("DynamoDB table", name, f"{rows:,} items"))

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

    def write_training_set(self, rows: pd.DataFrame, facts: list[str]) -> sagemaker.TrainingSet:
        """Step 5."""
        times = rows["event_timestamp"]
        between = (times > TRAIN_UNTIL) & (times < SPLIT.validation_from)
        between |= (times > VALIDATION_UNTIL) & (times < SPLIT.test_from)
        rows = rows[~between].reset_index(drop=True)
        store = open_store()
        training_set = sagemaker.create_training_set(
            store,
            entity_rows=rows,
            features=store.get_feature_service(SERVICE),
            label=LABEL,
            output=f"s3://{BUCKET}/training/{SERVICE}",
            split=SPLIT,
        )
        facts.append(f"{len(rows):,} rows, {len(training_set.manifest.features)} features")
        print(tabulate(training_set.summary(), headers="keys", floatfmt=".3f"))
        for split in sagemaker.SPLITS:
            rows_of_split = training_set.manifest.splits[split].rows
            where = f"{training_set.output}/{split}/"
            self.made.append((f"{split} (CSV, Parquet)", where, f"{rows_of_split:,} rows"))
        files = len(training_set.manifest.files)
        self.made.append(("manifest", f"{training_set.output}/manifest.json", f"{files} files"))
        return training_set

    def train(self, training_set: sagemaker.TrainingSet, facts: list[str]) -> None:
        """Step 6: the script on this machine, and the same job for SageMaker's control plane."""
        model = WORK / "model"
        run = sagemaker.run_locally(
            REPO / "train.py",
            training_set,
            model_dir=model,
            hyperparameters={},
            work_dir=WORK / "job",
            splits=sagemaker.SPLITS,
            aws=self.settings,
        )
        metrics = json.loads((run.output_data_dir / "metrics.json").read_text())
        auc, base = metrics["test-auc"], metrics["test-base-rate"]
        facts.append(f"test AUC {auc:.3f} (a coin: 0.5), base rate {base:.3f}")
        request = sagemaker.training_job_request(
            name=f"{SERVICE.replace('_', '-')}-{int(time.time())}",
            role_arn="arn:aws:iam::123456789012:role/sagemaker-training",
            image="683313688378.dkr.ecr.us-east-1.amazonaws.com/sagemaker-xgboost:1.7-1",
            instance_type="ml.m5.large",
            output_path=f"s3://{BUCKET}/models",
            channels=training_set.channels(),
        )
        sagemaker.create_training_job(request, self.settings)
        job = sagemaker.describe_training_job(request["TrainingJobName"], self.settings)
        facts.append(f"CreateTrainingJob {job.name}: {job.status}")
        size = (model / "model.json").stat().st_size
        here = os.path.relpath(model / "model.json")
        self.made.append(("model", here, f"{size / 1024:,.0f} KB"))
        self.made.append(
            ("metric", "AUC on the test cutoffs", f"{auc:.3f} at base rate {base:.3f}")
        )
        self.made.append(("SageMaker training job", job.name, job.status))


def feast(*arguments: str) -> None:
    """Run the real `feast` command in the repo."""
    print(f"      $ feast {' '.join(arguments)}", flush=True)
    subprocess.run([Path(sys.executable).parent / "feast", *arguments], cwd=REPO, check=True)


def open_store() -> Any:
    """The feature store of this repo."""
    from feast import FeatureStore

    return FeatureStore(REPO)


def newest_rows(view: str, settings: aws.AwsSettings) -> pd.DataFrame:
    """Offline: each customer's newest row, straight from the files, with none of our join."""
    filesystem, path = aws.filesystem(f"s3://{BUCKET}/history/{view}", settings)
    rows = pads.dataset(path, filesystem=filesystem, partitioning="hive").to_table().to_pandas()
    newest = rows.sort_values(["event_timestamp", "created_timestamp"], kind="stable")
    times = ["event_timestamp", "created_timestamp", "event_month"]
    return newest.groupby("customer_id").tail(1).set_index("customer_id").drop(columns=times)


def online_by_sdk(customers: list[int]) -> dict[str, list[Any]]:
    """The features of customers, through the SDK."""
    store = open_store()
    response = store.get_online_features(
        features=store.get_feature_service(SERVICE),
        entity_rows=[{"customer_id": customer} for customer in customers],
    )
    return dict(response.to_dict())


def online_by_http(url: str, customers: list[int]) -> dict[str, list[Any]]:
    """The same through `feast serve`."""
    body = {"feature_service": SERVICE, "entities": {"customer_id": customers}}
    request = urllib.request.Request(  # noqa: S310 - our own server
        f"{url}/get-online-features",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - our own server
        decoded = json.load(answer)
    names = decoded["metadata"]["feature_names"]
    return {name: result["values"] for name, result in zip(names, decoded["results"], strict=True)}


@contextlib.contextmanager
def feast_serve() -> Iterator[str]:
    """A really started `feast serve` on a free port; gives its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [Path(sys.executable).parent / "feast", "serve", "-h", "127.0.0.1", "-p", str(port)]
    print(f"      $ feast serve -h 127.0.0.1 -p {port}", flush=True)
    with (WORK / "serve.log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--no-access-log"], cwd=REPO, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            wait_until_healthy(server, url)
            yield url
        finally:
            server.terminate()
            server.wait(timeout=30)


def wait_until_healthy(server: subprocess.Popen[bytes], url: str) -> None:
    """Wait until a feature server answers."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        if is_healthy(url):
            return
        time.sleep(0.2)
    fail(f"feast serve did not answer; its log: {WORK / 'serve.log'}")


def is_healthy(url: str) -> bool:
    """Whether a feature server answers."""
    try:
        urllib.request.urlopen(f"{url}/health", timeout=5).close()  # noqa: S310 - our own
    except OSError:
        return False
    return True


def compare(
    way: str,
    customers: list[int],
    answer: dict[str, list[Any]],
    expected: dict[str, pd.DataFrame],
) -> None:
    """Fail at any difference between what is served and the newest history."""
    for view, rows in expected.items():
        for name in rows.columns:
            for customer, served in zip(customers, answer[name], strict=True):
                known = rows[name].get(customer)
                if not same(served, known):
                    fail(f"{way}: {view}:{name} of customer {customer}: {served}, not {known}")


def same(served: Any, known: Any) -> bool:
    """Whether a served value is the known one; nulls and NaN are the same nothing."""
    if known is None or (isinstance(known, float) and math.isnan(known)):
        return served is None
    return bool(served == known)


def fail(message: str) -> NoReturn:
    """End the demo with an error."""
    raise FeastDynamoError(message)


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
