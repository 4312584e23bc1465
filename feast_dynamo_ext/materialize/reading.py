"""Reads a view's newest rows and encodes them, into a spool or one after the other."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.materialize.encode import Encoder
from feast_dynamo_ext.materialize.history import Columns, History
from feast_dynamo_ext.materialize.spool import Spool, bucket_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from feast import RepoConfig

    from feast_dynamo_ext.dynamo.encoding.items import EncodedRows
    from feast_dynamo_ext.materialize.history import Newest
    from feast_dynamo_ext.materialize.settings import MaterializeSettings
    from feast_dynamo_ext.materialize.window import Window


@dataclass(frozen=True)
class ViewReading:
    """How the rows of one view are read.

    Attributes:
        history: where they are.
        encoder: packs them.
        window: event times that count.
        settings: limits and sizes.
        spill_folder: where rows are kept on disk; None for the system's temporary folder.
    """

    history: History
    encoder: Encoder
    window: Window
    settings: MaterializeSettings
    spill_folder: str | None

    @classmethod
    def of(
        cls,
        config: RepoConfig,
        offline_store: Any,
        view: Any,
        window: Window,
        settings: MaterializeSettings,
    ) -> ViewReading:
        """How the rows of a view are read now; its source's files are listed.

        Raises:
            OfflineStoreError: they cannot be.
        """
        columns = Columns.of(view)
        return cls(
            History(config, offline_store, view, columns),
            Encoder.of(view, columns),
            window,
            settings,
            getattr(config.offline_store, "spill_folder", None),
        )

    def rows(self, found: Callable[[Newest], object]) -> Iterator[EncodedRows]:
        """The newest rows that are not past their ttl, encoded, in the order of the files.

        Args:
            found: is told what there is, before the first rows.

        Raises:
            OfflineStoreError: the history cannot be read; see the subclasses.
            EntityKeyError: a key that cannot be one.
            ColumnTypeError: a value does not fit its feature's type.
            ItemTooLargeError: a row over 400 KB.
        """
        with self._newest() as newest:
            found(newest)
            yield from map(self.encoder, newest.batches)

    def spooled(
        self,
        buckets: int | None,
        done: frozenset[int],
        found: Callable[[Newest], object],
        looked_at: Callable[[int], object],
    ) -> Spool:
        """All rows, on disk by key bucket.

        Args:
            buckets: number of key buckets; None for as many as the number of rows suggests.
            done: buckets whose rows are not kept.
            found: as in `rows`.
            looked_at: is told numbers of rows, while newest ones are looked for, and then 0
                between batches; what it raises ends the reading.

        Raises: as `rows`.
        """
        encoder = self.encoder
        with self._newest(looked_at) as newest, contextlib.ExitStack() as undo:
            found(newest)
            count = buckets or bucket_count(newest.rows, self.settings.rows_per_bucket)
            spool = Spool(encoder.schema, encoder.ttl_s, count, done, self.spill_folder)
            undo.enter_context(spool)
            for batch in newest.batches:
                looked_at(0)
                spool.add(encoder(batch))
            spool.finish()
            undo.pop_all()
        return spool

    def _newest(
        self, scanned: Callable[[int], object] | None = None
    ) -> contextlib.AbstractContextManager[Newest]:
        limit = self.settings.memory_limit
        return self.history.newest(self.window, self._not_before(), limit, scanned)

    def _not_before(self) -> datetime | None:
        """The first event time at which a row is not past its ttl; see `item.expiry_s`."""
        ttl_s = self.encoder.ttl_s
        if not ttl_s:
            return None
        now = datetime.now(tz=timezone.utc).replace(microsecond=0)
        return now - timedelta(seconds=ttl_s)
