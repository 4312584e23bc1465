"""What `make bench` computes from what it measures; nothing is timed here."""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import bars
import report
from bars import Bar, Figure
from harness import Case, Command, Sample, Series, measure, running
from parts import PARTS
from protocol import timed
from sizes import item_bytes, number_bytes, value_bytes
from workload import Workload


def series(*rounds: tuple[list[float], float]) -> Series:
    return Series(tuple(Sample(wall_s, cpu_s) for wall_s, cpu_s in rounds))


# In a round of its own each: 10, 20 and 60 ms a call, and 4, 8 and 8 ms of CPU for two calls.
FEAST = series(([0.010, 0.010], 0.004), ([0.020, 0.020], 0.008), ([0.060, 0.060], 0.008))
OURS = series(([0.002, 0.002], 0.001), ([0.002, 0.002], 0.001), ([0.004, 0.004], 0.001))
FLOOR = series(([0.001, 0.001], 0.001), ([0.002, 0.002], 0.001), ([0.004, 0.004], 0.001))

# Figures


def test_a_series_is_the_median_of_its_rounds():
    assert (FEAST.p50_ms, FEAST.cpu_ms, FEAST.calls) == (20.0, 4.0, 6)
    assert series(([0.001, 0.002, 0.009], 0.003)).p50_ms == 2.0


def test_the_95th_percentile_is_of_all_calls():
    calls = [number / 1_000 for number in range(1, 22)]  # 1 to 21 ms: 20 steps
    assert series((calls[:10], 0.0), (calls[10:], 0.0)).p95_ms == pytest.approx(20.0)


def test_ratios_are_taken_round_by_round():
    # 10/2, 20/2 and 60/4; the ratio of the medians would be 20/2.
    assert Figure.ratio(FEAST, OURS, bars.wall_ms) == Figure(10.0, 5.0, 15.0)
    assert Figure.ratio(FEAST, OURS, bars.cpu_ms) == Figure(8.0, 4.0, 8.0)
    assert str(Figure.ratio(OURS, FLOOR, bars.wall_ms)) == "1.00 (1.00-2.00)"


def test_cpu_of_a_row():
    # 0.5 ms a call of 10 rows.
    assert bars.row_us(OURS, 10) == Figure(50.0, 50.0, 50.0)


def test_bytes_are_per_cent_of_feasts():
    assert bars.percent({"feast": [200, 200, 202], "ours": [80, 90, 84]}) == Figure(42, 40, 45)


# Bars


@pytest.mark.parametrize(
    ("bar", "median", "met"),
    [
        (Bar("a", 6.0), 6.0, True),
        (Bar("a", 6.0), 5.999, False),
        (Bar("a", 1.6, at_least=False), 1.6, True),
        (Bar("a", 1.6, at_least=False), 1.601, False),
    ],
)
def test_whether_a_bar_is_met(bar, median, met):
    assert bar.is_met(Figure(median, 0.0, 99.0)) is met


def test_the_table_of_bars():
    held = [
        (Bar("Feast/ours, wall, 1 x 5", 6.0), Figure(6.123, 5.5, 7.0)),
        (Bar("CPU a written row", 80.0, " us", at_least=False), Figure(91.26, 88.0, 95.0)),
        (Bar("bytes an item", 45.0, "%", at_least=False), Figure(42.82, 42.8, 42.8)),
    ]
    assert bars.table(held).splitlines()[2:] == [
        "Feast/ours, wall, 1 x 5  >= 6x     6.12x     5.50-7.00            yes",
        "CPU a written row        <= 80 us  91.3 us   88.0-95.0            NO",
        "bytes an item            <= 45%    42.8%     42.8-42.8            yes",
    ]


def test_bars_as_json():
    (entry,) = bars.as_json([(Bar("a", 6.0), Figure(5.0, 4.0, 9.0))])
    assert entry == {
        "name": "a",
        "limit": 6.0,
        "unit": "x",
        "at_least": True,
        "figure": {"median": 5.0, "least": 4.0, "most": 9.0},
        "met": False,
    }


