"""The fields of the `batch_engine` block of feature_store.yaml, each with what it means.

`docs/configuration.md` is generated from them.
"""

from __future__ import annotations

from typing import Literal

from feast.repo_config import FeastConfigBaseModel
from pydantic import Field, StrictBool


class MaterializeSettings(FeastConfigBaseModel):
    """How rows go from history into DynamoDB; the block may be absent."""

    write_mode: Literal["newest_wins", "overwrite"] | None = None
    """Whether an older row may replace a newer one. Default: the view's, else the online
    store's."""

    max_write_units_per_s: int | None = Field(default=None, ge=1)
    """Write units that a run may consume a second, all its views together. Default: as many as
    DynamoDB grants; requests become fewer when it throttles, and more again when it does not."""

    max_write_workers: int = Field(default=32, ge=1)
    """Requests that are in flight at once, all views together, when nothing is throttled."""

    lookback_s: int = Field(default=3_600, ge=0)
    """Seconds before its start from which an incremental run reads, for rows that came late. What
    it reads again and is there already costs its write units again."""

    views_at_once: int = Field(default=4, ge=1)
    """Views that are written at once."""

    memory_limit: str = Field(default="128MB", pattern=r"^\d+(\.\d+)? ?([KMGT]i?B)$")
    """Memory that finding the newest rows may use before it spills to the offline store's
    `spill_folder`."""

    rows_per_bucket: int = Field(default=100_000, ge=1)
    """Rows after which progress is recorded: what a killed run writes again at most, for each
    bucket that was being written. A run has at most 256 buckets, so with more rows they are
    larger."""

    resume: StrictBool = True
    """Go on where a run of the same view, window and files was killed; else start over."""

    if_running: Literal["refuse", "wait"] = "refuse"
    """What a run does while another one materializes the same view: fail with a message that names
    it, or wait until it has ended. One that is gone is waited for `lease_s` at most."""

    lease_s: int = Field(default=30, ge=3)
    """Seconds without a sign of life after which a run counts as gone."""
