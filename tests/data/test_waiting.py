"""Waiting for a stream that another thread fetches."""

from collections.abc import Generator
from threading import Event, current_thread, main_thread

import pytest

from data.concurrency.waiting import are_threads_abandoned, attentive, no_check


class Enough(Exception):
    pass


@pytest.fixture(autouse=True)
def none_abandoned_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that other tests of this process have abandoned do not count."""
    monkeypatch.setattr("data.concurrency.waiting._abandoned", [])


def numbers(log: list[str], count: int = 3) -> Generator[int, None, None]:
    try:
        assert current_thread() is not main_thread()
        yield from range(count)
    finally:
        log.append("closed")


def test_items_come_in_their_order_and_the_stream_is_closed() -> None:
    log: list[str] = []
    assert list(attentive(numbers(log), no_check)) == [0, 1, 2]
    assert log == ["closed"]


def test_a_stream_that_is_no_longer_wanted_is_closed_at_once() -> None:
    log: list[str] = []
    stream = attentive(numbers(log), no_check)
    assert next(stream) == 0
    stream.close()
    assert log == ["closed"]
    assert not are_threads_abandoned()


def test_no_item_is_fetched_before_it_is_asked_for() -> None:
    log: list[str] = []

    def noted() -> Generator[int, None, None]:
        for number in range(3):
            log.append(f"made {number}")
            yield number

    stream = attentive(noted(), no_check)
    assert next(stream) == 0
    assert log == ["made 0"]
    stream.close()


def test_the_next_item_is_fetched_while_the_last_one_is_used() -> None:
    made = [Event() for _ in range(3)]

    def noted() -> Generator[int, None, None]:
        for number, event in enumerate(made):
            event.set()
            yield number

    stream = attentive(noted(), no_check, ahead=1)
    assert next(stream) == 0
    assert made[1].wait(100)
    assert not made[2].is_set()
    assert list(stream) == [1, 2]


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_items_fetched_ahead_come_before_the_error_after_them(ahead: int) -> None:
    def failing() -> Generator[int, None, None]:
        yield from range(3)
        raise KeyError("gone")

    stream = attentive(failing(), no_check, ahead)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="gone"):
        next(stream)
    assert not are_threads_abandoned()


def test_an_error_of_the_stream_is_raised_here() -> None:
    def failing() -> Generator[int, None, None]:
        yield 1
        raise KeyError("gone")

    stream = attentive(failing(), no_check)
    assert next(stream) == 1
    with pytest.raises(KeyError, match="gone"):
        next(stream)
    assert not are_threads_abandoned()


def test_one_that_waits_for_ever_looks_up_and_can_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.concurrency.waiting.LOOK_EVERY", 0.01)
    never, looks = Event(), []

    def stuck() -> Generator[int, None, None]:
        yield 1
        never.wait()

    def look() -> None:
        looks.append(current_thread() is main_thread())
        if len(looks) == 3:
            raise Enough

    stream = attentive(stuck(), look)
    assert next(stream) == 1
    with pytest.raises(Enough):
        next(stream)
    assert looks == [True] * 3
    assert are_threads_abandoned()
    never.set()
