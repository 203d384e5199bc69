"""Work beside the training may fail: one warning says so, and a run keeps everything that it can still keep."""

import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.callbacks.plots import _caption, draw_batch
from engine.line_file import LineFile
from engine.warn_on_failure import warn_on_failure


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limit the size of files, which acts like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    """The messages of the project's warnings, in order."""
    said: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: said.append(record.getMessage()))
    logger = logging.getLogger("engine")
    monkeypatch.setattr(logger, "handlers", [handler])
    return said


def test_a_failure_is_said_once_and_goes_no_further(tmp_path, warnings):
    for _ in range(2):
        with warn_on_failure(f"{tmp_path} cannot be drawn"):
            raise OSError(28, "No space left on device")
    with warn_on_failure(f"{tmp_path} cannot be read"):
        raise ValueError
    assert warnings == [
        f"{tmp_path} cannot be drawn (No space left on device): the run continues without it",
        f"{tmp_path} cannot be read (ValueError): the run continues without it",
    ]
    with warn_on_failure("html failed"):
        tmp_path.read_text()
    assert warnings[2] == f"html failed ({tmp_path}: Is a directory): the run continues without it"
    with pytest.raises(KeyboardInterrupt), warn_on_failure("it"):
        raise KeyboardInterrupt


def test_lines_wait_for_a_disk_with_space(tmp_path, warnings):
    path = tmp_path / "metrics.jsonl"
    lines = LineFile(path)
    lines.add("one")
    with largest_file(9):
        lines.add("two and more")  # only a part of it fits
        lines.add("three")
    assert path.read_text() == "one\n", "no part of a line"
    lines.add("four")
    assert path.read_text() == "one\ntwo and more\nthree\nfour\n"
    assert len(warnings) == 1 and "metrics.jsonl cannot be written (File too large)" in warnings[0]


def test_a_file_whose_folder_was_removed_is_written_anew(tmp_path, warnings):
    lines = LineFile(tmp_path / "a" / "metrics.jsonl")
    lines.add("one")
    lines.path.unlink()
    lines.path.parent.rmdir()
    lines.add("two")
    assert lines.path.read_text() == "two\n" and not warnings


@pytest.mark.filterwarnings("error")
def test_any_name_of_a_class_can_be_drawn(tmp_path):
    names = {0: "$x^", 1: "caf\udce9", 2: "猫", 3: r"50% \frac"}  # formulas, undecodable bytes, other scripts
    mixed = torch.full((4, 4), 0.5) * (torch.eye(4) + torch.eye(4).roll(1, 0))
    draw_batch(torch.zeros(8, 3, 8, 8, dtype=torch.uint8), torch.cat([torch.eye(4), mixed]), names, tmp_path / "a.png")
    assert np.array(Image.open(Path(tmp_path / "a.png"))).std() > 0


def test_a_mixed_image_is_captioned_with_its_shares_whatever_the_label_smoothing():
    target = np.full(10, 0.01) + 0.9 * (0.7 * np.eye(10)[3] + 0.3 * np.eye(10)[5])
    assert _caption(target, dict(enumerate("abcdefghij"))) == "d 70%\nf 30%"
