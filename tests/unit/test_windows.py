"""Windows and lists as of each entity row, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from examples import cases
from hypothesis import given
from hypothesis import strategies as st
from series_cases import base_of, check, file_source, views_of, write_rows
from series_strategies import series_cases

from feast_dynamo_ext.retrieval.engines.base import ascending
from feast_dynamo_ext.retrieval.windows import windows_join


@cases(60)
@given(case=series_cases())
def test_windows_and_lists_are_those_of_the_definition(tmp_path_factory, case):
    folder = tmp_path_factory.mktemp("series")
    write_rows(case, folder)
    check(case, views_of(case, base_of(case, file_source(folder, case))))


@cases(60)
@given(case=series_cases(), most=st.sampled_from([1, 1 << 40]))
def test_parts_of_keys_side_by_side_give_the_same(tmp_path_factory, case, most):
    folder = tmp_path_factory.mktemp("series")
    write_rows(case, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows_join, "SIDE_BY_SIDE", 0)
        patch.setattr(windows_join, "MANY", most)  # values read with the keys, or after them
        check(case, views_of(case, base_of(case, file_source(folder, case))))


@cases(200)
@given(
    numbers=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 5) | st.integers(0, 2**50)),
    shift=st.integers(0, 40),
)
def test_numbers_ascend_and_equal_ones_keep_their_order(numbers, shift):
    ascend = np.array(numbers, dtype=np.int64) >> shift
    assert ascending(ascend).tolist() == np.argsort(ascend, kind="stable").tolist()


def test_many_numbers_that_do_not_fit_beside_their_places():
    rng = np.random.default_rng(3)
    close = rng.integers(0, 1 << 20, 50_000) << 40  # several share their leading bits
    close += rng.integers(0, 3, len(close))
    assert ascending(close).tolist() == np.argsort(close, kind="stable").tolist()
