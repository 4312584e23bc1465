"""`feast-dynamo capture erase` as a person runs it, and `table` of a captured source."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import pytest
from capture_shop import BEGUN, Shop, item, repo_over
from click.testing import CliRunner
from feast import Entity, FeatureView, Field, FileSource
from feast.types import Float64, Int64, String

from feast_dynamo_ext import DynamoDBTableSource, ViewSettings
from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.errors import SourceNotFoundError, TrainingSetError
from feast_dynamo_ext.sagemaker import TimeSplit, create_training_set
from feast_dynamo_ext.sagemaker.rebuild import rebuild

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feast import FeatureStore

GONE = 4711


class Answer(NamedTuple):
    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.stderr
        return json.loads(self.stdout)


class Repo(NamedTuple):
    folder: Path
    shop: Shop
    store: FeatureStore
    view: FeatureView

    def run(self, *arguments: str, given: str | None = None) -> Answer:
        group, command, *others = arguments
        result = CliRunner().invoke(
            main, [group, command, "-c", str(self.folder), *others], input=given
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(result.exit_code, result.stdout, result.stderr)

    def erase(self, *others: str, given: str | None = None) -> Answer:
        key = (self.shop.source.name, "--key", f"customer={GONE}", "--settled", "0s")
        return self.run("capture", "erase", *key, *others, given=given)

    def build(self, name: str, customers: Sequence[int]) -> str:
        days = [BEGUN + dt.timedelta(days=day) for day in (2, 3, 4)]
        made = create_training_set(
            self.store,
            entity_rows=pd.DataFrame(
                {
                    "customer": [each for each in customers for _ in days],
                    "event_timestamp": days * len(customers),
                    "label": [1.0, 0.0, 1.0] * len(customers),
                }
            ),
            features=[f"{self.view.name}:amount"],
            label="label",
            output=str(self.folder / "sets" / name),
            split=TimeSplit(validation_from=days[1], test_from=days[2]),
        )
        return made.output


@pytest.fixture
def repo(shop: Shop, tmp_path: Path) -> Repo:
    store, view = repo_over(shop, tmp_path)
    for each in (GONE, 9):
        shop.service.put(item(each, 1))
    shop.service.clock.forward(minutes=1)
    made = Repo(tmp_path, shop, store, view)
    made.run("capture", "sync", shop.source.name, "--exports", shop.target.uri)
    return made


def test_all_that_holds_somebody_is_named_and_then_goes(repo: Repo):
    name, sets = repo.shop.source.name, str(repo.folder / "sets")
    theirs, of_others = repo.build("theirs", [GONE, 9]), repo.build("of_others", [9])
    places = ("--exports", repo.shop.target.uri, "--training-sets", sets)
    repo.store.materialize(BEGUN - dt.timedelta(days=1), BEGUN + dt.timedelta(days=9))
    plan = repo.erase(*places, "--dry-run", "--json").json
    assert (plan["rows"], plan["items_in_table"]) == (1, 1)
    assert [each["view"] for each in plan["online"]] == [repo.view.name]
    assert {Path(each["output"]).name: each["rows"] for each in plan["training_sets"]} == {
        "theirs": 6,
        "of_others": 0,
    }
    assert len(plan["exports"]) == 1
    assert "35 days" in plan["beyond"][0]
    assert all(each.startswith("training-set-") for each in plan["tags"])
    assert plan["tags"] != []

    answer = repo.erase(*places, given="n\n")
    assert answer.code == 1
    assert "Aborted" in answer.stderr
    assert repo.shop.rows() != []
    said = " ".join(answer.stderr.split())
    for part in (
        f"All items with customer={GONE} of source {name}",
        f"training set {theirs}: 6 rows of them",
        "The DynamoDB table has 1 item of them still: delete these first",
        f"online, view {repo.view.name}: rows of 1 entity",
        "the whole export goes",
        "point-in-time recovery of the table keeps its items for 35 days",
    ):
        assert part in said

    answer = repo.erase(*places, given="y\n")
    assert answer.code == 0, answer.stderr
    assert "nothing of them is left" in answer.stdout
    assert f"Online, view {repo.view.name}: rows of 1 entity." in answer.stdout
    assert {row[0] for row in repo.shop.rows()} == {9}
    assert not list(Path(theirs).rglob("*.parquet"))
    assert not (Path(theirs) / "manifest.json").exists()
    with pytest.raises(TrainingSetError, match=r"no manifest\.json"):
        rebuild(repo.store, theirs, str(repo.folder / "again"))
    # Of the other set all is there; but it cannot be built again, and that says why.
    assert list(Path(of_others).rglob("*.parquet"))
    with pytest.raises(TrainingSetError, match=r"rows were erased from .* comes before building"):
        rebuild(repo.store, of_others, str(repo.folder / "again"))
    # The person is only in what DynamoDB has still.
    repeated = repo.erase(*places, "--yes", "--json").json
    assert (repeated["rows"], repeated["erased"]["rows"]) == (0, 0)
    assert repeated["erased"]["traces"] == []
    assert repeated["removed_sets"] == []


def test_what_is_to_be_kept_is_named_and_kept(repo: Repo):
    theirs = repo.build("theirs", [GONE])
    done = repo.erase(
        *("--exports", repo.shop.target.uri, "--training-sets", theirs),
        *("--keep-exports", "--keep-sets", "--yes", "--json"),
    ).json
    assert done["removed_sets"] == []
    assert done["erased"]["removed_exports"] == []
    assert len(done["erased"]["kept_exports"]) == 1
    assert (Path(theirs) / "manifest.json").exists()


def test_views_over_other_sources_are_known_by_their_join_keys(repo: Repo):
    """By customer: erased. By customer and shop, or not online: named. By shop: of nobody."""
    rows = {"customer": [GONE, 9], "shop": ["s1", "s1"], "amount": [1.0, 2.0]}
    totals = repo.folder / "totals.parquet"
    pd.DataFrame(rows | {"at": [BEGUN, BEGUN]}).to_parquet(totals)
    kinds = {"customer": Int64, "shop": String}
    entities = {
        name: Entity(name=name, join_keys=[name], value_type=kind.to_value_type())
        for name, kind in kinds.items()
    }
    others = [
        FeatureView(
            name=name,
            entities=[entities[key] for key in keys],
            schema=[Field(name=key, dtype=kinds[key]) for key in keys]
            + [Field(name="amount", dtype=Float64)],
            source=FileSource(name=f"{name}_files", path=str(totals), timestamp_field="at"),
            online=online,
        )
        for name, keys, online in (
            ("by_customer", ("customer",), True),
            ("by_both", ("customer", "shop"), True),
            ("by_shop", ("shop",), True),
            ("offline", ("customer",), False),
        )
    ]
    again = DynamoDBTableSource(
        name="again",
        table=repo.shop.source.table,
        event_time="at",
        event_time_unit="ms",
        history=str(repo.folder / "again"),
        schema=repo.shop.source.schema,
    )
    of_again = FeatureView(
        name="of_again",
        entities=[entities["customer"]],
        schema=[Field(name="customer", dtype=Int64), Field(name="amount", dtype=Float64)],
        source=again,
        tags=ViewSettings(deletes="ignore").tags(),
    )
    repo.store.apply([*entities.values(), again, of_again, *others])
    online = [view.name for view in others if view.online]
    span = (BEGUN - dt.timedelta(days=1), BEGUN + dt.timedelta(days=9))
    repo.store.materialize(*span, feature_views=online)
    done = repo.erase("--yes", "--json").json
    assert done["online"] == [
        {"view": "by_customer", "entities": 1, "source": "by_customer_files"}
    ]
    assert done["beyond"][:5] == [
        f"source by_customer_files of view by_customer, {totals}: make it anew without them, or "
        "they come back online",
        "source again of view of_again: run `feast-dynamo capture erase again`",
        f"source by_both_files of view by_both, {totals}: make it anew without them, or they come "
        "back online",
        f"source offline_files of view offline, {totals}: make it anew without them",
        f"online, view by_both: its join keys customer, shop are not what customer={GONE} says; "
        "delete such rows yourself",
    ]
    for view, row, amount in (
        ("by_customer", {"customer": GONE}, None),
        ("by_customer", {"customer": 9}, 2.0),
        ("by_both", {"customer": GONE, "shop": "s1"}, 1.0),
    ):
        found = repo.store.get_online_features([f"{view}:amount"], [row]).to_dict()
        assert found["amount"] == [amount]


def test_nobody_of_a_key_is_said_and_nothing_is_done(repo: Repo):
    name, tables = repo.shop.source.name, repo.shop.history
    places = ("--exports", repo.shop.target.uri)
    before = tables.handle.load().metadata.current_snapshot_id
    for key in (("--key", "customer=123456"), ("--where", "shop=nowhere")):
        for how in ((), ("--dry-run",), ("--yes",)):
            answer = repo.run("capture", "erase", name, *key, *places, *how)
            assert (answer.code, answer.stdout) == (
                0,
                f"Nobody of that key was found: nothing of source {name} has {key[1]}, neither "
                "history and quarantine nor the online store, raw exports and training sets. "
                "Nothing was changed.\n",
            )
    found = repo.run("capture", "erase", name, *key, *places, "--yes", "--json").json
    assert (found["found"], found["rows"], "erased" in found) == (False, 0, False)
    assert tables.handle.load().metadata.current_snapshot_id == before
    with pytest.raises(SourceNotFoundError):
        tables.erased.load()
    assert repo.erase(*places, "--dry-run", "--json").json["found"] is True
    # Of one who was erased older versions and files are searched each time.
    repo.shop.service.delete({each: item(GONE, 1)[each] for each in ("customer", "at")})
    for rows in (1, 0):
        done = repo.erase(*places, "--yes", "--json").json
        assert (done["found"], done["erased"]["rows"]) == (True, rows)


def test_without_a_word_nothing_is_done(repo: Repo):
    name = repo.shop.source.name
    for arguments, said in (
        ((name,), "--key ATTRIBUTE=VALUE, or --where"),
        ((name, "--key", "customer=1", "--where", "shop=s1"), "--key ATTRIBUTE=VALUE, or --where"),
        ((name, "--key", "shop=s1"), "is `customer`, `at`: give all of it, or the first alone"),
        ((name, "--key", "at=1"), "give all of it, or the first alone"),
        ((name, "--key", "customer=1", "--json"), "pass --yes, or --dry-run"),
        (("nothing", "--key", "customer=1"), "There is no captured source `nothing`"),
    ):
        answer = repo.run("capture", "erase", *arguments)
        assert answer.code != 0
        assert said in " ".join(answer.stderr.split())
    assert {row[0] for row in repo.shop.rows()} == {GONE, 9}


def test_a_captured_source_is_tended_by_its_name(repo: Repo):
    shop, name = repo.shop, repo.shop.source.name
    for hour in range(3):
        shop.service.put(item(hour, 1))
        shop.service.clock.forward(hours=1)
        shop.sync()
    rows = shop.rows()
    (status,) = repo.run("capture", "status", "--json").json
    assert (status["small_files"], status["optimize_due"]) == (4, False)
    (done,) = repo.run("table", "optimize", name, "--json").json
    assert done["view"] == shop.history.handle.name
    assert [part["files_before"] for part in done["partitions"]] == [4]
    (status,) = repo.run("capture", "status", "--json").json
    assert status["small_files"] == 0
    before = repo.run("table", "history", name, "--json").json
    report = repo.run("table", "expire", name, "--older-than", "0s", "--json").json
    assert len(report["expired"]) == len(before) - 1
    assert shop.rows() == rows
    # One table, whether a view or the source is named.
    found = repo.run("table", "optimize", "--all", "--json").json
    assert [each["table"] for each in found] == [shop.history.handle.name]


def test_status_says_when_files_are_many(repo: Repo):
    shop = repo.shop
    for day in range(60):
        for customer in (1, 2):
            shop.service.put(item(customer, day))
    shop.service.clock.forward(hours=1)
    shop.sync()
    for day in range(60):
        shop.service.put(item(3, day))
    shop.service.clock.forward(hours=1)
    shop.sync()
    answer = repo.run("capture", "status")
    assert f"`feast-dynamo table optimize {shop.source.name}`" in answer.stdout
    assert "121 small or unsorted files" in answer.stdout
