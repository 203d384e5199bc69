"""Waiting for data, which may never come, without becoming deaf to everything else."""

from collections.abc import Callable, Generator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")

LOOK_EVERY = 1.0  # seconds
SECONDS_TO_CLOSE = 10.0

_abandoned: list[Thread] = []


def look_nowhere() -> None:
    """For those who wait as long as it takes."""


def attentive(stream: Generator[T, None, None], look: Callable[[], object]) -> Generator[T, None, None]:
    """The items of a stream. Another thread fetches each; meanwhile this one calls ``look`` every second.

    Where ``look`` raises, the thread is left behind: one that waits for a disk that does not answer can neither be
    stopped nor waited for.
    """
    asked: SimpleQueue[bool] = SimpleQueue()
    given: SimpleQueue[tuple[bool, Any]] = SimpleQueue()
    thread = Thread(target=_fetch, args=(stream, asked, given), daemon=True)
    thread.start()
    waits = False
    try:
        while True:
            asked.put(waits := True)
            is_item, item = _answer(given, look)
            waits = False
            if not is_item:
                if item is None:
                    return
                raise item
            yield item
            del item
    finally:
        asked.put(False)
        if not waits:
            thread.join(SECONDS_TO_CLOSE)
        if thread.is_alive():
            _abandoned.append(thread)


def are_threads_abandoned() -> bool:
    """Whether a thread was left behind: this process must then end without waiting for its threads."""
    return any(thread.is_alive() for thread in _abandoned)


def _answer(given: "SimpleQueue[tuple[bool, Any]]", look: Callable[[], object]) -> tuple[bool, Any]:
    while True:
        try:
            return given.get(timeout=LOOK_EVERY)
        except Empty:
            look()


def _fetch(stream: Generator, asked: "SimpleQueue[bool]", given: "SimpleQueue[tuple[bool, Any]]") -> None:
    """Fetch an item each time one is asked for, and close the stream at the end, where it was used."""
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
