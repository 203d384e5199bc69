"""Processes that take their batches together; here they are threads with a store between them."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Event
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from data import DataError
from engine.processes.lockstep import Lockstep, PeerFailed
from engine.processes.signals import WaitGivenUp

SIZE, ITEMS = 3, 5
Work = Callable[[int, int], None]  # what a rank does before its item of this number


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[object]]]:
    """A run of three processes; for each rank its items, and the error that ended them or None."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    runs: list[str] = []

    def run(
        work: Work, late: tuple[int, int] = (-1, -1), patience: float = 60.0, look: Work = lambda rank, item: None
    ) -> list[object]:
        """``late``: a rank, and the item to which it comes only when the others, with this patience, wait no longer."""
        runs.append(f"run{len(runs)}")
        ended = [Event() for _ in range(SIZE)]

        def one(rank: int) -> tuple[list[tuple[int, float]], BaseException | None]:
            call = SimpleNamespace(rank=rank, size=SIZE, hosts=["n1", "n1", "n2"], key="call", over=Event())
            lockstep, seen = Lockstep(call, 60.0), []  # type: ignore[arg-type]
            lockstep.key = runs[-1]  # threads share the counter that gives each run of a process its key

            def items() -> Iterator[int]:
                for item in range(ITEMS):
                    work(rank, item)
                    if late == (rank, item):
                        assert all(event.wait(60) for event in ended[:rank] + ended[rank + 1 :])
                    if item == late[1]:
                        lockstep.timeout = patience
                    yield item

            try:
                for item in lockstep.in_step(items(), lambda: look(rank, len(seen))):  # type: ignore[arg-type]
                    seen.append((item, time.monotonic()))
            except Exception as error:
                lockstep.leave()
                return seen, error
            finally:
                ended[rank].set()
            return seen, None

        with ThreadPoolExecutor(SIZE) as pool:
            return list(pool.map(one, range(SIZE)))

    yield run
    del store


def test_nobody_has_an_item_before_all_have_theirs(together):
    began: dict[int, float] = {}

    def slow(rank: int, item: int) -> None:
        if rank == 2 and item == 3:
            time.sleep(0.5)
        began[item] = max(began.get(item, 0.0), time.monotonic())

    for _ in range(2):  # a second run does not meet the first one's answers
        began.clear()
        for seen, error in together(slow):
            assert error is None and [item for item, _ in seen] == list(range(ITEMS))
            assert all(when >= began[item] for item, when in seen)


def test_an_error_of_one_ends_all_at_the_same_item(together):
    def work(rank: int, item: int) -> None:
        if rank == 2 and item == 3:
            raise DataError("the disk is gone")

    found = together(work)
    assert [len(seen) for seen, _ in found] == [3, 3, 3]
    errors = [error for _, error in found]
    assert isinstance(errors[2], DataError)
    for error in errors[:2]:
        assert isinstance(error, PeerFailed) and str(error) == "rank 2 on n2 cannot go on: the disk is gone"


def test_those_that_wait_for_a_missing_one_all_give_up_and_none_is_called_failed(together):
    """One begins to wait later, so its time is not over when the other one gives up."""

    def work(rank: int, item: int) -> None:
        if rank == 2 and item == 2:
            time.sleep(0.5)

    found = together(work, late=(1, 2), patience=1.0)
    assert [len(seen) for seen, _ in found] == [2, 2, 2], "the late one does not go on alone"
    assert all(isinstance(error, dist.DistError) for _, error in found), found


def test_a_signal_ends_the_wait_for_others(together):
    def look(rank: int, item: int) -> None:
        if rank == 0 and item == 2:
            raise WaitGivenUp("asked to stop")

    found = together(lambda rank, item: None, late=(1, 2), look=look)
    assert isinstance(found[0][1], WaitGivenUp) and [len(seen) for seen, _ in found] == [2, 2, 2]
    for _, error in found[1:]:
        assert isinstance(error, PeerFailed) and str(error) == "rank 0 on n1 cannot go on: asked to stop"
