"""`feast-dynamo materialize` on real repos: what it says, what it writes, how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import boto3
import click
import pandas as pd
import pytest
from click.testing import CliRunner
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType, constants
from feast.types import Float64, Int64
from repos import REGION, write_repo_yaml

from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.cli.materialize import Window
from feast_dynamo_ext.cli.repo import (
    YAML_PATH_VARIABLE,
    YAML_VARIABLE,
    age_in,
    names_in,
    size_in,
    time_in,
)
from feast_dynamo_ext.dynamo.control_items import ControlItem
from feast_dynamo_ext.materialize.lease import LEASE

JANUARY = datetime(2026, 1, 1, tzinfo=timezone.utc)
OURS = "provider: feast_dynamo_ext.DynamoProvider\n"


def run(*arguments):
    return CliRunner().invoke(main, ["materialize", *map(str, arguments)], terminal_width=100)


def error_of(result):
    """The one line of a command that failed."""
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("error: ").rstrip()


def write_yaml(folder, project: str, endpoint: str) -> None:
    online = {"region": REGION, "endpoint_url": endpoint}
    write_repo_yaml(folder, project=project, online=online, offline={"region": REGION})


@pytest.fixture
def empty(tmp_path):
    """A repo to which nothing has been applied."""
    write_yaml(tmp_path, "shop", "http://127.0.0.1:9")
    return tmp_path


@pytest.fixture
def shop(tmp_path, moto_endpoint, request):
    """A repo of two views on moto: 30 rows of history of 10 users each, and one without files."""
    project = f"p{abs(hash(request.node.nodeid)):x}"
    write_yaml(tmp_path, project, moto_endpoint)
    days = [JANUARY + timedelta(days=day) for day in range(3) for _ in range(10)]
    history = pd.DataFrame(
        {
            "user": [*range(10)] * 3,
            "ts": pd.to_datetime(days).astype("datetime64[us, UTC]"),
            "amount": [float(row) for row in range(30)],
            "number": [*range(30)],
        }
    )
    history.to_parquet(tmp_path / "history.parquet")
    store = FeatureStore(repo_path=str(tmp_path))
    store.apply(definitions(tmp_path))
    (tmp_path / "gone.parquet").unlink()
    return tmp_path


def definitions(folder):
    (folder / "gone.parquet").write_bytes((folder / "history.parquet").read_bytes())
    user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)
    fields = {"orders": Field(name="amount", dtype=Float64)}
    fields["baskets"] = fields["lost"] = Field(name="number", dtype=Int64)
    return [
        user,
        *(
            FeatureView(
                name=name,
                entities=[user],
                ttl=timedelta(days=10_000),
                schema=[field, Field(name="user", dtype=Int64)],
                source=FileSource(
                    name=f"{name}_source",
                    path=str(folder / ("gone" if name == "lost" else "history")) + ".parquet",
                    timestamp_field="ts",
                ),
            )
            for name, field in fields.items()
        ),
    ]


def amounts(folder, feature="orders:amount"):
    """The feature of users 0 and 9, as a service would read it."""
    store = FeatureStore(repo_path=str(folder))
    rows = [{"user": 0}, {"user": 9}]
    return store.get_online_features([feature], rows).to_dict()[feature.partition(":")[2]]


# Usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give START_TS and END_TS, or --incremental, or --all."),
        (["2026-01-01"], "Give START_TS and END_TS, or --incremental, or --all."),
        (["--all", "2026-01-01"], "--all takes no times: it goes from 1970 until now."),
        (["--incremental", "--all"], "--incremental and --all contradict each other."),
        (
            ["--incremental", "2026-01-01", "2026-01-02"],
            "--incremental takes END_TS alone, or no time: until now.",
        ),
        (
            ["2026-01-02", "2026-01-01T12:00:00+02:00"],
            "START_TS (2026-01-02 00:00:00+00:00) is after END_TS (2026-01-01 12:00:00+02:00).",
        ),
        (["--all", "--version", "v1"], "--version takes one view: name it with --views."),
    ],
)
def test_wrong_usage(arguments, message):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == f"Error: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "`nonsense` is no time: Unknown string format: nonsense."),
        ("2026-13-45", "`2026-13-45` is no time: month must be in 1..12: 2026-13-45."),
        ("10", "`10` names no full date."),
        ("2026", "`2026` names no full date."),
        ("12:30", "`12:30` names no full date."),
        ("", "`` is no time: String does not contain a date: ."),
        ("2026-01-01 10:00 XYZ", "`2026-01-01 10:00 XYZ`: its time zone is not known."),
    ],
)
def test_what_is_no_time(text, message):
    with pytest.raises(click.BadParameter) as raised:
        time_in(text)
    assert raised.value.message == (
        f"{message} Write it as 2026-01-31, 2026-01-31T12:00:00 (UTC) or "
        "2026-01-31T12:00:00+01:00."
    )
    assert run(text, "2026-01-01").exit_code == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=timezone.utc)),
        ("2026-01-31T12:00:00", datetime(2026, 1, 31, 12, tzinfo=timezone.utc)),
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=timezone.utc)),
        ("2026-01-31 12:00:00.5+01:00", datetime(2026, 1, 31, 11, 0, 0, 500_000, timezone.utc)),
        ("31 January 2026", datetime(2026, 1, 31, tzinfo=timezone.utc)),
    ],
)
def test_times(text, expected):
    assert time_in(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0B", 0),
        ("256MB", 256_000_000),
        ("1.5 GiB", 1_610_612_736),
        ("2KB", 2_000),
        ("1TiB", 1_099_511_627_776),
    ],
)
def test_sizes(text, expected):
    assert size_in(text) == expected


@pytest.mark.parametrize("text", ["many", "", "256", "-1MB", "1mb", "1iB", "1MB each"])
def test_what_is_no_size(text):
    with pytest.raises(click.BadParameter) as raised:
        size_in(text)
    assert raised.value.message == f"`{text}` is no size. Write it as 256MB or 1GiB."


def test_ages():
    assert list(map(age_in, ("0s", "90s", "30m", "24h", "7d"))) == [0, 90, 1_800, 86_400, 604_800]


@pytest.mark.parametrize("text", ["7", "1y", "", "1.5h", "-1h"])
def test_what_is_no_age(text):
    with pytest.raises(click.BadParameter) as raised:
        age_in(text)
    assert raised.value.message == f"`{text}` is no age. Write it as 90s, 30m, 24h or 7d."


def test_names_of_views():
    assert names_in(("a, b", "c", "a", ",")) == ("a", "b", "c")


class View:
    """What a window asks of a feature view."""

    name = "orders"

    def __init__(self, most_recent_end_time, ttl):
        self.most_recent_end_time = most_recent_end_time
        self.ttl = ttl


@pytest.mark.parametrize(
    ("view", "start"),
    [
        (View(datetime(2026, 1, 5, tzinfo=timezone.utc), None), datetime(2026, 1, 5)),  # noqa: DTZ001
        (View(None, timedelta(days=2)), datetime(2026, 1, 8)),  # noqa: DTZ001
        (View(None, timedelta(0)), datetime(2025, 1, 11)),  # noqa: DTZ001
    ],
)
def test_an_incremental_window_starts_where_feast_would(view, start):
    now = datetime(2026, 1, 10, tzinfo=timezone.utc)
    window = Window.from_times((), now, incremental=True, all_=False)
    assert window == Window(None, now)
    assert window.start_for(view, now) == start.replace(tzinfo=timezone.utc)


@pytest.mark.slow
def test_help_teaches_and_loads_nothing_heavy():
    result = run("--help")
    assert result.exit_code == 0
    assert "feast-dynamo materialize --all --write-mode overwrite" in result.stdout
    code = (
        "import sys; from feast_dynamo_ext.cli.main import main; "
        "main(['materialize', '--help'], standalone_mode=False); "
        "sys.exit(bool({'feast', 'pyarrow', 'boto3', 'duckdb'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Repos that cannot be materialized


def test_no_repo(tmp_path):
    assert error_of(run("--all", "-c", tmp_path)) == (
        f"There is no feature_store.yaml in {tmp_path}. Run this in a feature repo, or name one: "
        "--chdir PATH."
    )


def test_feature_store_yaml_is_looked_for_where_feast_looks(tmp_path, monkeypatch):
    """The commands look before they import Feast, so they know its names themselves."""
    assert (YAML_PATH_VARIABLE, YAML_VARIABLE) == (
        constants.FEAST_FS_YAML_FILE_PATH_ENV_NAME, constants.FEATURE_STORE_YAML_ENV_NAME,
    )  # fmt: skip
    monkeypatch.setenv(YAML_PATH_VARIABLE, str(tmp_path / "other.yaml"))
    assert error_of(run("--all", "-c", tmp_path)).startswith(
        f"There is no other.yaml in {tmp_path}. "
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "{path} is no YAML of keys and values: feast.repo_config.RepoConfig() argument after "
             "** must be a mapping, not NoneType"),
        ("provider: local\n", "{path}: `project`: Field required."),
        (
            f"project: shop\nregistry: r.db\n{OURS}online_store:\n"
            "  type: feast_dynamo_ext.DynamoOnlineStore\n  batch_sizes: 1\n",
            "online_store of feature_store.yaml: unknown key `batch_sizes`. Did you mean "
            "`batch_size`?",
        ),
        (
            "project: shop\nregistry: r.db\nprovider: local\nonline_store: nope\n",
            "Online Store Class 'nope' should end with the string `OnlineStore`.'",
        ),
        (
            f"project: shop\nregistry: r.db\n{OURS}online_store:\n  type: sqlite\n",
            "The online store of this repo is `sqlite`. Set `type: "
            "feast_dynamo_ext.DynamoOnlineStore` in online_store of feature_store.yaml, or use "
            "`feast materialize`.",
        ),
    ],
    ids=["empty", "no project", "misspelt key", "no such store", "Feast's own store"],
)  # fmt: skip
def test_a_feature_store_yaml_that_does_not_do(text, message, tmp_path):
    path = tmp_path / "feature_store.yaml"
    path.write_text(text)
    assert error_of(run("--all", "-c", tmp_path)) == message.format(path=path)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            OURS,
            "provider: local\n",
            "Another engine materializes this repo. In feature_store.yaml, set `provider: "
            "feast_dynamo_ext.DynamoProvider` and no other engine's `type` in batch_engine, or "
            "use `feast materialize`.",
        ),
        (
            OURS,
            "provider: nope.Provider\n",
            "Could not import module 'nope' while attempting to load class 'Provider'",
        ),
    ],
)
def test_a_repo_of_another_provider(before, after, message, empty):
    path = empty / "feature_store.yaml"
    path.write_text(path.read_text().replace(before, after))
    assert error_of(run("--all", "-c", empty)) == message


def test_a_repo_that_nobody_has_applied(empty):
    assert error_of(run("--all", "-c", empty)) == (
        "Project shop has no feature view that is served online. Run `feast apply` first, which "
        "registers what the repo defines."
    )


def test_a_view_in_a_repo_that_has_none(empty):
    assert error_of(run("--all", "-c", empty, "-v", "orders")) == (
        "Feature view orders does not exist in project shop. It has no feature view at all: run "
        "`feast apply` first."
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            "orders,order",
            "Feature view order does not exist in project {}. Did you mean `orders`?",
        ),
        ("zzz", "Feature view zzz does not exist in project {}. It has: baskets, lost, orders."),
    ],
)
def test_a_view_that_does_not_exist(names, message, shop):
    project = FeatureStore(repo_path=str(shop)).project
    assert error_of(run("--all", "-c", shop, "-v", names)) == message.format(project)


# Runs


def test_a_run_writes_the_newest_rows_and_says_so(shop):
    result = run("2026-01-01", "2026-02-01", "-c", shop, "-v", "orders,baskets")
    assert (result.exit_code, result.exception) == (0, None)
    assert amounts(shop) == [20.0, 29.0]
    assert amounts(shop, "baskets:number") == [20, 29]
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    (header,) = [line for line in lines if line.startswith("feature view read")]
    assert header == ("feature view read written older expired failed units dollars time state")
    found = lines[lines.index(header) :]
    assert [line.split()[:6] for line in found[2:4]] == [
        ["orders", "30", "10", "0", "0", "0"],
        ["baskets", "30", "10", "0", "0", "0"],
    ]
    assert found[5].startswith("total 60 20 0 0 0 ")
    assert [line.split()[-1] for line in (found[2], found[3], found[5])] == ["done"] * 3
    intervals = FeatureStore(repo_path=str(shop)).get_feature_view("orders")
    assert intervals.materialization_intervals == [
        (JANUARY, datetime(2026, 2, 1, tzinfo=timezone.utc))
    ]


def test_json_stands_alone_on_stdout(shop):
    result = run("2026-01-01", "2026-01-02T12:00", "-c", shop, "-v", "orders", "--json")
    assert result.exit_code == 0
    (view,) = json.loads(result.stdout)["views"]
    counted = ("view", "state", "read", "to_write", "written", "older", "expired", "failed")
    assert [view[name] for name in counted] == ["orders", "done", 20, 10, 10, 0, 0, 0]
    assert view["error"] is None
    assert view["dollars"] == pytest.approx(view["units"] * 0.625e-6)
    assert "Materializing" in result.stderr
    assert amounts(shop) == [10.0, 19.0]


def test_an_incremental_run_goes_on_where_the_last_ended(shop):
    assert run("2026-01-01", "2026-01-01T12:00", "-c", shop, "-v", "orders").exit_code == 0
    assert amounts(shop) == [0.0, 9.0]
    result = run("--incremental", "2026-01-02T12:00", "-c", shop, "-v", "orders", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["total"]["written"] == 10
    assert amounts(shop) == [10.0, 19.0]
    assert run("--incremental", "-c", shop, "-v", "orders").exit_code == 0
    assert amounts(shop) == [20.0, 29.0]


def test_all_of_history(shop):
    assert run("--all", "-c", shop, "-v", "orders").exit_code == 0
    assert amounts(shop) == [20.0, 29.0]


def test_older_rows_do_not_replace_newer_ones_unless_asked_to(shop):
    assert run("--all", "-c", shop, "-v", "orders").exit_code == 0
    window = ("2026-01-01", "2026-01-01T12:00", "-c", shop, "-v", "orders", "--json")
    kept = json.loads(run(*window).stdout)["total"]
    assert (kept["written"], kept["older"]) == (0, 10)
    assert amounts(shop) == [20.0, 29.0]
    replaced = json.loads(run(*window, "--write-mode", "overwrite", "--restart").stdout)["total"]
    assert (replaced["written"], replaced["older"]) == (10, 0)
    assert amounts(shop) == [0.0, 9.0]


def test_a_view_that_fails_does_not_stop_the_others(shop):
    result = run("2026-01-01", "2026-02-01", "-c", shop)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "error: 1 of 3 feature views failed: lost. The reasons are above; once they are mended, "
        "run the same command again."
    )
    assert "\nlost: " in result.stdout
    assert "gone.parquet" in result.stdout
    assert "2 of 3 done" in result.stdout
    assert amounts(shop) == [20.0, 29.0]
    assert amounts(shop, "baskets:number") == [20, 29]


def test_a_view_that_fails_is_in_the_json(shop):
    result = run("2026-01-01", "2026-02-01", "-c", shop, "--json", "-v", "lost,orders")
    assert result.exit_code == 1
    found = {view["view"]: view for view in json.loads(result.stdout)["views"]}
    assert [found[name]["state"] for name in ("lost", "orders")] == ["failed", "done"]
    assert "gone.parquet" in found["lost"]["error"]


# Dry runs


def test_a_dry_run_writes_nothing(shop):
    result = run("2026-01-01", "2026-02-01", "-c", shop, "-v", "orders,baskets", "--dry-run")
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0] == (
        "feature view read expired to write bytes/item p99 max units/item units dollars time"
    )
    assert [line.split()[:4] for line in lines[2:4]] == [
        ["orders", "30", "0", "10"],
        ["baskets", "30", "0", "10"],
    ]
    assert lines[-1].startswith("newest_wins: ")
    assert "At most 40 units" in lines[-1]
    assert amounts(shop) == [None, None]
    view = FeatureStore(repo_path=str(shop)).get_feature_view("orders")
    assert view.materialization_intervals == []


def test_a_dry_run_names_every_view_that_would_fail(shop):
    times = ("2026-01-01", "2026-02-01", "-c", shop, "--dry-run")
    store = FeatureStore(repo_path=str(shop))
    later = store.get_feature_view("baskets")
    later.features[0].name = "nmber"
    store.apply([later])
    result = run(*times)
    assert result.exit_code == 1
    assert [line.split()[0] for line in result.stdout.splitlines()[2:3]] == ["orders"]
    said = result.stderr.splitlines()
    assert any(line.startswith("lost: Source `lost_source`: there is no file") for line in said)
    assert any(line.startswith("baskets: Feature view `baskets` names the col") for line in said)
    assert said[-1].startswith("error: 2 of 3 feature views failed: ")
    result = run(*times, "--json", "-v", "orders,lost")
    found = json.loads(result.stdout)
    assert [view["view"] for view in found["views"]] == ["orders"]
    assert list(found["failed"]) == ["lost"]
    assert "there is no file" in error_of(run(*times, "-v", "lost"))


def test_what_is_chosen_for_a_run_is_what_it_would_do(shop):
    chosen = ("--write-mode", "overwrite", "--max-write-units", "5", "--json", "--dry-run")
    result = run("2026-01-01", "2026-02-01", "-c", shop, "-v", "orders", *chosen)
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["rate"] == {"units_per_s": 5, "per": "run"}
    (view,) = found["views"]
    assert (view["write_mode"], view["units"], view["max_units"]) == ("overwrite", 10, 10)
    assert view["seconds"] == 2.0


# Interrupted


@pytest.mark.parametrize("program", ["feast", "feast-dynamo"])
@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)], ids=["ctrl-c", "terminated"]
)
def test_an_interrupted_run_leaves_its_views_readable(
    shop, moto_endpoint, fork_server, program, sent, code
):
    window = ["2026-01-01", "2026-01-04"]
    assert run(*window, "--chdir", shop, "--views", "orders,baskets").exit_code == 0
    yaml = shop / "feature_store.yaml"
    slow = "batch_engine:\n  type: feast_dynamo_ext.DynamoComputeEngine\n"
    yaml.write_text(f"{yaml.read_text()}{slow}  max_write_units_per_s: 1\n")
    project = FeatureStore(repo_path=str(shop)).project
    client = boto3.client("dynamodb", region_name=REGION, endpoint_url=moto_endpoint)
    leases = [ControlItem(client, f"{project}.{name}", LEASE) for name in ("orders", "baskets")]
    with (shop / "said.txt").open("w") as said:
        process = fork_server.start(
            *(program, "materialize", *window, "-v", "orders", "-v", "baskets"),
            cwd=shop,
            stdout=said,
            stderr=said,
        )
        while not all(lease.read() for lease in leases):
            assert process.poll() is None, (shop / "said.txt").read_text()
        process.send_signal(sent)
        assert process.wait(60) == code, (shop / "said.txt").read_text()
    client.close()
    # As another program sees it that starts now, reads once and ends.
    views = FeatureStore(repo_path=str(shop)).list_feature_views()
    states = {view.name: view.state.name for view in views if view.name != "lost"}
    assert states == {"orders": "AVAILABLE_ONLINE", "baskets": "AVAILABLE_ONLINE"}
    assert amounts(shop) == [20.0, 29.0]


@pytest.mark.parametrize("program", ["feast", "feast-dynamo"])
def test_an_incremental_end_to_come_is_one_line(shop, fork_server, program):
    """Of every error of ours `feast` shows the message alone, as it is one of click's."""
    command = {
        "feast": ["materialize-incremental"],
        "feast-dynamo": ["materialize", "--incremental"],
    }
    done = fork_server.run(program, *command[program], "2099-01-01", cwd=shop)
    assert done.returncode == 1
    text = done.stdout + done.stderr
    assert text.count("The end of the incremental materialization, 2099-01-01T00:00:00") == 1
    assert "Traceback" not in text
    assert "failed" not in done.stdout
