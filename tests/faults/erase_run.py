"""`feast-dynamo capture erase` of one person: a program that a test kills.

Usage: erase_run.py FOLDER SOURCE KEY EXPORTS
"""

from __future__ import annotations

import sys

from feast_dynamo_ext.cli.main import main

if __name__ == "__main__":
    folder, source, key, exports = sys.argv[1:]
    given = ["--key", key, "--exports", exports, "--yes", "--settled", "0s"]
    main(["capture", "erase", source, *given, "--chdir", folder])
