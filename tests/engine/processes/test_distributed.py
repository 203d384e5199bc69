"""What the processes of a run are, and which of them works first."""

import multiprocessing
import os
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from engine.errors import RunStopped
from engine.evaluation.predictions import Predictions
from engine.processes.distributed import World, words_of_nccl
from tests.ports import free_port

NO_SHARED_MEMORY = """NCCL error in: /pytorch/torch/csrc/ProcessGroupNCCL.cpp:3770, unhandled system error (run with \
NCCL_DEBUG=INFO for details), NCCL version 2.28.9
ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.
Last error:
Error while creating shared memory segment /dev/shm/nccl-0MCP7b (size 9637888), error: No space left on device (28)
Exception raised from checkForNCCLErrorsInternal at /pytorch/torch/csrc (most recent call first):"""


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
    with world.first_works_alone(then_timeout=7.0):
        assert waits == [600.0]
    assert waits == [600.0, 7.0] and Meetings.timeout == 1800.0 and world.lockstep.timeout == 7.0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            NO_SHARED_MEMORY,
            "unhandled system error, Error while creating shared memory segment /dev/shm/nccl-0MCP7b (size 9637888), "
            "error: No space left on device (28)",
        ),
        (
            "NCCL error in: ../NCCLUtils.hpp:275, invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version 2"
            "\nncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\n"
            "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 10",
            "invalid usage, Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 10",
        ),
        ("NCCL error in: a.cpp:1, internal error, NCCL version 2.17.1", "internal error, NCCL version 2.17.1"),
        ("[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)", None),
    ],
)
def test_nccl_says_the_cause_in_one_line(said: str, words: str | None) -> None:
    assert words_of_nccl(dist.DistBackendError(said)) == words


def test_a_failure_of_nccl_is_told_beside_who_is_missing() -> None:
    world = World(0, 2, 0, 2, roll_call=SimpleNamespace(lost=lambda: "all processes run"))  # type: ignore[arg-type]
    lost = world.lost(dist.DistBackendError(NO_SHARED_MEMORY))
    assert str(lost).startswith(
        "all processes run; NCCL says: unhandled system error, Error while creating shared memory"
    )
    assert str(world.lost(dist.DistBackendError("Connection closed by peer"))) == "all processes run"


def test_processes_that_cannot_meet_end_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "RANK": 1, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("engine.processes.distributed.START", timedelta(seconds=1))
    with pytest.raises(RunStopped) as stopped, World(1, 2, 1, 2).joined(torch.device("cpu")):
        pass
    assert str(stopped.value).startswith("the processes cannot meet (The client socket")
    assert "\n" not in str(stopped.value)


def _exchange(rank: int, port: int, folder: Path) -> None:
    """One of two processes, which exchange all that processes of a run exchange."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    world, cpu = World(rank, 2, rank, 2), torch.device("cpu")
    with world.joined(cpu, folder):
        assert world.any(rank == 1, cpu) and not world.any(False, cpu)
        assert world.sum(torch.tensor([rank + 1.0])).tolist() == [3]
        parts = [torch.full((2, 2), rank + 1.0), torch.tensor(5.0 * rank), torch.tensor([1.0, rank])]
        world.sum_all(parts)
        assert [part.tolist() for part in parts] == [[[3, 3], [3, 3]], 5, [2, 1]]
        weights = [torch.tensor([rank + 7]), torch.full((1, 2), float(rank))]
        world.broadcast(weights)
        assert [weight.tolist() for weight in weights] == [[7], [[0, 0]]]
        assert world.all_gather(torch.tensor([rank, 9.0])).tolist() == [[0, 9], [1, 9]]
        predictions = Predictions()
        for image in (0, 1):
            predictions.add(torch.eye(4)[[2 * rank + image]])
        found = predictions.of_all(world)
        assert (found is None) == (rank == 1)
        if found is not None:
            assert found[0][:, 0].tolist() == [0, 1, 2, 3] and np.allclose(found[1].sum(axis=1), 1)
        with world.first_works_alone(then_timeout=60.0):
            if world.is_main:
                (folder / "written").touch()
        assert (folder / "written").exists(), "the others wait for the first one"


def test_processes_sum_share_and_collect_what_they_have(tmp_path: Path) -> None:
    fork, port = multiprocessing.get_context("fork"), free_port()
    processes = [fork.Process(target=_exchange, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
