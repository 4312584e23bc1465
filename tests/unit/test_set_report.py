"""The report's page, as an HTML parser reads it."""

from __future__ import annotations

import dataclasses
import itertools
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from set_pages import CITIES, made_report, made_rows

from feast_dynamo_ext.sagemaker.report_charts import steps
from feast_dynamo_ext.sagemaker.report_page import html
from feast_dynamo_ext.sagemaker.report_texts import age, figure, percent


class Page(HTMLParser):
    """Elements, their attributes, texts, and whether all that is opened is closed in order."""

    EMPTY = ("meta", "link", "path")

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())

    def of(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def report():
    return made_report()


@pytest.fixture(scope="module")
def text(report):
    return html(report)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_fifty_features_of_three_splits_are_less_than_300_kb(report, text):
    assert len(report.features) == 50
    assert 50_000 < len(text.encode()) <= 300_000


def test_nothing_is_loaded_and_nothing_runs(page, text):
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "object", "embed", "form", "base"}
    assert [link["href"] for link in page.of("link")] == ["data:,"]
    assert not re.search(r"https?://|url\(|@import|\bon\w+=", text.replace("s3://", ""))
    links = [attrs["href"] for attrs in page.of("a")]
    targets = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    assert links
    assert {link.removeprefix("#") for link in links} <= targets
    policy = next(meta["content"] for meta in page.of("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'")


def test_names_and_values_are_escaped(page, text):
    assert "<script" not in text
    assert "churn <b>2026-07</b>" in page.texts
    assert CITIES[3] in page.texts
    assert f"{CITIES[4][:59]}\N{HORIZONTAL ELLIPSIS}" in page.texts


def test_names_in_words_are_code_and_escaped():
    report = made_report(3)
    finding = dataclasses.replace(report.findings[0], words="`<i>a` and <i>`b`")
    page = html(dataclasses.replace(report, findings=(finding,)))
    assert "<code>&lt;i&gt;a</code> and &lt;i&gt;<code>b</code>" in page


def test_headings_tables_and_charts_have_names(page):
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    for chart in page.of("svg"):
        assert chart["role"] == "img"
        assert chart["aria-label"]
    assert all(attrs.get("scope") in ("col", "row") for attrs in page.of("th"))
    assert page.of("html")[0]["lang"] == "en"
    assert len(page.of("article")) == 50
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_figures_of_the_page_are_those_of_the_rows(page):
    rows = made_rows(50)
    for split, table in rows.tables.items():
        at = page.texts.index(split)
        assert f"{table.num_rows:,}" in page.texts[at:]
        rate = np.mean(table["churned"].to_numpy())
        assert figure(float(rate)) in page.texts
    name = "orders__spend_of_20_days"
    at = len(page.texts) - 1 - page.texts[::-1].index(name)
    cells = [cell for cell in page.texts[at:] if cell]
    train = rows.tables["train"][name]
    values = train.drop_null().to_numpy()
    row = cells[cells.index("train") : cells.index("train") + 13]
    assert row[1] == percent(train.null_count / len(train))
    assert row[4:6] == [figure(float(values.mean())), figure(float(values.std()))]
    assert row[6] == figure(float(values.min()))
    ranks = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95], method="inverted_cdf")
    assert row[7:12] == [figure(float(value)) for value in ranks]


def test_leaks_stand_first_and_the_least_count_of_the_psi_is_said(page, text):
    findings = [attrs["class"] for attrs in page.of("span") if "level" in attrs.get("class", "")]
    order = [each.split()[1] for each in findings[1:]]
    assert order == sorted(order, key=["error", "warning", "note", "unknown", "ok"].index)
    assert "stated from 1,000 rows in both splits on" in text


def test_a_numeric_label_has_correlations_in_place_of_aucs():
    report = made_report(3)
    label = dataclasses.replace(report.label, values=())
    text = html(dataclasses.replace(report, label=label))
    assert "there is no AUC" in text
    assert "Correlation, train" in text


def test_a_set_of_one_split_and_without_ages_is_shown():
    report = made_report(3)
    one = dataclasses.replace(report, splits=report.splits[:1], ages=(), findings=())
    assert "does not keep the event times" in html(one)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"),
        (0, "0"),
        (1234567, "1,234,567"),
        (1234.5678, "1,235"),
        (0.012345, "0.01235"),
        (-2.5, "-2.5"),
        (1e-9, "1e-09"),
        (1.5e12, "1.5e+12"),
        (100.0, "100"),
        ("Ulm", "Ulm"),
    ],
)
def test_figures_have_four_digits(value, text):
    assert figure(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (0.0001, "< 0.1 %"), (0.123, "12.3 %"), (0.99999, "> 99.9 %"), (1.0, "100 %")],
)
def test_shares_are_percents(share, text):
    assert percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (90, "1.5 min"), (7_200, "2 h"), (-86_400, "-1 d"), (3.2e7, "1 y")],
)
def test_ages_have_one_unit(seconds, text):
    assert age(seconds) == text


def test_a_histogram_is_a_path_of_bars():
    assert steps([0.5, 0.25], 0.5, closed=True) == "M0 64V0h120V32h120V64Z"
