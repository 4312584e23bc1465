"""How many cases a generated test tries."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

TIMES = float(os.environ.get("FUZZ_TIMES", "1"))
"""What the usual number of cases is multiplied by; `make fuzz` and `make test-fast` set it."""


def cases(number: int = 100) -> settings:
    """Settings of a generated test: how many cases, times `FUZZ_TIMES`."""
    return settings(
        max_examples=max(1, round(number * TIMES)),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
