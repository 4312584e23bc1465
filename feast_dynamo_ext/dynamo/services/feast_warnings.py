"""Two warnings of Feast that are wrong for this package's online store.

After each materialize and push Feast offers to precompute services itself, which it can for Redis
alone. For any other store it warns that the store cannot be scanned, or, where the redis package
is not installed, that precomputing failed, with a traceback. This store has written the vectors
by then.
"""

from __future__ import annotations

import logging

from feast.errors import FeastExtrasDependencyImportError

SCANNING = "Entity scanning not supported"
FAILED = "Failed to precompute vectors"


class _NotOfThisStore(logging.Filter):
    """Lets everything pass but these two warnings."""

    def filter(self, record: logging.LogRecord) -> bool:
        if str(record.msg).startswith(SCANNING):
            return "DynamoOnlineStore" not in (record.args or ())
        if str(record.msg).startswith(FAILED) and record.exc_info:
            return record.exc_info[0] is not FeastExtrasDependencyImportError
        return True


_FILTER = _NotOfThisStore()


def hide_feasts_warnings() -> None:
    """Do so from now on; once more changes nothing."""
    logging.getLogger("feast.feature_store").addFilter(_FILTER)
