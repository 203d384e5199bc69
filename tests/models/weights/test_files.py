"""The format of a weight file is detected from its content; damaged and other files are refused in one line."""

import gzip
import os
import pickle
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import models
from engine.checkpoints.checkpoint import Checkpoints
from engine.checkpoints.checkpoint_file import load_checkpoint
from engine.errors import UserError
from tests.runs import same_tensors

W = {"a.weight": torch.arange(3.0), "b": torch.ones(1)}


@pytest.mark.parametrize("name", ["w.bin", "w.pt", "w.pth", "w.safetensors", "w"])
@pytest.mark.parametrize("write", [safetensors.torch.save_file, torch.save])
def test_the_file_name_does_not_matter(name, write, tmp_path):
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
def test_nested_wrappers_are_removed(content, tmp_path):
    torch.save(content, tmp_path / "w.pt")
    assert same_tensors(models.read_weights(tmp_path / "w.pt"), W)


FOREIGN = {
    "empty": (lambda p: p.touch(), "it is empty"),
    "lfs": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "run git lfs pull"),
    "gz": (lambda p: p.write_bytes(gzip.compress(b"weights")), "compressed with gzip: unpack it with gunzip"),
    "html": (lambda p: p.write_text("<!DOCTYPE html><title>404</title>"), "an HTML or XML page.* download it again"),
    "json": (lambda p: p.write_text('{"weight_map": {}}'), "a JSON file: give the path of the weight file"),
    "npy": (lambda p: np.save(p.open("wb"), np.ones(2)), "a NumPy array"),
    "npz": (lambda p: np.savez(p.open("wb"), a=np.ones(2)), "NumPy arrays"),
    "text": (lambda p: p.write_text("no weights"), r"damaged or holds no weights \(torch.save did not write it\)"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), r"\(torch.save did not write it\)"),
    "arrays": (lambda p: torch.save({"a": np.ones(2)}, p), "_reconstruct, which may run code and is not loaded"),
    "module": (lambda p: torch.save(nn.Linear(1, 1), p), "Linear, which may run code and is not loaded"),
    "script": (lambda p: torch.jit.trace(nn.Linear(1, 1), torch.ones(1, 1)).save(p), "TorchScript archive, which"),
    "list": (lambda p: torch.save([torch.ones(1)], p), "expected a dictionary of tensors"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_files_without_weights_are_refused_in_one_line(kind, name, tmp_path):
    write, message = FOREIGN[kind]
    write(tmp_path / name)
    with pytest.raises(models.ModelError, match=rf"{name} (cannot be read|holds no weights): .*{message}") as error:
        models.read_weights(tmp_path / name)
    said = str(error.value)
    assert "\n" not in said and "weights_only" not in said and "trust" not in said


@pytest.fixture
def folder(tmp_path):
    """The checkpoints of a run at steps 1 and 2, each with 8 kB of weights."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.folder.mkdir()
    for step in (1, 2):
        checkpoints.save({"step": step, "model": {"w": torch.full((2000,), float(step))}, "config": {}}, step == 1)
    checkpoints.wait()
    return checkpoints.folder


def test_a_flipped_bit_never_changes_what_is_loaded(folder):
    """Each time the file is refused, or the bit does not affect the content."""
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
    """Flip one bit of a weight."""
    content = path.read_bytes()
    place = content.index(torch.full((9,), 2.0).numpy().tobytes()) + 403
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


def test_a_resume_falls_back_to_the_earlier_checkpoint_after_a_flipped_bit(folder, caplog):
    flip(folder / "last.pt")
    state = Checkpoints(folder, keep=1).load_last()
    assert state is not None and state["step"] == 1
    assert "differs from its checksum: use another copy of the file; trying the previous one" in caplog.text


def test_every_other_reader_refuses_a_flipped_bit(folder):
    flip(folder / "last.pt")
    for read in (models.read_file, models.read_weights, load_checkpoint):
        with pytest.raises(ValueError, match=r"last.pt cannot be read: it is damaged, because \S+data/0 in it differs"):
            read(folder / "last.pt")


def test_a_file_without_checksums_is_read(tmp_path):
    """torch can be told to write none."""
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(W, tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same_tensors(models.read_weights(tmp_path / "w.pt"), W)


def test_a_file_that_was_compressed_afterwards_is_refused(tmp_path):
    """Few bytes on the disk may be more in memory than there is."""
    torch.save(W, tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as plain,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    with pytest.raises(
        models.ModelError, match=r"small.pt cannot be read: it was compressed after torch.save wrote it"
    ):
        models.read_weights(tmp_path / "small.pt")


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


def test_a_checkpoint_that_would_run_code_is_refused(here):
    torch.save({"step": 1, "extra": Evil()}, "evil.pt")
    with pytest.raises(UserError, match=r"^evil.pt cannot be read: it holds posix.mkdir, which may run code") as error:
        load_checkpoint(Path("evil.pt"))
    assert "weights_only" not in str(error.value) and not (here / "ran").exists()


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.filterwarnings("error")
def test_a_pickle_of_python_s_own_is_refused_in_one_line(protocol, here):
    Path("evil.pt").write_bytes(pickle.dumps(Evil(), protocol))
    with pytest.raises(UserError, match=r"^evil.pt cannot be read: [^\n]*$"):
        load_checkpoint(Path("evil.pt"))
    assert not (here / "ran").exists()


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.97])
def test_a_full_disk_gives_the_message_of_the_system(share, tmp_path):
    """At any position in the file. torch raises its own error later, about a position in its archive."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    state = {"step": 1, "model": {str(i): torch.zeros(60_000) for i in range(5)}, "config": {}}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * 1.2e6), before[1]))
    try:
        with pytest.raises(UserError, match=r"step 1 could not be saved in .* \(File too large\): free space"):
            checkpoints.save(state, is_best=True)
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
