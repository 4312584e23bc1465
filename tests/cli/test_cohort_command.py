"""`feast-dynamo cohort` as a person runs it."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from feast import FeatureStore
from repos import REGION, write_repo_yaml
from series_shop import NUMBERS, SeriesShop, customers_view, purchases_view

from feast_dynamo_ext.cli.main import main


@pytest.fixture
def shop(moto_endpoint, tmp_path):
    online = {"region": REGION, "endpoint_url": moto_endpoint, "newest_wins_with": "put_item"}
    project = f"cohorts{next(NUMBERS)}"
    write_repo_yaml(tmp_path, project=project, online=online, offline={"region": REGION})
    made = SeriesShop.open(
        lambda *_, **__: FeatureStore(str(tmp_path)),
        SimpleNamespace(name="moto", endpoint=moto_endpoint),
        tmp_path,
    )
    made.apply(
        purchases_view("purchases", tmp_path, cohorts=("category", "purchase_id")),
        customers_view("customers", tmp_path),
    )
    made.buy("purchases", *[(c, c, c, 1.0, "books") for c in range(5)])
    yield made
    made.store.teardown()


def run(shop, *arguments):
    given = ["cohort", "-c", str(shop.folder), *arguments]
    return CliRunner().invoke(main, given, terminal_width=100)


def test_entities_are_listed_and_gone_on_with(shop):
    found = run(shop, "purchases", "--by", "category=books", "--limit", "3")
    assert (found.exit_code, found.stdout) == (
        0, "customer_id\n-------------\n0\n1\n2\n",
    )  # fmt: skip
    (token,) = re.findall(r"There may be more: --token (\S+)\n", found.stderr)
    rest = run(shop, "purchases", "--by", "category=books", "--token", token)
    assert rest.stdout == "customer_id\n-------------\n3\n4\n"
    assert rest.stderr == ""


def test_json(shop):
    found = run(shop, "purchases", "--by", "category=books", "--limit", "2", "--json")
    answer = json.loads(found.stdout)
    assert answer["entities"] == [{"customer_id": 0}, {"customer_id": 1}]
    given = ("--by", "category=books", "--token", answer["token"], "--json")
    rest = json.loads(run(shop, "purchases", *given).stdout)
    assert [each["customer_id"] for each in rest["entities"]] == [2, 3, 4]
    assert rest["token"] is None


def test_values_are_read_as_the_features_type(shop):
    found = run(shop, "purchases", "--by", "purchase_id=4", "--json")
    assert json.loads(found.stdout)["entities"] == [{"customer_id": 4}]
    since = shop.time(1).isoformat()
    found = run(shop, "purchases", "--by", "category=books", "--start", since, "--json")
    assert [each["customer_id"] for each in json.loads(found.stdout)["entities"]] == [0, 1]
    found = run(shop, "customers", "--by", "segment=gold")
    assert (found.exit_code, found.stdout) == (0, "No entity has `segment` = gold.\n")


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (("purchases", "--by", "category"), "Write it as category=books", 2),
        (("purchases", "--by", "amount=5"), "entities cannot be found by `amount`", 1),
        (("purchases", "--by", "purchase_id=x"), "no value of INT64", 1),
        (("purchase", "--by", "category=a"), "Did you mean `purchases`?", 1),
        (("purchases", "--by", "category=a", "--token", "x"), "the token is none", 1),
    ],
)
def test_mistakes_are_one_line(shop, arguments, said, code):
    found = run(shop, *arguments)
    assert found.exit_code == code
    assert said in found.stderr
    if code == 1:
        assert found.stderr.startswith("error: ")
        assert found.stderr.count("\n") == 1
