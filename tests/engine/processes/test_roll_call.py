"""The processes that no longer answer are named, with their hosts."""

import os
import socket
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from engine.processes.distributed import World
from engine.processes.roll_call import RollCall, named
from tests.ports import free_port

HOSTS = ["n1"] * 2 + ["n2"] * 2


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ({3}, "rank 3 on n2"),
        ({2, 3}, "rank 2, 3 on n2"),
        ({1, 2}, "rank 1 on n1; rank 2 on n2"),
        ({0, 1, 2, 3}, "rank 0 on n1 or the store of the processes on the-store"),
    ],
)
def test_ranks_are_named_with_their_hosts(missing, words, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "the-store")
    assert named(missing, 0, HOSTS) == words


def test_a_store_that_is_lost_meanwhile_leaves_one_line_and_no_traceback(monkeypatch):
    """As when the machine of rank 0 goes down while the others still call."""

    class Lost:
        def __init__(self, *_: object, **options: object):
            pass

        def set(self, key: str, value: str) -> None:
            raise dist.DistNetworkError("Connection reset by peer")

    untold: list[object] = []
    monkeypatch.setattr("threading.excepthook", untold.append)
    monkeypatch.setattr("engine.processes.roll_call.dist.TCPStore", Lost)
    monkeypatch.setenv("MASTER_ADDR", "the-store")
    monkeypatch.setenv("MASTER_PORT", "1")
    assert "or the store of the processes on the-store: " in _of_two_processes(monkeypatch).lost()
    assert not untold


def _of_two_processes(monkeypatch: pytest.MonkeyPatch) -> RollCall:
    """The roll call of the second of two processes, which are not there."""

    def gather(names: list[object], own: object) -> None:
        names[0] = own

    for name, value in {"get_rank": lambda: 1, "get_world_size": lambda: 2, "all_gather_object": gather}.items():
        monkeypatch.setattr(f"engine.processes.roll_call.dist.{name}", value)
    return RollCall()


def test_after_the_end_nothing_refers_to_nccl(monkeypatch):
    """Otherwise the watching thread could destroy it while Python exits."""

    class Nccl:
        def get_error(self) -> SimpleNamespace:
            return SimpleNamespace(name="SUCCESS")

    made = [Nccl()]
    nccl = weakref.ref(made[0])
    group = SimpleNamespace(_get_backend=lambda _: made.pop())
    monkeypatch.setattr("engine.processes.roll_call.dist.group", SimpleNamespace(WORLD=group))
    roll_call = _of_two_processes(monkeypatch)
    roll_call.watch(torch.device("cuda"))
    assert nccl() is not None
    roll_call.end()
    assert nccl() is None


def _join(rank: int, port: int, folder: Path) -> None:
    """The last of three processes leaves; the others exchange something with it."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "3"}
    world = World(rank, 3, rank, 3)
    try:
        with world.joined(torch.device("cpu"), folder):
            (folder / f"variable_{rank}").write_text(os.environ["TORCH_FR_DUMP_TEMP_FILE"])
            if rank == 2:
                os._exit(0)
            world.barrier()
    except Exception as error:
        (folder / f"said_{rank}").write_text(f"{type(error).__name__}: {error}")
        world.first_on_machine(lambda: None, lambda: (folder / "said_1").exists())  # rank 0 holds the store
        os._exit(0)


@pytest.mark.slow
def test_two_processes_name_the_third_which_has_left(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_FR_DUMP_TEMP_FILE", raising=False)
    mp.spawn(_join, (free_port(), tmp_path), nprocs=3)
    for rank in "01":
        said = (tmp_path / f"said_{rank}").read_text()
        assert said.startswith(f"RunStopped: no answer from rank 2 on {socket.gethostname()}: "), said
        assert (tmp_path / f"variable_{rank}").read_text() == str(tmp_path / "nccl_trace_rank_")
