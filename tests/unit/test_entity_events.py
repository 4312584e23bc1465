"""Aggregates of one entity at a request are those of training, at the ends of numbers too."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from feast_dynamo_ext.dynamo.entity_events import EntityEvents, aggregate
from feast_dynamo_ext.retrieval.windows.aggregates import aggregated
from feast_dynamo_ext.retrieval.windows.event_ranges import EventColumn, Ranges
from feast_dynamo_ext.series_settings import WindowFeature, Windows

INF, NAN = float("inf"), float("nan")
HIGH = 2**61


@pytest.mark.parametrize(
    ("values", "mean", "std"),
    [
        ([1e308, 1e308], INF, 0.0),
        ([INF, -INF], NAN, NAN),
        ([1.0, INF], INF, NAN),
        ([1e200, -1e200, 1.0], 1 / 3, INF),
        ([6.5e169, -2e169, 2.5e168, 5.9e169], 2.6625e169, INF),
        ([HIGH + 5, HIGH + 9], float(HIGH + 7), 8**0.5),
        ([1e16 + 2, 1e16 + 6], 1e16 + 4, 8**0.5),
    ],
)
def test_means_and_deviations_at_the_ends_of_numbers(values, mean, std):
    events = EntityEvents(range(len(values)), {"value": values})
    column = EventColumn(pa.array(values))
    ranges = Ranges(np.array([0]), np.array([len(values)]))
    for function, expected in {"mean": mean, "std": std}.items():
        feature = WindowFeature(
            name="made", function=function, column="value", window=timedelta(days=1)
        )
        view = Windows(base="base", features=(feature,))
        online = aggregate(feature, view, events, len(values))
        (training,) = aggregated(function, column, ranges).to_pylist()
        assert online == pytest.approx(expected, rel=1e-9, nan_ok=True)
        assert training == pytest.approx(expected, rel=1e-9, nan_ok=True)