def test_every_bar_of_the_reads():
    measured = {case: {"Feast": FEAST, "ours": OURS, "floor": FLOOR} for case in bars.READS}
    held = bars.of_reads(measured)
    assert [(bar.name, bar.limit, figure.median) for bar, figure in held] == [
        ("Feast/ours, wall, 1 x 5", 6.0, 10.0),
        ("Feast/ours, wall, 1 x 25", 5.0, 10.0),
        ("Feast/ours, wall, 100 x 5", 3.5, 10.0),
        ("Feast/ours, CPU, 1 x 5", 7.0, 8.0),
        ("Feast/ours, CPU, 1 x 25", 9.0, 8.0),
        ("Feast/ours, CPU, 100 x 5", 5.0, 8.0),
        ("ours/floor, 1 x 5", 1.6, 1.0),
        ("ours/floor, 1 x 25", 1.5, 1.0),
        ("ours/floor, 100 x 5", 2.0, 1.0),
    ]
    assert [bar.is_met(figure) for bar, figure in held] == [True] * 4 + [False] + [True] * 4


def test_the_cases_that_have_bars_are_measured():
    assert bars.READS.keys() <= PARTS["reads"].sizes.keys()
    assert bars.PRECOMPUTED.keys() == PARTS["precompute"].sizes.keys()
    assert bars.WRITES.keys() == PARTS["writes"].sizes.keys()
    names = {workload.name.replace("_", " ") for workload in PARTS["bytes"].workloads}
    assert bars.BYTES.keys() <= names


# Tables


def test_a_client_that_does_not_take_part_is_a_dash():
    measured = {"async 1 x 5": {"Feast": FEAST, "ours": OURS}}
    last = report.wall_table(measured).splitlines()[-1]
    cells = "20.00 2.00 - 10.00 (5.00-15.00) - 60.00 4.00 - 6"
    assert last.split() == ["async", "1", "x", "5", *cells.split()]


def test_rows_a_second():
    measured = {"newest wins": {"ours": OURS}}  # 10 rows in 2 ms
    last = report.write_table(measured, {"newest wins": 10}).splitlines()[-1]
    assert last.split() == ["newest", "wins", "-", "50", "-", "-", "5,000", "60"]


# Stored bytes, by the rule at
# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 1),
        ("7", 2),
        ("42", 2),
        ("-42", 3),
        ("123", 3),
        ("1700000000", 2),  # two significant digits
        ("1704072225678901", 9),
        ("123.456", 4),
        ("0.05", 2),
        ("1.5E+20", 2),
    ],
)
def test_bytes_of_a_number(text, size):
    assert number_bytes(text) == size


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ({"S": "customer"}, 8),
        ({"S": "süß"}, 5),
        ({"B": b"\x00\xff\x00"}, 3),
        ({"BOOL": True}, 1),
        ({"NULL": True}, 1),
        ({"M": {}}, 3),
        ({"M": {"ab": {"B": b"12345"}}}, 11),  # 3, 1 for the entry, its name and value
        ({"L": [{"S": "abc"}, {"N": "7"}]}, 10),  # 3, 1 for each of two, 3 and 2
        ({"SS": ["ab", "c"]}, 3),
        ({"NS": ["7", "42"]}, 4),
        ({"BS": [b"1", b"22"]}, 3),
    ],
)
def test_bytes_of_a_value(value, size):
    assert value_bytes(value) == size


def test_bytes_of_items_of_both_layouts():
    feast = {
        "entity_id": {"S": "0123456789abcdef"},  # 9 + 16
        "event_ts": {"S": "2024-01-01 00:00:00+00:00"},  # 8 + 25
        # 6 + 3, and for each feature 1 + 20 + 9
        "values": {"M": {"a" * 20: {"B": b"9 bytes.."}, "b" * 20: {"B": b"9 bytes.."}}},
    }
    assert item_bytes(feast) == 25 + 33 + 9 + 60
    ours = {
        "k": {"B": b"0123456789"},  # 1 + 10
        "v": {"B": b"0123456789" * 2},  # 1 + 20
        "t": {"N": "1704067200000000"},  # 1 + 5: eight significant digits
        "f": {"B": b"01234567"},  # 1 + 8
    }
    assert item_bytes(ours) == 11 + 21 + 6 + 9


