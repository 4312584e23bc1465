"""Errors of executors, which Spark turns into text, are raised by the driver as what they were."""

from __future__ import annotations

import functools
import json
import re
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from feast_dynamo_ext import errors
from feast_dynamo_ext.errors import DependencyError, FeastDynamoError, OfflineStoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

MARK = "feast_dynamo_ext.error:"


class ExecutorError(Exception):
    """One of our errors, on its way through Spark's text."""


def told(work: Callable[..., Iterator[T]]) -> Callable[..., Iterator[T]]:
    """A function of an executor, whose errors the driver can raise again; see `raised_again`."""

    @functools.wraps(work)
    def run(*args: Any) -> Iterator[T]:
        try:
            yield from work(*args)
        except FeastDynamoError as error:
            said = json.dumps([type(error).__name__, error.message])
            raise ExecutorError(f"{MARK}{said.encode().hex()};") from None

    return run


def raised_again(iterate: Callable[[], Iterator[T]]) -> Iterator[T]:
    """What a Spark job gives; what its executors raised is raised as it was there.

    Raises:
        FeastDynamoError: an executor raised it.
        DependencyError: executors lack a package.
        OfflineStoreError: Spark failed.
    """
    try:
        yield from iterate()
    except FeastDynamoError:
        raise
    except Exception as error:
        if not type(error).__module__.startswith(("pyspark.", "py4j.", "grpc")):
            raise
        raise _as_it_was(error) from error


def _as_it_was(error: Exception) -> FeastDynamoError:
    found = re.search(re.escape(MARK) + r"([0-9a-f]+);", str(error))
    if found is None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # Of a traceback of Python the last line says what it was.
        said = [line for line in lines if re.match(r"[A-Za-z_.]+(Error|Exception): ", line)]
        why = [*said, *lines, "no message"][0]
        if why.startswith("ModuleNotFoundError"):
            return DependencyError(
                f"Spark's executors run a Python that lacks a package: {why}. Install "
                "feast-dynamo-ext there. On this machine, set PYSPARK_PYTHON to this "
                f"environment's Python before the session is made: {sys.executable}."
            )
        return OfflineStoreError(
            f"Spark failed: {why.rstrip('.')}. Its log says more. `engine: local` joins without "
            "Spark."
        )
    name, message = json.loads(bytes.fromhex(found.group(1)).decode())
    kind = getattr(errors, name, OfflineStoreError)
    try:
        made: FeastDynamoError = kind(message)
    except TypeError:  # one that says more than a message
        made = OfflineStoreError(message)
    return made
