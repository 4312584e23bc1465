"""What training sets have to reach: times beside Feast's and a scan's, and peak memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bars import OURS, Bar, Figure, Held
from offline import DUCKDB, SCANS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from offline import Joined, OfflineRuns

# Case -> ours/Feast's DuckDB store in wall clock.
JOINED = {"3 views": 0.33}
# Case -> MB at its peak.
JOINED_MB = {"3 views": 1_200.0, "1,000 features": 1_500.0, "100 M rows": 3_000.0}
JOINED_S = {"1,000 features": 10.0}
SCANNED = 4.0  # ours/the faster scan
SCANNED_ON_S3 = {"3 views, S3": 2.0, "3 views, moto": 2.0}  # ours/pyarrow's scan, same server
HOT = {"1% of keys hot": 2.0, "one key hot": 2.0}  # of the even case's time


def of_offline(runs: OfflineRuns) -> Held:
    """Of the cases that were run, and of the contenders that came to an end."""
    ours = {case: by_contender[OURS] for case, by_contender in runs.items()}
    by_contender = runs.get("3 views", {})
    held = [
        *_times(JOINED, "ours/Feast duckdb", ours, by_contender.get(DUCKDB, [])),
        *_times({"3 views": SCANNED}, "ours/fastest scan", ours, _fastest_scan(by_contender)),
        *(
            held
            for case, limit in SCANNED_ON_S3.items()
            if case in runs
            for held in _times({case: limit}, "ours/scan, pyarrow", ours, runs[case][SCANS[0]])
        ),
        *_times(HOT, "ours/even keys", ours, ours.get("even keys", [])),
    ]
    figures = (("s", "time", JOINED_S, _seconds), (" MB", "peak", JOINED_MB, _peak_mb))
    held += [
        (
            Bar(f"{what}, {case}", limit, unit, at_least=False),
            Figure.of([figure(one) for one in ours[case]]),
        )
        for unit, what, limits, figure in figures
        for case, limit in limits.items()
        if case in ours
    ]
    return held


def _times(
    limits: Mapping[str, float],
    what: str,
    ours: Mapping[str, Sequence[Joined]],
    base: Sequence[Joined],
) -> Held:
    """How many times as long, round by round, as another that ended in each of them."""
    if not base or any(one.seconds is None for one in base):
        return []
    return [
        (
            Bar(f"{what}, {case}", limit, at_least=False),
            Figure.of(
                [
                    _seconds(mine) / _seconds(yours)
                    for mine, yours in zip(ours[case], base, strict=True)
                ]
            ),
        )
        for case, limit in limits.items()
        if case in ours
    ]


def _fastest_scan(by_contender: Mapping[str, Sequence[Joined]]) -> list[Joined]:
    scans = [by_contender.get(name, []) for name in SCANS]
    return [min(each, key=_seconds) for each in zip(*scans, strict=True)]


def _seconds(one: Joined) -> float:
    return float("inf") if one.seconds is None else one.seconds


def _peak_mb(one: Joined) -> float:
    return one.peak_mb
