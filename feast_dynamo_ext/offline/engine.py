"""What an engine must do: match keys and times. Reading features by position is not its part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from datetime import datetime

    import numpy as np
    from numpy.typing import NDArray

    from feast_dynamo_ext.offline.entities import EntityRows
    from feast_dynamo_ext.offline.plan import ViewPlan
    from feast_dynamo_ext.offline.source import ParquetSource

NO_ROW = -1
"""The position that says: no row of the source matches."""


class Engine(Protocol):
    """Matches rows by keys and times.

    Of several rows of one key the newest event time wins, then the newest created time (none is
    older than any), then the highest position: the later row of the later path.
    """

    def match(
        self,
        entities: EntityRows,
        view: ViewPlan,
        source: ParquetSource,
        *,
        created_by_entity_time: bool,
    ) -> NDArray[np.int64]:
        """For each entity row the position of the source row it sees, or NO_ROW."""
        ...

    def newest(
        self, view: ViewPlan, source: ParquetSource, start: datetime, end: datetime
    ) -> NDArray[np.int64]:
        """Ascending positions of the newest row of each key with start <= event time <= end."""
        ...

    def within(
        self, view: ViewPlan, source: ParquetSource, start: datetime | None, end: datetime | None
    ) -> NDArray[np.int64]:
        """Ascending positions of all rows with start <= event time <= end."""
        ...
