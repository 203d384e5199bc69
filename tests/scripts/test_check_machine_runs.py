"""The checks that decode images and train, and the whole tool on this machine."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from scripts.machine import decoding, run
from scripts.machine.row import Row
from tests.runs import PROJECT, environment

SCRIPT = PROJECT / "scripts/check_machine.py"


# --- decoding


def test_decoded_pixels_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "IMAGES", 4)
    monkeypatch.setattr(decoding, "TIMED", 2)
    rows = {row.name: row for row in decoding.check()}
    assert rows["DALI pixels"].verdict == "ok"
    assert re.match(r"\d+ images/s on the [CG]PU", rows["DALI decoding"].value)


def test_one_image_with_other_pixels_is_bad() -> None:
    expected = torch.full((3, 3, 8, 8), 100, dtype=torch.uint8)
    images = expected.clone()
    images[1] += 1
    assert decoding.same_pixels(images, expected).verdict == "ok"
    images[1] += 2
    assert decoding.same_pixels(images, expected).verdict == "bad"


def test_the_images_are_as_large_as_those_of_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "IMAGES", 2)
    decoding.write_images(tmp_path / "noise")
    for file in (tmp_path / "noise").iterdir():
        assert 50_000 < file.stat().st_size < 200_000 and Image.open(file).size == (500, 375)


# --- the run


def test_a_run_that_fails_is_a_row_with_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = tmp_path / "train.py"
    failing.write_text("import sys; print('first', file=sys.stderr); sys.exit('error: no such thing')")
    monkeypatch.setattr(run, "TRAIN", failing)
    row = run.part("run", tmp_path, 3)
    assert (row.verdict, row.value) == ("bad", "exit code 1 (error: no such thing)")


def test_a_run_that_skips_steps_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.py").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").write_text('{"split": "train", "step": 1}\n{"split": "val", "step": 1}\n')
    monkeypatch.setattr(run, "TRAIN", tmp_path / "train.py")
    assert run.part("run", tmp_path, 1).verdict == "ok"
    assert run.part("run", tmp_path, 2).verdict == "bad"


@pytest.mark.parametrize(("has_bf16", "half"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_without_bf16_compiles_in_fp16(has_bf16: bool, half: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    given = []

    def part(name: str, folder: Path, steps: int, *further: str) -> Row:
        given.append((name, further))
        return Row(name, "works")

    monkeypatch.setattr(run, "part", part)
    assert [row.verdict for row in run.check(compiles=True)] == ["ok"] * 3
    name, options = given[-1]
    assert name == f"compiled run in {half}" and f"amp={half}" in options


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tool_runs_here(small_images: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    done = subprocess.run(
        [sys.executable, SCRIPT, "--data-root", small_images, "--output-dir", "outputs"],
        cwd=here,
        env=environment(XDG_CACHE_HOME=str(tmp_path)),
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    verdicts = {line[8:32].strip(): line[:8].strip() for line in lines}
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert verdicts["run of 3 steps"] == verdicts["resumed for a 4th"] == verdicts["DALI pixels"] == "ok"
    assert {"Python", "packages", "CPU cores", "data root", "output folder", "output space"} <= verdicts.keys()
    assert ("GPU 0" in verdicts) == torch.cuda.is_available()
    assert list(here.iterdir()) == []
