"""Removes the files that a compacted source has replaced, once nobody reads them any more."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from feast_dynamo_ext.errors import CompactionConflictError
from feast_dynamo_ext.offline.compact.current import visible
from feast_dynamo_ext.offline.compact.snapshot import folder_of

if TYPE_CHECKING:
    from feast import RepoConfig

    from feast_dynamo_ext.offline.compact.current import ReplacedFile
    from feast_dynamo_ext.offline.compact.snapshot import Target

logger = logging.getLogger(__name__)


def replaced_files(target: Target, config: RepoConfig, older_than_s: float) -> list[ReplacedFile]:
    """The files that `remove_replaced` would remove.

    Raises: as `remove_replaced`.
    """
    current = folder_of(target, config).seen().current
    before = time.time() - older_than_s
    return [file for file in (current.replaced if current else ()) if file.since <= before]


def remove_replaced(target: Target, config: RepoConfig, older_than_s: float) -> list[ReplacedFile]:
    """Delete files that were replaced longer ago; first it is checked that the new ones are there.

    Args:
        target: the source.
        config: the repo's config.
        older_than_s: seconds. A reader that listed the folder before may still be at work.

    Returns:
        The files that were deleted.

    Raises:
        SourceReadError: the pointer or what it names is not whole, or a replaced file was written
            again; nothing was deleted.
        AwsError: S3 refused.
    """
    folder = folder_of(target, config)
    seen = folder.seen()
    if seen.current is None:
        return []
    visible(list(folder.place.everything()), folder.root, folder.filesystem, list)
    before = time.time() - older_than_s
    gone = [file for file in seen.current.replaced if file.since <= before]
    if not gone:
        return []
    folder.remove([file.path for file in gone])
    left = tuple(file for file in seen.current.replaced if file not in gone)
    try:
        # Only now: a file that is there and not named would count again.
        folder.replace(seen, replace(seen.current, replaced=left))
    except CompactionConflictError:
        logger.info("%s: compacted meanwhile; the next run forgets what was removed", folder.root)
    return gone
