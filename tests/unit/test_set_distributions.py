"""Statistics of columns by split, against what numpy, scipy and plain loops say."""

from __future__ import annotations

import datetime as dt
import math
import tracemalloc
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from examples import cases
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from split_rows import TablesBySplit

from feast_dynamo_ext.duckdb_connection import Limits
from feast_dynamo_ext.sagemaker import column_statistics, over_time, value_counts
from feast_dynamo_ext.sagemaker.column_statistics import label_of, psi
from feast_dynamo_ext.sagemaker.distributions import statistics

LIMITS = Limits(memory_limit="200MB", threads=2)
UTC = dt.timezone.utc


def rows_of(batch_rows=700, **splits):
    return TablesBySplit({name: pa.table(table) for name, table in splits.items()}, batch_rows)


def of_column(rows, column="x", label="y"):
    return statistics(rows, [column], label_of(rows, label), LIMITS)[column]


def pairs_auc(values, labels):
    """Every pair of a positive and a negative row: 1 where the positive has more, 1/2 for ties."""
    positive, negative = values[labels == 1][:, None], values[labels == 0][None, :]
    wins = (positive > negative).sum() + 0.5 * (positive == negative).sum()
    return wins / (positive.size * negative.size)


def plain_psi(train, other, cuts):
    """The PSI of the page, of values where None is missing."""

    def shares(values):
        bins = [0] * (len(cuts) + 2)
        for value in values:
            at = len(cuts) + 1 if value is None else sum(cut < value for cut in cuts)
            bins[at] += 1
        return bins

    one, two = shares(train), shares(other)
    used = [at for at in range(len(one)) if one[at] or two[at]]
    total = 0.0
    for at in used:
        expected = (one[at] + 0.5) / (len(train) + 0.5 * len(used))
        actual = (two[at] + 0.5) / (len(other) + 0.5 * len(used))
        total += (actual - expected) * math.log(actual / expected)
    return total


@pytest.fixture(scope="module")
def skewed():
    """Two splits of floats with ties and missing values, and a binary label that leans on them."""
    random = np.random.default_rng(3)
    tables = {}
    for split, count, shift in (("train", 6_000, 0.0), ("test", 2_500, 0.4)):
        values = np.round(random.lognormal(shift, 1.0, count), 2)
        labels = (values + random.normal(0, 2, count) > 1.5).astype(np.int64)
        missing = random.random(count) < 0.05 + 0.3 * labels
        tables[split] = {"x": pa.array(values, mask=missing), "y": labels}
    return rows_of(**tables)


def known(rows, split, column="x"):
    table = rows.tables[split]
    present = table[column].is_valid().to_numpy()
    return table[column].to_numpy()[present], table["y"].to_numpy()[present], present


@pytest.mark.parametrize("split", ["train", "test"])
def test_moments_and_correlation_are_numpys(skewed, split):
    found = of_column(skewed).splits[split]
    values, labels, present = known(skewed, split)
    assert (found.rows, found.missing) == (len(present), int((~present).sum()))
    assert found.missing_rate == found.missing / found.rows
    assert (found.least, found.greatest) == (values.min(), values.max())
    assert found.mean == pytest.approx(values.mean(), rel=1e-13)
    assert found.deviation == pytest.approx(values.std(), rel=1e-12)
    assert found.correlation == pytest.approx(np.corrcoef(values, labels)[0, 1], rel=1e-12)


@pytest.mark.parametrize("split", ["train", "test"])
def test_auc_is_that_of_all_pairs_and_of_scipys_ranks(skewed, split):
    found = of_column(skewed).splits[split]
    values, labels, present = known(skewed, split)
    assert found.auc == pytest.approx(pairs_auc(values, labels), abs=1e-14)
    ranks = stats.mannwhitneyu(values[labels == 1], values[labels == 0]).statistic
    assert found.auc == pytest.approx(ranks / ((labels == 1).sum() * (labels == 0).sum()))
    every = skewed.tables[split]["y"].to_numpy()
    assert found.auc_of_missing == pytest.approx(pairs_auc((~present).astype(float), every))
    assert found.auc_of_missing > 0.6


@cases()
@given(
    st.lists(
        st.tuples(st.sampled_from([None, -0.0, 0.0, 1.5, -3.0, 1e300]), st.booleans()),
        min_size=1,
        max_size=40,
    )
)
def test_auc_of_any_ties_is_that_of_all_pairs(rows):
    values, labels = zip(*rows, strict=True)
    table = {"x": pa.array(values, pa.float64()), "y": list(labels)}
    found = of_column(rows_of(train=table, batch_rows=7)).splits["train"]
    kept = [(value, label) for value, label in rows if value is not None]
    if {label for _, label in kept} == {True, False}:
        numbers = np.array([value for value, _ in kept])
        expected = pairs_auc(numbers, np.array([int(label) for _, label in kept]))
        assert found.auc == pytest.approx(expected, abs=1e-14)
    else:
        assert found.auc is None


