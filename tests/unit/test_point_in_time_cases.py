"""The point-in-time join against plain loops: generated cases, each through every plan."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import get_args

from examples import cases
from hypothesis import given
from pit_cases import PLANS, Case, check
from pit_strategies import cases_of

from feast_dynamo_ext.offline_store import S3ParquetOfflineStoreConfig


@cases(30)
@given(case=cases_of())
def test_views_keys_and_times_of_all_kinds_equal_plain_loops(case: Case):
    with tempfile.TemporaryDirectory() as folder:
        check(case, Path(folder))


def test_no_plan_is_left_out():
    names = get_args(S3ParquetOfflineStoreConfig.model_fields["join_plan"].annotation)
    assert {plan["join_plan"] for plan in PLANS} - {"auto"} == set(names) - {"auto"}
