"""Which event times a command is about."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from feast_dynamo_ext._feast import FIRST_INCREMENTAL
from feast_dynamo_ext.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Window:
    """Which event times to materialize.

    Attributes:
        start: the first; None: from where each view's last run ended.
        end: the last.
        is_all: from 1970 until now, as Feast's --disable-event-timestamp has it.
    """

    start: datetime | None
    end: datetime
    is_all: bool = False

    @classmethod
    def of(
        cls, times: Sequence[datetime], now: datetime, *, incremental: bool, all_: bool
    ) -> Window:
        """The window that was asked for.

        Raises:
            click.UsageError: too few or too many times, or in the wrong order.
        """
        if incremental and all_:
            raise click.UsageError("--incremental and --all contradict each other.")
        if all_:
            if times:
                raise click.UsageError("--all takes no times: it goes from 1970 until now.")
            return cls(datetime(1970, 1, 1, tzinfo=timezone.utc), now, is_all=True)
        if incremental:
            if len(times) > 1:
                raise click.UsageError("--incremental takes END_TS alone, or no time: until now.")
            return cls(None, times[0] if times else now)
        if len(times) != 2:  # noqa: PLR2004 - a start and an end
            raise click.UsageError("Give START_TS and END_TS, or --incremental, or --all.")
        if times[0] > times[1]:
            raise click.UsageError(f"START_TS ({times[0]}) is after END_TS ({times[1]}).")
        return cls(times[0], times[1])

    def start_for(self, view: Any, now: datetime) -> datetime:
        """Where a view's window starts.

        Raises:
            ConfigError: an incremental run of a view that was never materialized and has no ttl.
        """
        if self.start is not None:
            return self.start
        last: datetime | None = view.most_recent_end_time
        if last is not None:
            return last if last.tzinfo else last.replace(tzinfo=timezone.utc)
        if view.ttl is None:
            raise ConfigError(
                f"Feature view `{view.name}` was never materialized and has no ttl, so an "
                "incremental run has no start. Give START_TS and END_TS this once."
            )
        return now - (view.ttl or FIRST_INCREMENTAL)
