"""`feast-dynamo table` as a person runs it, on a catalog in a file."""

from __future__ import annotations

import datetime as dt
import json
import re
import subprocess
import sys
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from feast import FeatureStore
from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource
from repos import write_repo_yaml
from views import CUSTOMER, customer_view, parquet_files

from feast_dynamo_ext.cli.history_table import table as table_group
from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.sagemaker import TimeSplit, create_training_set

START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)


class Answer(NamedTuple):
    returncode: int
    stdout: str
    stderr: str

    @property
    def json(self):
        assert self.returncode == 0, self.stderr
        return json.loads(self.stdout)


class Repo(NamedTuple):
    folder: object
    store: FeatureStore

    def run(self, *arguments: str) -> Answer:
        command, *others = arguments
        given = ["table", command, "-c", str(self.folder), *others]
        result = CliRunner().invoke(main, given, terminal_width=100)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(result.exit_code, result.stdout, result.stderr)

    def apply(self, *sources, **views):
        made = [customer_view(name, source) for name, source in views.items()]
        self.store.apply([CUSTOMER, *made])

    def paste(self, code: str, **views):
        """The source that a command printed, applied as that of views."""
        line, _, expression = code.partition("\n\n")
        names: dict = {}
        exec(line, names)  # noqa: S102 - what a person pastes
        self.apply(**dict.fromkeys(views or ["orders"], eval(expression, names)))  # noqa: S307

    def seen(self, *hours, view="orders"):
        frame = pd.DataFrame(
            {"cid": 1, "event_timestamp": [START + dt.timedelta(hours=hour) for hour in hours]}
        )
        found = self.store.get_historical_features(frame, [f"{view}:total"]).to_arrow()
        return found.column("total").to_pylist()


def rows(*values, key=1):
    moments = [START + dt.timedelta(hours=hour) for hour in range(len(values))]
    return pa.table(
        {
            "cid": pa.array([key] * len(values), pa.int64()),
            "event_timestamp": pa.array(moments, pa.timestamp("us", "UTC")),
            "total": pa.array(values, pa.float64()),
        }
    )


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """A repo whose view `orders` has two files."""
    folder = tmp_path / "shop"
    (folder / "orders").mkdir(parents=True)
    local = {"region": "us-east-1", "endpoint_url": "http://127.0.0.1:9"}
    write_repo_yaml(
        folder,
        project="shop",
        online_store={"type": "sqlite", "path": "online.db"},
        offline={"catalog": "sql", **local},
    )
    pq.write_table(rows(1.0, 2.0), folder / "orders" / "a.parquet")
    pq.write_table(rows(5.0, key=2), folder / "orders" / "b.parquet")
    found = Repo(folder, FeatureStore(repo_path=str(folder)))
    found.apply(orders=parquet_files("orders", name="orders_history"))
    return found


SOURCE = """\
from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource

IcebergSource(
    name="orders_history",
    catalog_type="sql",
    endpoint="sqlite:///data/iceberg.db",
    warehouse="data/warehouse",
    namespace="shop",
    table="orders",
    timestamp_field="event_timestamp",
)
"""


@pytest.mark.slow
def test_from_a_folder_to_a_table_and_back(repo):
    assert repo.seen(0, 1) == [1.0, 2.0]
    answer = repo.run("import", "orders", "--dry-run")
    assert answer.stdout.startswith("3 rows of 2 files would be copied into the table shop.orders")
    assert not (repo.folder / "data").exists() or repo.run("history", "orders").returncode == 1
    answer = repo.run("import", "orders")
    assert answer.stdout == (
        "3 rows of 2 files are copied into the table shop.orders, without partitions (0.0 MB, "
        "about 0.0 MB a day).\n"
        "In definitions.py, write this in place of the source `orders_history`, then run `feast "
        f"apply`:\n\n{SOURCE}"
    )
    assert answer.stderr.startswith("The files themselves stay where they are.")
    repo.paste(SOURCE.rstrip())
    assert isinstance(repo.store.get_feature_view("orders").batch_source, IcebergSource)
    assert repo.seen(0, 1) == [1.0, 2.0]

    # A writer that had the old definitions.
    pq.write_table(rows(7.0), repo.folder / "orders" / "late.parquet")
    folder = str(repo.folder / "orders")
    answer = repo.run("import", folder, "--into", "orders")
    assert answer.stdout.startswith("1 rows of 1 files are copied into the table shop.orders")
    assert answer.stdout.endswith(
        "It is the view's source: nothing is to be changed in definitions.py.\n"
    )
    assert repo.seen(0, 1) == [7.0, 2.0]
    assert repo.run("import", folder, "--into", "orders").stdout.startswith("Nothing is new")

    repo.store.write_to_offline_store("orders", rows(9.0).to_pandas())
    assert repo.seen(0) == [9.0]
    found = repo.run("history", "orders", "--json").json
    assert [info["rows"] for info in found] == [5, 4, 3]
    text = repo.run("history", "orders").stdout
    assert text.split()[:8] == [
        *("snapshot", "time", "what", "added", "removed", "rows", "files", "names")
    ]
    assert text.count("\n") == 5
    assert "current" in text

    tagged = repo.run("tag", "orders", "then", "--snapshot", str(found[1]["snapshot_id"]))
    assert 'A source reads it with tags={"feast-dynamo.snapshot": "then"}.' in tagged.stdout
    (report,) = repo.run("optimize", "--all", "--json").json
    (part,) = report["partitions"]
    assert (report["table"], part["rows"], part["files_before"]) == ("shop.orders", 5, 3)
    assert "shop.orders  nothing to do" in repo.run("optimize", "orders").stdout
    assert repo.seen(0) == [9.0]
    back = repo.run("rollback", "orders", "then")
    assert "Nothing is to be changed in definitions.py." in back.stdout
    assert repo.seen(0) == [7.0]
    assert repo.run("tag", "orders", "then", "--remove").returncode == 0
    expired = repo.run("expire", "orders", "--older-than", "0s", "--json").json
    # The first one and what was appended; the newest stays whatever its age.
    assert len(expired["expired"]) == 2
    assert repo.seen(0, 1) == [7.0, 2.0]

    answer = repo.run("drop", "orders")
    assert answer.returncode == 1
    assert "is the source of the feature views orders." in answer.stderr
    answer = repo.run("drop", "orders", "--yes", "--purge")
    assert re.match(r"The table shop\.orders is dropped; \d+ files are deleted\.", answer.stdout)
    assert "give another source to: orders" in answer.stdout
    assert list((repo.folder / "data" / "warehouse").rglob("*.parquet")) == []
    assert len(list((repo.folder / "orders").iterdir())) == 3
    assert "the catalog has no table shop.orders" in repo.run("history", "orders").stderr


