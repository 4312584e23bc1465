"""`feast-dynamo capture stream` of one source: a program that a test kills.

Usage: stream_run.py FOLDER SOURCE
"""

from __future__ import annotations

import sys

from feast_dynamo_ext.cli.main import main

if __name__ == "__main__":
    folder, source = sys.argv[1:]
    main(["capture", "stream", source, "--history-every", "0.3", "--chdir", folder])
