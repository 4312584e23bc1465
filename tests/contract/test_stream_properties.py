"""Random changes of a real table: its stream, its exports and a log kept beside say the same."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import captured
import export_writer
import pyarrow as pa
import pytest
from examples import cases
from export_writer import ExportedTable, ExportPlace, into_folder, write_full, write_increment
from feast import FeatureStore
from followed import BEGUN, FollowedShop, following, rows_of, source_of, until, view_of
from hypothesis import given
from hypothesis import strategies as st
from repos import REGION, NoRegistry, open_repo_config

from feast_dynamo_ext.capture.captured import capture_of
from feast_dynamo_ext.capture.dynamo_table import DynamoTable
from feast_dynamo_ext.capture.history import CapturedHistory
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.server

ORDERS = 4
SECOND, LAST_S = 1_000_000, 100


@dataclass(frozen=True)
class Step:
    """One call of the application, so many seconds after the one before."""

    after_s: int
    order: int
    at: int | None
    amount: int | None = None
    is_expired: bool = False


steps = st.lists(
    st.builds(
        Step,
        st.sampled_from([0, 0, 1, 3]),
        st.integers(1, ORDERS),
        # A deletion, or an event time: often the same, often another, at times ahead.
        st.sampled_from([None, None, 0, 5, 5, 9, 30]),
        st.integers(1, 9),
        st.booleans(),
    ),
    min_size=1,
    max_size=25,
)


class Timed:
    """A client of DynamoDB Streams that shows when changes were written by the test's clock.

    DynamoDB Local gives minutes, of its own clock; the service gives seconds, rounded down.
    """

    def __init__(self, client: Any, times: list[dt.datetime]) -> None:
        self._client, self._times = client, times
        self._seen: dict[str, dt.datetime] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get_records(self, **request: Any) -> Any:
        answer = self._client.get_records(**request)
        for record in answer["Records"]:
            number = record["dynamodb"]["SequenceNumber"]
            moment = self._seen.setdefault(number, self._times[len(self._seen)])
            record["dynamodb"]["ApproximateCreationDateTime"] = moment.replace(microsecond=0)
        return answer


def written(second: int, number: int) -> dt.datetime:
    """Exports have microseconds."""
    return BEGUN + dt.timedelta(seconds=second, microseconds=number + 1)


def micros(moment: dt.datetime) -> int:
    """As `captured` counts."""
    return (moment - captured.START) // dt.timedelta(microseconds=1)


def as_log(changes: list[tuple[Any, dt.datetime]]) -> list[captured.Change]:
    """Rows of history by definition, for the oracle of features."""
    found = []
    for change, moment in changes:
        for at, amount, what in rows_of(change) or ():
            event = micros(BEGUN + dt.timedelta(seconds=at))
            found.append(captured.Change((change.order,), event, micros(moment), what, amount))
    return found


def changes_of(log: list[export_writer.Change]) -> list[tuple[Any, dt.datetime]]:
    from followed import Change

    return [
        (Change(int(each.keys["order"]["N"]), each.old, each.new), each.written) for each in log
    ]


MOMENTS = range(-1, LAST_S, 3)


def answers(store: FeatureStore, source: Any, *, known: bool) -> dict[str, list[int | None]]:
    """Features of each order at moments just before the next second."""
    views = [view_of(source, "applies"), view_of(source, "ignores", "ignore")]
    pairs = list(itertools.product(range(1, ORDERS + 1), MOMENTS))
    entities = pa.table(
        {
            "order": [order for order, _ in pairs],
            "event_timestamp": pa.array(
                [moment_of(second) for _, second in pairs], pa.timestamp("us", "UTC")
            ),
        }
    )
    found = S3ParquetOfflineStore.get_historical_features(
        store.config,
        views,
        [f"{view.name}:amount" for view in views],
        entities,
        NoRegistry(),
        store.project,
        full_feature_names=True,
        filter_by_created_timestamp=known,
    ).to_arrow()
    return {name: found.column(f"{name}__amount").to_pylist() for name in ("applies", "ignores")}


def moment_of(second: int) -> dt.datetime:
    return BEGUN + dt.timedelta(seconds=second + 1, microseconds=-1)


def oracle(log: list[captured.Change], *, known: bool) -> dict[str, list[int | None]]:
    def seen(order: int, second: int, *, applies: bool) -> int | None:
        moment = micros(moment_of(second))
        row = captured.seen(log, (order,), moment, known=known, applies=applies)
        return None if row is None else row.value

    pairs = list(itertools.product(range(1, ORDERS + 1), MOMENTS))
    return {
        name: [seen(*pair, applies=name == "applies") for pair in pairs]
        for name in ("applies", "ignores")
    }


@pytest.fixture(scope="module")
def open_shop(dynamodb_local: str, tmp_path_factory: Any) -> Any:
    def open_shop() -> FollowedShop:
        name, folder = f"shop{uuid.uuid4().hex[:10]}", tmp_path_factory.mktemp("shop")
        config = open_repo_config(
            folder,
            project=name,
            online={"endpoint_url": dynamodb_local, "region": REGION},
            offline={"catalog": {"type": "sql"}, "region": REGION},
        )
        return FollowedShop.make(FeatureStore(config=config), dynamodb_local, name, folder)

    return open_shop


def carried_out(shop: FollowedShop, made: list[Step]) -> list[export_writer.Change]:
    """The steps, and the log of the changes that they made."""
    log: list[export_writer.Change] = []
    second = 0
    for step in made:
        second += step.after_s
        for _ in carry_out(shop, step):
            if len(shop.log) > len(log):
                change = shop.log[-1]
                key = {"order": {"N": str(change.order)}}
                moment = written(second, len(log))
                log.append(export_writer.Change(key, change.old, change.new, moment))
    return log


def carry_out(shop: FollowedShop, step: Step) -> Iterator[None]:
    if step.at is not None:
        yield shop.put(step.order, step.at, step.amount)
        return
    if step.is_expired and shop.held([step.order]) != [None]:
        # At once before its deletion: the engine might come first.
        yield shop.put(step.order, 5, step.amount, gone_since=1_500_000_000)
    yield shop.delete(step.order)


@cases(5)
@given(made=steps, cuts=st.sets(st.integers(1, 40), max_size=3), is_first=st.booleans())
def test_stream_exports_and_log_say_the_same(open_shop, tmp_path_factory, made, cuts, is_first):
    shop, folder = open_shop(), tmp_path_factory.mktemp("exports")
    log = carried_out(shop, made)
    facts = DynamoTable.from_table(shop.client, shop.source)
    region, account = facts.arn.split(":")[3:5]
    exported = ExportedTable(shop.source.table, region, account, facts.id)
    place = ExportPlace(into_folder(folder), "bucket", None, keys_with_prefix=False)
    half = BEGUN + dt.timedelta(seconds=min(cuts, default=5))

    # What was in the table at some moment is exported beside, before or after the stream.
    def bootstrap() -> None:
        export = write_full(place, exported, export_writer.items_after(log, half), half)
        run = capture_of(shop.source, facts, shop.store.config)
        run.convert_exports(str(folder / export.folder))

    worker = shop.worker()
    worker.client = Timed(worker.client, [each.written for each in log])
    rows = sum(map(len, shop.expected().values()))
    more = len(export_writer.items_after(log, half))
    if is_first:
        bootstrap()
    with following(worker):
        until(lambda: shop.history.rows() == rows + more * is_first)
        until(lambda: shop.online(list(range(1, ORDERS + 1))) == shop.held(range(1, ORDERS + 1)))
    if not is_first:
        assert shop.rows() == shop.expected()
        bootstrap()

    # The same changes by exports alone.
    name = f"{shop.source.name}_exports"
    source = source_of(name, tmp_path_factory.mktemp("history"), table=exported.name)
    ends = [BEGUN + dt.timedelta(seconds=each) for each in [*sorted(cuts), LAST_S + 1]]
    others = tmp_path_factory.mktemp("others")
    place = ExportPlace(into_folder(others), "bucket", None, keys_with_prefix=False)
    write_full(place, exported, [], BEGUN)
    net: list[export_writer.Change] = []
    for start, end in itertools.pairwise([BEGUN, *ends]):
        write_increment(place, exported, log, start, end)
        net += export_writer.net_changes(log, start, end)
    capture_of(source, facts, shop.store.config).convert_exports(str(others))

    # Row by row after net changes.
    by_exports = FollowedShop(shop.store, shop.client, source).rows(of_exports=True)
    assert (
        by_exports
        == FollowedShop(
            shop.store, shop.client, source, [change for change, _ in changes_of(net)]
        ).expected()
    )
    for end in ends:
        state = json.dumps(sorted(held(log, end).items()))
        for history in (shop.history, CapturedHistory.from_source(source, shop.store.config)):
            assert json.dumps(sorted(state_of(history, end).items())) == state

    for known in (False, True):
        expected = oracle(as_log(changes_of(log)), known=known)
        assert answers(shop.store, shop.source, known=known) == expected
        expected = oracle(as_log(changes_of(net)), known=known)
        assert answers(shop.store, source, known=known) == expected


def held(log: list[export_writer.Change], end: dt.datetime) -> dict[int, tuple[int, int]]:
    """The table's items before a moment."""
    return {
        int(each["order"]["N"]): (int(each["at"]["N"]), int(each["amount"]["N"]))
        for each in export_writer.items_after(log, end)
    }


def state_of(history: CapturedHistory, end: dt.datetime) -> dict[int, tuple[int, int]]:
    """The items that a history says there are before a moment: its rows, carried out."""
    found: dict[int, tuple[int, int]] = {}
    rows = history.handle.load().scan().to_arrow()
    order = [("_feast_written_at", "ascending"), ("_feast_sequence", "ascending")]
    for row in rows.sort_by(order).to_pylist():
        if row["_feast_written_at"] >= end or row["_feast_change"] == "move":
            continue  # a move ends an event, not its item
        if row["_feast_change"] == "put":
            found[row["order"]] = (int(row["at"].timestamp()), row["amount"])
        else:
            found.pop(row["order"], None)
    return found