# Workload


def test_a_workload_is_the_same_in_every_process():
    workload = Workload("one", views=1, features=2, entities=3)
    assert workload.names() == Workload("two", views=1, features=2, entities=9).names()
    again = Workload("one", views=1, features=2, entities=3)
    assert workload.values("view_00", 1) == again.values("view_00", 1)
    assert workload.values("view_00", 1) != workload.values("view_00", 1, version=1)
    assert workload.requests(2, 2, 5) == again.requests(2, 2, 5)


def test_names_have_as_many_letters_as_asked_for():
    workload = Workload("one", least_letters=20, most_letters=20)
    assert {len(name) for names in workload.names().values() for name in names} == {20}


def test_values_are_the_same_as_float32():
    values = Workload("one", features=1_000).values("view_00", 1)
    assert list(struct.unpack("1000f", struct.pack("1000f", *values))) == values


# Processes


@dataclass
class Taking:
    """A client that answers at once; `turns` is shared by all."""

    name: str
    turns: list[tuple[str, str, int]] = field(default_factory=list)

    def ask(self, do: str, part: int, operation: str, **_: int | str) -> dict:
        self.turns.append((self.name, operation, part))
        return {"wall_s": [float(part)], "cpu_s": 0.5}


def test_clients_take_turns_and_the_first_round_does_not_count():
    turns: list[tuple[str, str, int]] = []
    clients = [Taking("Feast", turns), Taking("ours", turns)]
    cases = [
        Case("one", "read", "five", 1, 1, ("Feast", "ours")),
        Case("two", "write", "five", 1, 1, ("ours",)),
    ]
    measured = measure(clients, cases, rounds=2)
    assert turns == [
        ("ours", "read", 0),
        ("Feast", "read", 0),
        ("ours", "write", 0),
        ("Feast", "read", 1),
        ("ours", "read", 1),
        ("ours", "write", 1),
        ("ours", "read", 2),
        ("Feast", "read", 2),
        ("ours", "write", 2),
    ]
    counted = series(([1.0], 0.5), ([2.0], 0.5))
    assert measured == {"one": {"Feast": counted, "ours": counted}, "two": {"ours": counted}}


class Counting:
    def requests(self, calls: int, size: int, part: int) -> list[int]:
        return [size + part] * calls

    def run(self, request: int) -> None:
        self.asked = [*getattr(self, "asked", []), request]


def test_each_call_of_a_turn_is_timed():
    operation = Counting()
    sample = timed(operation, calls=3, size=10, part=2)
    assert operation.asked == [12, 12, 12]
    assert len(sample["wall_s"]) == 3
    assert sample["cpu_s"] >= 0


def test_a_client_that_dies_is_named():
    command = Command("ours", Path(sys.executable), ("-c", "raise SystemExit(3)"))
    died = "ours: ended with exit code 3;"
    with running(command) as client, pytest.raises(RuntimeError, match=died):
        client.ask("about")
    with pytest.raises(RuntimeError, match=died):
        command.finish()


def test_clients_are_of_the_checkout_that_measures(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code = "import feast_dynamo_ext; print(feast_dynamo_ext.__file__)"
    printed = Command("one", Path(sys.executable), ("-c", code)).finish()
    assert Path(printed.strip()).parents[1] == Path(__file__).parents[2]


def test_a_client_has_nothing_of_the_developers_set_up(monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("FEAST_FS_YAML_FILE_PATH", "mine")
    code = "import os; print(*sorted(n for n in os.environ if n[:4] in ('AWS_', 'FEAS')))"
    printed = Command("one", Path(sys.executable), ("-c", code)).finish()
    assert printed.split() == [
        "AWS_ACCESS_KEY_ID",
        "AWS_CONFIG_FILE",
        "AWS_EC2_METADATA_DISABLED",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SHARED_CREDENTIALS_FILE",
        "FEAST_USAGE",
    ]