def test_quantiles_are_values_of_the_column(skewed):
    for split, found in of_column(skewed).splits.items():
        values = np.sort(known(skewed, split)[0])
        ranks = [math.ceil(len(values) * percent / 100) for percent in value_counts.PERCENTS]
        assert found.percentiles == tuple(values[rank - 1] for rank in ranks)
        shares = np.array(value_counts.PERCENTS) / 100
        assert found.percentiles == tuple(np.quantile(values, shares, method="inverted_cdf"))


def test_bars_are_numpys_histogram_with_the_rest_in_the_outer_ones(skewed):
    found = of_column(skewed)
    train = known(skewed, "train")[0]
    ends = np.quantile(train, [1 / 200, 199 / 200], method="inverted_cdf")
    assert found.edges == tuple(np.linspace(*ends, value_counts.BARS + 1))
    for split, of_split in found.splits.items():
        values = known(skewed, split)[0]
        inside = [-np.inf, *found.edges[1:-1], np.inf]
        assert of_split.counts == tuple(np.histogram(values, inside)[0])


def test_psi_bins_are_the_deciles_of_train_and_missing_values(skewed):
    found = of_column(skewed)
    values = {split: skewed.tables[split]["x"].to_pylist() for split in skewed.splits}
    train = known(skewed, "train")[0]
    cuts = sorted(set(np.quantile(train, np.arange(1, 10) / 10, method="inverted_cdf")))
    assert set(found.psi) == {"test"}
    assert found.psi["test"].bins == 11
    expected = plain_psi(values["train"], values["test"], cuts)
    assert found.psi["test"].value == pytest.approx(expected, rel=1e-12)
    assert found.psi["test"].value > 0.1
    assert found.psi["test"].by_chance == pytest.approx(10 * (1 / 6_000 + 1 / 2_500))


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ((1_000, 1_000), (1_500, 500), 500 / 2_001 * math.log(1_500.5 / 500.5)),
        ((1_000, 0), (0, 1_000), 2 * 1_000 / 1_001 * math.log(1_000.5 / 0.5)),
        ((1_000, 1_000, 0), (1_000, 1_000, 0), 0.0),
        ((999, 0), (5_000, 1), None),
        ((5_000, 1), (999, 0), None),
        ((0, 0), (5, 5), None),
    ],
)
def test_psi_of_known_counts(train, test, expected):
    found = psi(train, test)
    if expected is None:
        assert found.value is None
    else:
        assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.bins == sum(any(pair) for pair in zip(train, test, strict=True))


def test_small_samples_would_alarm_at_nothing_and_the_least_count_prevents_it():
    random = np.random.default_rng(1)

    def highest(rows, least_rows):
        pairs = random.multinomial(rows, [0.1] * 10, size=(300, 2)).tolist()
        return [psi(one, two, least_rows).value for one, two in pairs]

    assert np.mean([value > 0.25 for value in highest(50, 1)]) > 0.5
    assert max(highest(column_statistics.LEAST_ROWS, column_statistics.LEAST_ROWS)) < 0.1
    assert set(highest(50, column_statistics.LEAST_ROWS)) == {None}
    large = highest(4_000, column_statistics.LEAST_ROWS)
    assert np.mean(large) == pytest.approx(psi([400] * 10, [400] * 10).by_chance, rel=0.1)


def test_few_values_are_their_own_bars_and_bins():
    train = {"x": pa.array([0, 1, 2, None] * 500, pa.int32()), "y": [0, 1] * 1_000}
    test = {"x": pa.array([0, 0, 7, None] * 500, pa.int32()), "y": [0, 1] * 1_000}
    found = of_column(rows_of(train=train, test=test))
    assert (found.distinct, found.values, found.edges) == (4, (0, 1, 2, 7), ())
    assert found.splits["train"].counts == (500, 500, 500, 0)
    assert found.splits["test"].counts == (1_000, 0, 0, 500)
    expected = plain_psi(train["x"].to_pylist(), test["x"].to_pylist(), [0, 1, 2])
    assert found.psi["test"].value == pytest.approx(expected)


