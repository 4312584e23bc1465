"""The whole job on a real shop's purchases, on an embedded AWS: `make demo` runs this file.

Declare, apply, materialize, serve online; build a declared point-in-time training set, run its
pipeline up to a registered model, and serve that behind HTTP. Each step says what it did and how
long it took; what it starts it stops, also when a step fails or on Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import xgboost as xgb
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
SET = PIPELINE = "repurchase"
COMPARED = 200
# moto takes about 800 rows a second: this many keep the demo well under three minutes on it.
CUSTOMERS_ON_MOTO = 10_000
UNKNOWN_CUSTOMER = 10_000_000


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
        print(f"\n\033[1m[{self.step_number}/7] {title}\033[0m", flush=True)
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
        with self.step("The declared training set, point in time, on S3") as facts:
            self.write_training_set(entity_rows(purchases), facts)
        with self.step("Its pipeline on this machine: build, train, evaluate, register") as facts:
            run = self.run_pipeline(facts)
        with self.step("The model behind HTTP looks its features up") as facts:
            self.serve_model(run, facts)
        print("\nWhat now exists (and goes with the embedded AWS, but for the model):\n")
        print(tabulate(self.made, headers=("what", "where", "how much"), tablefmt="rounded_grid"))
        print(f"\nThe training set on one page: {os.path.relpath(WORK / 'report.html')}")

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

    def write_training_set(self, rows: pd.DataFrame, facts: list[str]) -> None:
        """Step 5: what training_sets/repurchase.yaml declares, and a SageMaker job on it."""
        filesystem, folder = aws.filesystem(f"s3://{BUCKET}/labels", self.settings)
        table = pa.Table.from_pandas(rows, preserve_index=False)
        pq.write_table(table, f"{folder}/{SET}.parquet", filesystem=filesystem)
        feast_dynamo("training-set", "build", SET)
        output = f"s3://{BUCKET}/training/{SET}"
        training_set = sagemaker.load_training_set(output, self.settings)
        features = len(training_set.manifest.features)
        facts.append(f"{len(rows):,} entity rows, {features} features")
        for split in sagemaker.SPLITS:
            rows_of_split = training_set.manifest.splits[split].rows
            where = f"{output}/{split}/"
            self.made.append((f"{split} (CSV, Parquet)", where, f"{rows_of_split:,} rows"))
        files = len(training_set.manifest.files)
        self.made.append(("manifest", f"{output}/manifest.json", f"{files} files"))
        feast_dynamo("training-set", "report", SET, "--to", str(WORK / "report.html"))
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
        self.made.append(("SageMaker training job", job.name, job.status))

    def run_pipeline(self, facts: list[str]) -> dict[str, Any]:
        """Step 6: pipelines/repurchase.yaml, as SageMaker would run it."""
        answer = feast_dynamo(
            *(
                "pipeline",
                "run",
                PIPELINE,
                "--local",
                "--output",
                str(WORK / "pipeline"),
                "--json",
            ),
            is_answer=True,
        )
        run: dict[str, Any] = json.loads(answer)
        facts.append(f"test AUC {run['metric']:.3f} (a coin: 0.5)")
        facts.append(", ".join(f"{step} {outcome}" for step, outcome in run["steps"].items()))
        size = Path(run["model"]).stat().st_size
        self.made.append(("model", os.path.relpath(run["model"]), f"{size / 1024:,.0f} KB"))
        self.made.append(("metric", "AUC on the test cutoffs", f"{run['metric']:.3f}"))
        self.made.append(("model's entry", os.path.relpath(run["package"]), "its set and metric"))
        return run

    def serve_model(self, run: dict[str, Any], facts: list[str]) -> None:
        """Step 7: 200 customers scored over HTTP, and by the model on the newest history."""
        archive = WORK / "endpoint.tar.gz"
        feast_dynamo(
            *("endpoint", "package", "--training-set", run["training_set"]),
            *("--model", run["model"], "--output", str(archive)),
        )
        newest = {view: newest_rows(view, self.settings) for view in VIEWS}
        known = newest["customer_lifetime"].index.tolist()
        customers = random.Random(8).sample(known, COMPARED)  # noqa: S311 - a sample
        served = served_scores(archive, customers)
        training_set = sagemaker.load_training_set(run["training_set"], self.settings)
        rows = pd.concat([of_view.reindex(customers) for of_view in newest.values()], axis=1)
        rows = rows[list(training_set.manifest.features)]
        matrix = rows.to_numpy(dtype="float64", na_value=math.nan)
        expected = booster_of(Path(run["model"])).predict(xgb.DMatrix(matrix)).tolist()
        wrong = sum(one != other for one, other in zip(served, expected, strict=True))
        if wrong:
            fail(f"{wrong} of {COMPARED} scores over HTTP are not those of the newest history")
        facts.append(f"{COMPARED} customers over HTTP: each score is that of the newest history")
        size = archive.stat().st_size
        self.made.append(
            ("endpoint's archive", os.path.relpath(archive), f"{size / 1024:,.0f} KB")
        )


def feast(*arguments: str) -> None:
    """Run the real `feast` command in the repo."""
    print(f"      $ feast {' '.join(arguments)}", flush=True)
    subprocess.run([Path(sys.executable).parent / "feast", *arguments], cwd=REPO, check=True)


def feast_dynamo(*arguments: str, is_answer: bool = False) -> str:
    """Run the real `feast-dynamo` command in the repo; gives what it printed if that is wanted."""
    print(f"      $ feast-dynamo {' '.join(arguments)}", flush=True)
    command = [Path(sys.executable).parent / "feast-dynamo", *arguments]
    out = subprocess.PIPE if is_answer else None
    ended = subprocess.run(command, cwd=REPO, check=True, stdout=out, text=True)
    return ended.stdout or ""


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


def booster_of(archive: Path) -> xgb.Booster:
    """The model that a job left."""
    with tarfile.open(archive) as packed, tempfile.TemporaryDirectory() as folder:
        packed.extract("model.json", folder, filter="data")
        return xgb.Booster(model_file=str(Path(folder, "model.json")))


def posted(url: str, body: dict[str, Any]) -> Any:
    """What a server of ours answers to JSON."""
    request = urllib.request.Request(  # noqa: S310 - our own server
        url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - our own server
        return json.load(answer)


def feast_serve() -> contextlib.AbstractContextManager[str]:
    """A really started `feast serve` on a free port; gives its URL."""
    return served(["feast", "serve", "-h", "127.0.0.1", "--no-access-log"], "", "/health")


@contextlib.contextmanager
def served(command: list[str], port_variable: str, health: str) -> Iterator[str]:
    """A server on a free port, which an environment variable or else `-p` says; gives its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    command = command if port_variable else [*command, "-p", port]
    print(f"      $ {' '.join(command)}", flush=True)
    log_path = WORK / f"{command[0]}-{command[1]}.log"
    with log_path.open("w") as log:
        server = subprocess.Popen(
            [Path(sys.executable).parent / command[0], *command[1:]],
            cwd=REPO,
            env=os.environ | ({port_variable: port} if port_variable else {}),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until_healthy(server, f"{url}{health}", log_path)
            yield url
        finally:
            server.terminate()
            server.wait(timeout=30)


def wait_until_healthy(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        if is_healthy(url):
            return
        time.sleep(0.2)
    fail(f"The server did not answer; its log: {log}")


def is_healthy(url: str) -> bool:
    """Whether a server answers."""
    try:
        urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 - our own
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
