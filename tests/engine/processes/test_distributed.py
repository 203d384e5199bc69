"""What the processes of a run are, and which of them works first."""

from types import SimpleNamespace

import pytest

from engine.processes.distributed import World


def test_the_first_process_of_each_machine_works_and_the_others_wait_for_it() -> None:
    worked: list[int] = []
    waiting = iter([False, True])
    for world in (World(0, 4, 0, 2), World(2, 4, 0, 2)):
        world.first_on_machine(lambda world=world: worked.append(world.rank), lambda: pytest.fail("it waits"))
    World(3, 4, 1, 2).first_on_machine(lambda: worked.append(3), lambda: next(waiting))
    assert worked == [0, 2] and next(waiting, None) is None


def test_a_world_passes_its_timeout_on_to_the_meetings_before_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    group = SimpleNamespace(set_timeout=lambda time: waits.append(time.total_seconds()))
    monkeypatch.setattr("engine.processes.distributed.dist.group", SimpleNamespace(WORLD=group))
    monkeypatch.setattr("engine.processes.distributed.dist.barrier", lambda: None)

    class Meetings:
        timeout = 1800.0

    world = World(0, 2, 0, 2, lockstep=Meetings())  # type: ignore[arg-type]
    with world.long_timeout(afterwards=7.0):
        assert waits == [600.0]
    assert waits == [600.0, 7.0] and Meetings.timeout == 1800.0 and world.lockstep.timeout == 7.0  # type: ignore[union-attr]