def test_a_numeric_label_has_a_correlation_and_no_auc():
    random = np.random.default_rng(5)
    x, noise = random.normal(1e9, 1, (2, 3_000))
    rows = rows_of(train={"x": x, "y": 2 * x + noise}, test={"x": x[:9], "y": noise[:9]})
    label = label_of(rows, "y")
    assert not label.is_binary
    found = statistics(rows, ["x"], label, LIMITS)["x"].splits
    assert found["train"].auc is None
    assert found["train"].auc_of_missing is None
    expected = np.corrcoef(x - 1e9, 2 * (x - 1e9) + noise - 1e9)[0, 1]
    assert found["train"].correlation == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ([1, 0, 1], (0, 1)),
        ([True, False, True], (0, 1)),
        ([0.5, 0.5, 0.5], (0.5,)),
        ([1, 2, 3], ()),
        (["no", "yes", "no"], ("no", "yes")),
        (list(range(100)), ()),
    ],
)
def test_a_label_of_two_values_is_binary(labels, values):
    label = label_of(rows_of(train={"y": labels}, test={"y": labels[:1]}), "y")
    assert label.values == values
    assert label.is_binary == (len(values) == 2)


def test_texts_are_counted_by_descending_count_in_train():
    train = {"x": [*"abbccc", None] + [f"rare{at:02}" for at in range(30)], "y": [0] * 37}
    test = {"x": ["c", "new", None], "y": [1, 0, 1]}
    found = of_column(rows_of(train=train, test=test))
    assert (found.kind, found.distinct) == ("text", 34)
    assert found.values[:4] == ("c", "b", "a", "rare00")
    assert len(found.values) == column_statistics.FEW_VALUES
    assert found.splits["train"].counts[:3] == (3, 2, 1)
    assert found.others == {"train": 13, "test": 1}
    assert (found.splits["train"].missing, found.splits["test"].missing) == (1, 1)
    assert found.splits["train"].mean is None


def test_text_labels_have_an_auc_too():
    table = {"x": [1.0, 2.0, 3.0, 4.0], "y": ["no", "no", "yes", "yes"]}
    found = of_column(rows_of(train=table)).splits["train"]
    assert (found.auc, found.correlation) == (1.0, None)


@pytest.mark.parametrize(
    ("values", "kind", "least"),
    [
        (pa.array([True, False, None, True]), "number", 0),
        (pa.array([Decimal("1.5"), None, Decimal(2), Decimal(3)]), "number", 1.5),
        (pa.array([1.5, float("nan"), 2, 3], pa.float32()), "number", 1.5),
        (pa.array([2**62 + 1, None, 2**62 + 2, 2**62 + 3]), "number", 2**62),
        (pa.array([1_999, None, 2_001, 3_000], pa.timestamp("ns")), "time", 1),
        (pa.array([1, None, 2, 3], pa.timestamp("s", "UTC")), "time", 1_000_000),
        (pa.array([1, None, 2, 3], pa.date32()), "time", 86_400_000_000),
        (pa.array(["a", None, "b", "c"]).dictionary_encode(), "text", None),
        (pa.array([[1], None, [2], []]), "other", None),
    ],
)
def test_columns_of_each_type_count_what_is_missing(values, kind, least):
    found = of_column(rows_of(train={"x": values, "y": [0, 1, 0, 1]}))
    assert found.kind == kind
    assert found.splits["train"].missing == 1
    assert found.splits["train"].least == least


def test_integers_that_floats_would_round_are_different_values():
    table = {"x": [2**62 + at for at in range(4)], "y": [0, 0, 1, 1]}
    found = of_column(rows_of(train=table))
    assert found.distinct == 4
    assert found.splits["train"].auc == 1.0
    assert found.values == tuple(table["x"])


@pytest.mark.parametrize("values", [[None, None], [5.0, 5.0], [1e308, -1e308]])
def test_columns_without_values_or_of_one_have_no_bars_that_mislead(values):
    table = {"x": pa.array(values, pa.float64()), "y": [0, 1]}
    found = of_column(rows_of(train=table, test={"x": pa.array([1.0] * 2), "y": [1, 0]}))
    known_rows = sum(value is not None for value in values)
    assert sum(found.splits["train"].counts) == known_rows
    assert sum(found.splits["test"].counts) == 2
    if len(set(values)) == 1:
        assert found.splits["train"].correlation is None