def test_a_folder_is_named_as_its_source_names_it_and_a_table_stays_as_it_is(repo):
    made = repo.run("import", "./orders/", "--partition", "day", "--json").json
    assert (made["rows"], made["partition"], made["why"]) == (3, "day", "as asked")
    pq.write_table(rows(7.0), repo.folder / "orders" / "late.parquet")
    answer = repo.run("import", "orders")
    assert answer.stdout.startswith(
        "1 rows of 1 files are copied into the table shop.orders, which was there already.\n"
    )
    again = repo.run("import", "orders", "--partition", "day", "--json").json
    assert (again["files"], again["partition"], again["why"]) == (0, "day", "as it is")
    answer = repo.run("import", "orders", "--partition", "month")
    assert answer.returncode == 1
    assert "shop.orders is there already, and not partitioned by month; leave" in answer.stderr


def test_create_makes_an_empty_table_and_says_what_to_change(repo):
    found = repo.run("create", "orders", "--partition", "day", "--json").json
    assert found == {
        "view": "orders",
        "table": "shop.orders",
        "partition": "day",
        "why": "as asked",
        "columns": {
            "cid": "int64",
            "event_timestamp": "timestamp[us, tz=UTC]",
            "total": "double",
        },
        "source": SOURCE.rstrip(),
    }
    assert repo.run("history", "orders", "--json").json == []
    answer = repo.run("create", "orders")
    assert answer.returncode == 1
    assert "shop.orders is there already" in answer.stderr
    answer = repo.run("create", "orders", "--table", "more", "--dry-run")
    assert answer.stdout.startswith("The table shop.more would be made, without partitions")
    repo.paste(SOURCE.rstrip())
    answer = repo.run("create", "orders")
    assert "is the Iceberg table shop.orders already" in answer.stderr
    assert repo.run("drop", "shop.orders", "--yes").returncode == 0
    # The source's own table is made again, under its name.
    answer = repo.run("create", "orders", "--dry-run")
    assert answer.stdout.startswith("The table shop.orders would be made")
    folder = str(repo.folder / "orders")
    assert "Name the folder that has them" in repo.run("import", "orders").stderr
    assert repo.run("import", folder, "--into", "orders").stdout.startswith("3 rows of 2 files")
    assert repo.seen(0, 1) == [1.0, 2.0]
    assert repo.run("drop", "orders", "--yes").returncode == 0
    answer = repo.run("create", "orders")
    assert answer.stdout.startswith("The table shop.orders is made")
    assert "nothing is to be changed in definitions.py" in answer.stdout
    assert repo.run("drop", "shop.orders", "--yes").returncode == 0
    assert repo.run("drop", "shop.orders").stderr.startswith("error:")


