"""Waits for data that may never arrive, and still reacts to other events meanwhile."""

from collections.abc import Callable, Generator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")

LOOK_EVERY = 1.0  # seconds
SECONDS_TO_CLOSE = 10.0

_abandoned: list[Thread] = []


def no_check() -> None:
    """Do nothing: the ``look`` of a caller that waits without a limit."""


def attentive(stream: Generator[T, None, None], look: Callable[[], object], ahead: int = 0) -> Generator[T, None, None]:
    """The items of a stream. A second thread fetches each item, while this thread calls ``look`` every second.

    If ``look`` raises, the second thread is abandoned: a thread that waits for a disk that does not answer can neither
    be stopped nor joined.

    Args:
        stream: the items.
        look: may raise to stop the waiting.
        ahead: number of items that are fetched before they are asked for, while the caller uses an earlier one.
    """
    asked: SimpleQueue[bool] = SimpleQueue()
    given: SimpleQueue[tuple[bool, Any]] = SimpleQueue()
    thread = Thread(target=_fetch, args=(stream, asked, given), daemon=True)
    thread.start()
    is_waiting = False
    try:
        for _ in range(ahead):
            asked.put(True)
        while True:
            is_waiting = True
            asked.put(True)
            is_item, item = _answer(given, look)
            is_waiting = False
            if not is_item:
                if item is None:
                    return
                raise item
            yield item
            del item  # hold no batch while the next one is awaited
    finally:
        asked.put(False)
        if not is_waiting:  # else look has raised, and the thread still fetches
            thread.join(SECONDS_TO_CLOSE)
        if thread.is_alive():
            _abandoned.append(thread)


def are_threads_abandoned() -> bool:
    """Whether an abandoned thread still runs. This process must then end without waiting for its threads."""
    return any(thread.is_alive() for thread in _abandoned)


def _answer(given: "SimpleQueue[tuple[bool, Any]]", look: Callable[[], object]) -> tuple[bool, Any]:
    while True:
        try:
            return given.get(timeout=LOOK_EVERY)
        except Empty:
            look()


def _fetch(stream: Generator, asked: "SimpleQueue[bool]", given: "SimpleQueue[tuple[bool, Any]]") -> None:
    """Fetch an item at each request. At the end, close the stream in the thread that has used it."""
    try:
        while asked.get():
            try:
                given.put((True, next(stream)))
            except StopIteration:
                given.put((False, None))
            except BaseException as error:
                given.put((False, error))
    finally:
        stream.close()