def test_a_column_that_train_has_no_value_of_is_still_counted_in_test():
    train = {"x": pa.nulls(1_500, pa.float64()), "y": [0, 1, 1] * 500}
    test = {"x": np.arange(1_500.0), "y": [0, 1, 1] * 500}
    found = of_column(rows_of(train=train, test=test))
    assert found.splits["test"].counts == (1_500,)
    assert found.splits["train"].percentiles == ()
    assert found.psi["test"].bins == 2
    assert found.psi["test"].value > 10


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows():
    """Counting is DuckDB's, within its limit; Python's own allocations are of one batch."""

    class Generated:
        splits = ("train",)
        schema = pa.schema([("x", pa.float64()), ("y", pa.int8())])

        def batches(self, split, columns):
            random = np.random.default_rng(0)
            for _ in range(30):
                x = random.random(50_000)
                table = {"x": x, "y": (x > random.random(50_000)).astype(np.int8)}
                yield pa.record_batch({name: table[name] for name in columns})

    before = pa.total_allocated_bytes()
    tracemalloc.start()
    found = statistics(Generated(), ["x"], label_of(Generated(), "y"), LIMITS)["x"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.distinct == found.splits["train"].rows == 1_500_000
    assert found.splits["train"].auc == pytest.approx(5 / 6, abs=0.002)
    assert peak < 12_000_000  # the column alone has 12 MB
    assert pa.total_allocated_bytes() - before < 1_000_000


# Over time


def times(*moments):
    return pa.array([dt.datetime(*moment, tzinfo=UTC) for moment in moments])


def test_rows_and_label_over_time_are_those_of_each_day():
    random = np.random.default_rng(8)
    start = dt.datetime(2026, 3, 1, tzinfo=UTC)
    moments = [start + dt.timedelta(hours=float(h)) for h in random.uniform(0, 24 * 20, 900)]
    labels = random.integers(0, 2, 900)
    tables = {
        split: {"t": pa.array(moments[part], pa.timestamp("us", "UTC")), "y": labels[part]}
        for split, part in (("train", slice(0, 600)), ("test", slice(600, 900)))
    }
    rows = rows_of(**tables)
    found = over_time.over_time(rows, "t", label_of(rows, "y"))
    assert found.unit == "day"
    assert [bar.start for bar in found.bars] == [start + dt.timedelta(days=n) for n in range(20)]
    for bar in found.bars:
        for split, part in (("train", slice(0, 600)), ("test", slice(600, 900))):
            of_day = [
                label
                for moment, label in zip(moments[part], labels[part], strict=True)
                if moment.date() == bar.start.date()
            ]
            assert bar.rows.get(split, 0) == len(of_day)
            if of_day:
                assert bar.label_mean[split] == pytest.approx(np.mean(of_day))


@pytest.mark.parametrize(
    ("first", "last", "unit", "starts"),
    [
        ((2026, 1, 1), (2026, 1, 1, 0, 0, 59), "second", (2026, 1, 1)),
        ((2026, 1, 1, 5), (2026, 1, 1, 5, 30), "minute", (2026, 1, 1, 5)),
        ((2026, 1, 1, 5), (2026, 1, 2, 5, 30), "hour", (2026, 1, 1, 5)),
        ((2026, 1, 1, 7), (2026, 1, 10), "6 hours", (2026, 1, 1, 6)),
        ((2026, 1, 1, 5), (2026, 9, 1), "week", (2025, 12, 29)),
        ((2024, 2, 29), (2026, 9, 1), "month", (2024, 2, 1)),
        ((2020, 2, 29), (2031, 9, 1), "quarter", (2020, 1, 1)),
        ((1969, 12, 31), (2026, 1, 1), "year", (1969, 1, 1)),
        ((1905, 1, 1), (2200, 1, 1), "10 years", (1900, 1, 1)),
    ],
)
def test_spans_are_as_long_as_needed_and_begin_where_a_calendar_does(first, last, unit, starts):
    rows = rows_of(train={"t": times(first, last), "y": [1.0, 3.0]})
    found = over_time.over_time(rows, "t", label_of(rows, "y"))
    assert found.unit == unit
    assert found.bars[0].start == dt.datetime(*starts, tzinfo=UTC)
    assert len(found.bars) <= over_time.MOST_TIME_BARS
    assert [bar.label_mean["train"] for bar in found.bars if bar.rows] == [1.0, 3.0]


def test_ages_of_features_are_counted_and_younger_ones_found():
    start = dt.datetime(2026, 3, 1, tzinfo=UTC)

    def ago(*seconds):
        return pa.array(
            [None if s is None else start - dt.timedelta(seconds=s) for s in seconds],
            pa.timestamp("us", "UTC"),
        )

    rows = rows_of(
        train={"t": pa.array([start] * 4), "v": ago(0, 59, -1, None), "w": ago(1, 1, 1, 1)},
        test={"t": pa.array([start] * 2), "v": ago(86_400, 4e7), "w": ago(1, 1)},
    )
    found, other = over_time.ages(rows.every(), "t", ["v", "w"])
    named = [name for _, name in over_time.AGE_BOUNDS] + [over_time.OLDER]
    counts = dict(zip(named, found.counts, strict=True))
    assert {name: count for name, count in counts.items() if count} == {
        "younger": 1,
        "< 1 min": 2,
        "< 7 d": 1,
        "older": 1,
    }
    assert (found.rows, found.unmatched, found.younger) == (6, 1, 1)
    assert (found.youngest_s, found.oldest_s) == (-1.0, 4e7)
    assert other.younger == 0
