"""A retrieval that is given so many seconds."""

from __future__ import annotations

from concurrent.futures import Future, wait
from threading import Event, Thread
from typing import TYPE_CHECKING, TypeVar

from feast_dynamo_ext.errors import RetrievalTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

T = TypeVar("T")


def within(timeout_s: float | None, work: Callable[[Event], T]) -> T:
    """Do work, and give up waiting for it after some seconds.

    A join in DuckDB or numpy cannot be torn out of a thread: it runs to its end there. The event
    tells the work to stop where it can.

    Args:
        timeout_s: seconds; None for no limit.
        work: is given an event that is set when nobody waits any more.

    Raises:
        RetrievalTimeoutError: it was not done by then.
    """
    given_up = Event()
    if timeout_s is None:
        return work(given_up)
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work(given_up))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            done.set_exception(error)

    Thread(target=run, name="feast-dynamo-retrieval", daemon=True).start()
    if wait([done], timeout_s).not_done:
        given_up.set()
        raise RetrievalTimeoutError(
            f"The retrieval was not done after the {timeout_s:g} s of its `timeout`. Give it "
            "more time, or ask for fewer rows; `job.explain()` says what it reads."
        )
    return done.result()


def until(given_up: Event, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches, as long as somebody waits for them."""
    for batch in batches:
        if given_up.is_set():
            raise RetrievalTimeoutError("Nobody waits for these rows any more.")
        yield batch
