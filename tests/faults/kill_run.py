"""One run of materialize, which a test kills; started by `kill_shop.Runs`.

Arguments: the repo's folder, the file for the counts of the run that came to its end, and settings
of the engine as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from feast import FeatureStore
from kill_shop import END, START

# How the run ended, by view: the fields of a ViewReport that are counts.
COUNTS = ("to_write", "written", "older", "expired", "resumed", "failed")


def main(repo: str, answer: str, settings: str) -> None:
    store = FeatureStore(repo_path=repo)
    engine = store.provider.batch_engine
    engine.settings = engine.settings.model_copy(update=json.loads(settings))
    store.materialize(START, END)
    counts = {
        view.view: {name: getattr(view, name) for name in COUNTS} for view in engine.report.views
    }
    Path(answer).write_text(json.dumps(counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
    # An interpreter takes a while to end, in which a kill would meet a run that is done.
    os._exit(0)
