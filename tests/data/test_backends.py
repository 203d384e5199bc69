"""Backends: which one is chosen, the same pixels every time, and the processes that the torch backend starts."""

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.backends import resolve_backend
from data.config import DataConfig
from data.errors import DataError
from tests import runs
from tests.crop_requests import BACKENDS, MODES, build, images_of, in_batches, make_crops, options, run, take
from tests.runs import PROJECT

# --- which one ------------------------------------------------------------------------------------------------------


def test_auto_is_dali() -> None:
    assert resolve_backend(DataConfig(name="any")) == "dali"


def test_without_dali_auto_is_torch_and_dali_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name.startswith("nvidia") else find(name))
    assert resolve_backend(DataConfig(name="any")) == "torch"
    with pytest.raises(DataError, match=r"set data\.backend=torch"):
        resolve_backend(DataConfig(name="any", backend="dali"))


def test_a_dali_that_cannot_be_imported_is_one_line(photographs: Path, tmp_path: Path) -> None:
    """It does not become torch, whose pixels differ a little: a run that continues must keep its backend."""
    broken = tmp_path / "nvidia/dali/__init__.py"
    broken.parent.mkdir(parents=True)
    (tmp_path / "nvidia/__init__.py").touch()
    broken.write_text("raise OSError('libcudart.so.12: cannot open shared object file')", encoding="utf-8")
    data = (f"data.root={photographs}", "data.backend=dali", f"data.index_dir={tmp_path}")
    ended = runs.run("train.py", *runs.SMALL, *data, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: NVIDIA DALI is installed and cannot be imported (libcudart.so.12: cannot open shared object file): "
        "install requirements.txt anew, or set data.backend=torch\n",
    )


def test_the_backend_asked_for_is_taken() -> None:
    assert resolve_backend(DataConfig(name="any", backend="torch")) == "torch"
    assert resolve_backend(DataConfig(name="any", backend="dali")) == "dali"
    assert resolve_backend(DataConfig(name="synthetic", backend="dali")) == "synthetic"


def test_an_unknown_backend_is_refused(photographs: Path) -> None:
    cfg = DataConfig(name="any", backend="ffcv")
    with pytest.raises(DataError, match=r"data\.backend=ffcv is unknown"):
        build(resolve_backend(cfg), images_of(photographs), cfg)


# --- the same each time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_torch_workers_change_no_pixel(photographs: Path, mode: str) -> None:
    source, cfg = images_of(photographs), options("bicubic", 64)
    requests = in_batches(make_crops(source, cfg, mode), 5)
    alone, beside = (run(build("torch", source, cfg, workers), requests) for workers in (0, 2))
    assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True))


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_stream_repeats_bit_by_bit(photographs: Path, kind: str) -> None:
    source, cfg = images_of(photographs), options("bicubic", 64)
    requests = in_batches(make_crops(source, cfg, "train"), 7)
    assert len(requests[-1]) < 7
    backend = build(kind, source, cfg, workers=2)
    first, again = run(backend, requests), run(backend, requests)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("kind", BACKENDS)
def test_batch_sizes_change_no_pixel(photographs: Path, kind: str) -> None:
    source, cfg = images_of(photographs), options("bicubic", 64)
    crops = make_crops(source, cfg, "train")
    uneven = [take(crops, slice(*ends)) for ends in ((0, 1), (1, 8), (8, 10), (10, 16))]
    parts = torch.cat(run(build(kind, source, cfg), uneven))
    assert torch.equal(parts, torch.cat(run(build(kind, source, cfg), in_batches(take(crops, slice(0, 16)), 8))))


@pytest.mark.parametrize("kind", BACKENDS)
def test_neither_a_mode_nor_threads_of_the_caller_matter_or_change(photographs: Path, kind: str, set_threads) -> None:
    source, cfg = images_of(photographs), options("bicubic", 64)
    requests = in_batches(make_crops(source, cfg, "train"), 5)
    expected = run(build(kind, source, cfg, workers=2), requests)
    set_threads(3)
    with torch.inference_mode():
        made = run(build(kind, source, cfg, workers=2), requests)
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == 3
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


def test_what_fails_in_a_thread_fails_the_batch(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr("data.backends.resizing.write_row", fail)
    source, cfg = images_of(photographs), options("bicubic", 64)
    with pytest.raises(MemoryError, match="no more"):
        run(build("dali", source, cfg, workers=2), in_batches(make_crops(source, cfg, "train"), 8))


@pytest.mark.parametrize("kind", BACKENDS)
def test_no_requests_give_no_batches(photographs: Path, kind: str) -> None:
    assert run(build(kind, images_of(photographs), options("bicubic", 64)), []) == []


@pytest.mark.parametrize("name", ["two words.jpg", "müller 猫.jpg", os.fsdecode(b"caf\xe9.jpg")])
@pytest.mark.parametrize("kind", BACKENDS)
def test_any_file_name_can_be_read(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.new("RGB", (70, 70), (90, 90, 90)).save(tmp_path / "train" / "a" / name, format="JPEG")
    source, cfg = images_of(tmp_path), options("bicubic", 64)
    (images,) = run(build(kind, source, cfg), [make_crops(source, cfg, "eval")])
    assert (images == 90).all()


# --- the processes of the torch backend -----------------------------------------------------------------------------


def test_workers_are_no_copies_of_this_process(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork would copy each lock that a thread of this process holds, and wait for it for ever."""
    source, cfg = images_of(photographs), options("bicubic", 64)
    requests = in_batches(make_crops(source, cfg, "train"), 8)
    expected = run(build("torch", source, cfg, workers=0), requests)
    monkeypatch.setattr("torchvision.transforms.v2.functional.resize", None)
    made = run(build("torch", source, cfg, workers=2), requests)
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


@pytest.mark.slow
def test_a_process_ends_with_its_workers_still_at_work(photographs: Path) -> None:
    """Python ends its child processes with SIGTERM and waits for them, but workers ignore SIGTERM."""
    code = """
import sys
from pathlib import Path
from tests.crop_requests import build, in_batches, images_of, make_crops, options
source, cfg = images_of(Path(sys.argv[1])), options("bicubic", 64)
sys.kept = build("torch", source, cfg, workers=2).batches(iter(in_batches(make_crops(source, cfg, "train"), 2)))
next(sys.kept)
"""
    subprocess.run([sys.executable, "-c", code, photographs], cwd=PROJECT, check=True, timeout=250)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.slow
def test_the_process_that_starts_workers_outlives_signals():
    """Tested in a new process, which has started no other process yet."""
    code = """
import re, signal
from multiprocessing import forkserver
from data.backends.workers import OUTLIVED, clean_start
clean_start([])
status = open(f"/proc/{forkserver._forkserver._forkserver_pid}/status").read()
blocked = int(re.search(r"SigBlk:\\s*(\\w+)", status).group(1), 16)
assert all(blocked >> (number - 1) & 1 for number in OUTLIVED), hex(blocked)
assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()), "signals still blocked here"
"""
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
