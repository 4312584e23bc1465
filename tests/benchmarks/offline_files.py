"""The history on disk: written once for all cases on it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import Command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from offline_data import Dataset

HERE = Path(__file__).parent
DATA = "BENCH_DATA"
"""Environment variable: a folder where the history is kept for the next run."""

WARM = {"files": 1, "rows": 1_000, "keys": 100, "entities": 100}


@dataclass(frozen=True)
class Place:
    """Where the files of one dataset are, and of the same with few rows."""

    folder: Path
    warm: Dataset
    measured: Dataset

    def settings(self, dataset: Dataset) -> dict[str, Any]:
        return {"dataset": dataclasses.asdict(dataset), "folder": str(self.folder / dataset.name)}


@contextlib.contextmanager
def written(dataset: Dataset) -> Iterator[Place]:
    """The files, made anew or found in the folder that `BENCH_DATA` names."""
    kept = os.environ.get(DATA)
    with contextlib.ExitStack() as stack:
        folder = Path(kept or stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        place = Place(folder, dataclasses.replace(dataset, **WARM, hot_keys=0), dataset)
        missing = [one for one in (place.warm, dataset) if not (folder / one.name).exists()]
        if missing:
            _write(folder, missing)
        yield place


def _write(folder: Path, datasets: Sequence[Dataset]) -> None:
    """Elsewhere until they are complete."""
    free = shutil.disk_usage(folder).free
    needed = 2 * sum(dataset.estimated_bytes for dataset in datasets)
    if free < needed:
        raise RuntimeError(
            f"{folder}: {free / 2**30:.1f} GB are free, and the history needs "
            f"{needed / 2**30:.1f} GB with what is spilled. Free some, or set {DATA} or TMPDIR "
            "to another disk."
        )
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        made = json.dumps([dataclasses.asdict(dataset) for dataset in datasets])
        script = (str(HERE / "offline_data.py"), unfinished, made)
        Command("history", Path(sys.executable), script).finish()
        for dataset in datasets:
            (Path(unfinished) / dataset.name).rename(folder / dataset.name)