@pytest.mark.slow
def test_erase_takes_keys_or_a_file_of_them(repo):
    repo.run("import", "orders")
    answer = repo.run("erase", "orders", "--key", "cid=1", "--dry-run")
    assert answer.stdout.startswith("2 rows of 1 entity would be erased from shop.orders")
    found = repo.run("erase", "orders", "--key", "cid=1", "--expire-now", "--json").json
    assert (found["rows"], found["remaining"]) == (2, [])
    repo.run("import", "orders", "--table", "again")
    keys = repo.folder / "keys.csv"
    keys.write_text("cid\n2\n7\n")
    answer = repo.run("erase", "orders", "--table", "again", "--keys-file", str(keys))
    assert answer.stdout.startswith("1 row of 2 entities erased from shop.again, in 1 file.")
    assert "run it with --expire-now" in answer.stdout
    pq.write_table(pa.table({"cid": [1]}), keys.with_suffix(".parquet"))
    named = str(keys.with_suffix(".parquet"))
    found = repo.run("erase", "orders", "--table", "again", "--keys-file", named, "--json").json
    assert found["rows"] == 2


def test_versions_that_a_training_set_was_made_of_stay(repo):
    repo.run("import", "orders")
    repo.paste(SOURCE.rstrip())
    days = [START + dt.timedelta(days=day) for day in range(3)]
    output = str(repo.folder / "training")
    create_training_set(
        repo.store,
        entity_rows=pd.DataFrame({"cid": 1, "event_timestamp": days, "label": [1.0, 0.0, 1.0]}),
        features=["orders:total"],
        label="label",
        output=output,
        split=TimeSplit(validation_from=days[1], test_from=days[2]),
    )
    (before,) = repo.run("history", "orders", "--json").json
    (kept,) = before["tags"]
    assert kept.startswith("training-set-")
    repo.store.write_to_offline_store("orders", rows(9.0).to_pandas())
    command = ("expire", "orders", "--older-than", "0s")
    answer = repo.run(*command)
    assert f"Kept: {before['snapshot_id']}, tag `{kept}`." in answer.stdout
    # Where the job may not tag, the training set's own manifest names the version.
    repo.run("tag", "orders", kept, "--remove")
    answer = repo.run(*command, "--training-set", output)
    assert "0 versions expired, 2 left" in answer.stdout
    assert f"Kept: {before['snapshot_id']}, named to be kept." in answer.stdout
    assert "1 versions expired, 1 left" in repo.run(*command).stdout


def test_files_are_registered(repo):
    found = repo.run("import", str(repo.folder / "orders"), "--register", "--json").json
    assert (found["how"], found["files"], found["rows"], found["written"]) == (
        *("registered", 2, 3),
        0,
    )
    repo.paste(found["source"])
    assert repo.seen(0, 1) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "order"), "There is no feature view `order`. Did you mean `orders`?"),
        (("import", "elsewhere/orders"), "No feature view has elsewhere/orders as its source."),
        (("import", "elsewhere", "--into", "orders"), "there is no file at"),
        (("history", "orders"), "the catalog has no table shop.orders"),
        (("optimize",), "Name a feature view, or pass --all."),
        (("optimize", "--all"), "No feature view has an Iceberg table as its source."),
        (("expire", "orders", "--older-than", "soon"), "`soon` is no age. Write it as 90s"),
        (("erase", "orders"), "Give --key NAME=VALUE, or --keys-file."),
        (("erase", "orders", "--key", "cid"), "write each join key once, as NAME=VALUE"),
        (("create", "orders", "--table", "a b"), "Give another with `--table a_b`."),
    ],
)
def test_mistakes_get_one_line(repo, arguments, said):
    answer = repo.run(*arguments)
    assert answer.returncode in (1, 2)
    assert said in " ".join(answer.stderr.split())
    assert answer.stdout == ""


def test_what_cannot_be_a_key_is_named(repo):
    repo.run("import", "orders")
    answer = repo.run("erase", "orders", "--key", "cid=five")
    assert "The keys to erase, cid, cannot be read" in answer.stderr
    answer = repo.run("erase", "orders", "--key", "total=5")
    assert "['total'] cannot be erased by. Its join keys are ['cid']" in answer.stderr


def test_all_that_stands_in_the_way_is_in_one_line(repo):
    pq.write_table(
        rows(1.0).drop_columns(["event_timestamp"]), repo.folder / "orders" / "c.parquet"
    )
    pq.write_table(rows(1.0).append_column("Total", [[1]]), repo.folder / "orders" / "d.parquet")
    answer = repo.run("import", "orders")
    assert answer.returncode == 1
    assert "2 things stand in the way" in answer.stderr
    assert "(1) columns whose names differ in case only" in answer.stderr
    assert "(2) 1 files such as" in answer.stderr


def test_without_a_catalog_the_error_says_what_to_set(repo):
    yaml = repo.folder / "feature_store.yaml"
    yaml.write_text(yaml.read_text().replace("  catalog: sql\n", ""))
    answer = repo.run("create", "orders")
    assert "`catalog: {type: sql}` for a file on this machine" in answer.stderr


def test_help_loads_neither_feast_nor_pyiceberg():
    code = (
        "import sys; from feast_dynamo_ext.cli.main import main\n"
        f"for name in {sorted(table_group.commands)}:\n"
        "    main(['table', name, '--help'], standalone_mode=False)\n"
        "sys.exit(bool({'feast', 'pyarrow', 'pyiceberg', 'boto3'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Usage: ") == len(table_group.commands)
