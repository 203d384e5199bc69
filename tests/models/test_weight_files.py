"""Files of weights are known by what is in them; damaged and foreign ones get one line."""

import gzip
import os
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import models
from engine.checkpoint import Checkpoints, load_checkpoint
from engine.errors import UserError
from tests.runs import same_tensors

W = {"a.weight": torch.arange(3.0), "b": torch.ones(1)}


@pytest.mark.parametrize("name", ["w.bin", "w.pt", "w.pth", "w.safetensors", "w"])
@pytest.mark.parametrize("write", [safetensors.torch.save_file, torch.save])
def test_the_name_says_nothing(name, write, tmp_path):
    write(W, tmp_path / name)
    assert same_tensors(models.read_weights(tmp_path / name), W)


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"state_dict": W}},
        {"state_dict": {"model": {"state_dict_ema": W}}},
        {f"_orig_mod.module.{name}": value for name, value in W.items()},
        {f"module._orig_mod.{name}": value for name, value in W.items()},
    ],
)
def test_wrappers_in_wrappers(content, tmp_path):
    torch.save(content, tmp_path / "w.pt")
    assert same_tensors(models.read_weights(tmp_path / "w.pt"), W)


FOREIGN = {
    "empty": (lambda p: p.touch(), "it is empty"),
    "lfs": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "run git lfs pull"),
    "gz": (lambda p: p.write_bytes(gzip.compress(b"weights")), "packed by gzip: unpack it with gunzip"),
    "html": (lambda p: p.write_text("<!DOCTYPE html><title>404</title>"), "page of HTML .* download it again"),
    "json": (lambda p: p.write_text('{"weight_map": {}}'), "a text of JSON: name the file of weights itself"),
    "npy": (lambda p: np.save(p.open("wb"), np.ones(2)), "an array of NumPy"),
    "npz": (lambda p: np.savez(p.open("wb"), a=np.ones(2)), "arrays of NumPy"),
    "text": (lambda p: p.write_text("no weights"), r"damaged or holds no weights \(torch.save did not write it\)"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), r"\(torch.save did not write it\)"),
    "arrays": (lambda p: torch.save({"a": np.ones(2)}, p), "_reconstruct, which may run code and is not loaded"),
    "module": (lambda p: torch.save(nn.Linear(1, 1), p), "Linear, which may run code and is not loaded"),
    "script": (lambda p: torch.jit.trace(nn.Linear(1, 1), torch.ones(1, 1)).save(p), "TorchScript, which is code"),
    "list": (lambda p: torch.save([torch.ones(1)], p), "expected a dictionary of tensors"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_weights_gets_one_line(kind, name, tmp_path):
    write, message = FOREIGN[kind]
    write(tmp_path / name)
    with pytest.raises(models.ModelError, match=rf"{name} (cannot be read|holds no weights): .*{message}") as error:
        models.read_weights(tmp_path / name)
    said = str(error.value)
    assert "\n" not in said and "weights_only" not in said and "trust" not in said


@pytest.fixture
def folder(tmp_path):
    """Two checkpoints of a run, of steps 1 and 2, with weights worth 8 kB."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.folder.mkdir()
    for step in (1, 2):
        checkpoints.save({"step": step, "model": {"w": torch.full((2000,), float(step))}, "config": {}}, step == 1)
    return checkpoints.folder


def test_no_flipped_bit_is_loaded(folder):
    """Whichever bit it is: the file is refused, or the bit meant nothing."""
    path = folder / "last.pt"
    whole, before = path.read_bytes(), load_checkpoint(path)
    refused = 0
    for place in range(0, len(whole), max(1, len(whole) // 97)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        try:
            state = load_checkpoint(path)
        except UserError as error:
            refused += 1
            assert "damaged" in str(error) and "\n" not in str(error)
        else:
            assert state["step"] == before["step"] and torch.equal(state["model"]["w"], before["model"]["w"])
    assert refused > 70


def flip(path):
    """Change a bit of a weight."""
    content = path.read_bytes()
    place = content.index(torch.full((9,), 2.0).numpy().tobytes()) + 403
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


def test_a_flipped_bit_falls_back_at_resume(folder, caplog):
    flip(folder / "last.pt")
    state = Checkpoints(folder, keep=1).load_last()
    assert state is not None and state["step"] == 1
    assert "differs from its checksum: take another copy of the file; trying the one before" in caplog.text


def test_a_flipped_bit_is_refused_elsewhere(folder):
    flip(folder / "last.pt")
    for read in (models.read_file, models.read_weights, load_checkpoint):
        with pytest.raises(ValueError, match=r"last.pt cannot be read: it is damaged, for \S+data/0 in it differs"):
            read(folder / "last.pt")


def test_a_file_without_checksums_is_read(tmp_path):
    """torch writes none where it was told so."""
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(W, tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same_tensors(models.read_weights(tmp_path / "w.pt"), W)


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


def test_a_checkpoint_that_would_run_code_is_called_that(here):
    torch.save({"step": 1, "extra": Evil()}, "evil.pt")
    with pytest.raises(UserError, match=r"^evil.pt cannot be read: it holds posix.mkdir, which may run code") as error:
        load_checkpoint(Path("evil.pt"))
    assert "weights_only" not in str(error.value) and not (here / "ran").exists()


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.97])
def test_a_full_disk_is_called_that(share, tmp_path):
    """Wherever in the file that is: torch's own complaint, of a position in its archive, comes after the system's."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    state = {"step": 1, "model": {str(i): torch.zeros(60_000) for i in range(5)}, "config": {}}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * 1.2e6), before[1]))
    try:
        with pytest.raises(UserError, match=r"step 1 could not be saved in .* \(File too large\): free space"):
            checkpoints.save(state, is_best=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
