"""SageMaker's SDK beside the environment of the tests, which cannot hold it: it caps protobuf.

`make test` puts the SDK's core into `.venv-sdk/packages`, without what it depends on: what is
compared here needs nothing that the tests' environment has in another version.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGES = Path(__file__).parents[2] / ".venv-sdk" / "packages"


@contextlib.contextmanager
def importable() -> Iterator[Path]:
    """Let `sagemaker.core` be imported within the block; gives its folder."""
    if not (PACKAGES / "sagemaker" / "core").is_dir():
        pytest.skip("SageMaker's SDK is not in .venv-sdk; `make test` installs it")
    sys.path.insert(0, str(PACKAGES))
    before = set(sys.modules)
    try:
        yield PACKAGES / "sagemaker" / "core"
    finally:
        sys.path.remove(str(PACKAGES))
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "sagemaker":
                del sys.modules[name]
