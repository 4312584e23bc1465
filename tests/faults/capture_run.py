"""`feast-dynamo capture sync` of one source: a program that a test kills.

Usage: capture_run.py FOLDER SOURCE EXPORTS
"""

from __future__ import annotations

import sys

from feast_dynamo_ext.cli.main import main

if __name__ == "__main__":
    folder, source, exports = sys.argv[1:]
    main(["capture", "sync", source, "--exports", exports, "--chdir", folder])
