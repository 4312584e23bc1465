"""Windows and lists as of each entity row, against plain loops."""

from __future__ import annotations

from examples import cases
from hypothesis import given
from series_cases import base_of, check, file_source, views_of, write_rows
from series_strategies import series_cases


@cases(60)
@given(case=series_cases())
def test_windows_and_lists_are_those_of_the_definition(tmp_path_factory, case):
    folder = tmp_path_factory.mktemp("series")
    write_rows(case, folder)
    check(case, views_of(case, base_of(case, file_source(folder, case))))
