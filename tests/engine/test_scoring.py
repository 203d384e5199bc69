"""Answers that are not finite count as wrong, and a model that gives them is never the best."""

import json
import math
import shutil
from pathlib import Path

import pytest
import timm
import torch

from data import DeviceAugment
from data.loader import Batch
from engine.callbacks.logger_lines import best_top1
from engine.checkpoints.saved_model import open_trained
from engine.errors import RunStopped, UserError
from engine.evaluation.evaluate import evaluate_checkpoint
from engine.evaluation.score_files import _row, refuse_unwritable, write_scores
from engine.evaluation.scoring import Scores, score
from engine.log import log_to
from engine.options.settings import eval_settings
from engine.processes.distributed import World
from engine.runtime import Runtime
from tests.runs import SMALL, checkpoint, composed, metrics, train_here


def scores(logits: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor | None = None) -> Scores:
    """The scores of a model that answers with these logits."""

    class Table(torch.nn.Module):
        def forward(self, x):
            return logits

    batch = Batch(torch.zeros(len(logits), 3, 2, 2, dtype=torch.uint8), labels, None, None)
    runtime = Runtime(World(0, 1, 0, 1), torch.device("cpu"))
    return score(Table(), [batch], DeviceAugment([0.0] * 3, [1.0] * 3, 3), runtime, classes)


@pytest.mark.parametrize("classes", [None, torch.tensor([0, 2])])
def test_answers_that_are_not_finite_are_wrong(classes, capsys):
    """A single NaN or infinity among the classes that count makes an image's answer wrong."""
    log_to(None, speaks=True)
    logits = torch.zeros(6, 3)
    logits[:, 0] = 1.0
    logits[0, 1], logits[1, 0], logits[2, 2], logits[3] = torch.nan, torch.inf, -torch.inf, torch.nan
    found = scores(logits, torch.zeros(6, dtype=torch.long), classes)
    bad = 4 if classes is None else 3
    assert found.not_finite == bad and found.top1 == found.top5 == pytest.approx(100 * (6 - bad) / 6)
    assert f"outputs for {bad} of 6 images are not finite" in capsys.readouterr().out


def test_an_image_counts_if_it_has_a_label_however_few(capsys):
    log_to(None, speaks=True)
    logits = torch.eye(8)[[2, 1, 0]]
    logits[2, 3] = torch.nan  # of the image that does not count
    found = scores(logits, torch.tensor([[1, 2], [1, -1], [-1, -1]]))
    assert (found.images, found.top1, found.not_finite) == (2, 100, 0)
    assert "not finite" not in capsys.readouterr().out


def test_it_is_said_written_and_never_the_best(small_images, here, capsys):
    """The moving average becomes NaN in the middle of a run. It is evaluated, and is not kept as the best."""
    common = (*SMALL, f"data.root={small_images}", "name=a", "ema=0.5", "eval_every=9")
    train_here(*common, "max_steps=1")
    state = checkpoint(here / "outputs/a")
    best = state["best"]
    state["ema"] = {name: torch.full_like(value, torch.nan) for name, value in state["ema"].items()}
    torch.save(state, here / "outputs/a/checkpoints/last.pt")
    train_here(*common, "max_steps=2")
    assert "for 80 of 80 images are not finite: they count as wrong" in capsys.readouterr().out
    assert "NaN" not in (here / "outputs/a/metrics.jsonl").read_text()
    assert [(v["top1"], v["loss"], v["not_finite"]) for v in metrics(here / "outputs/a", "val")[1:]] == [(0, None, 80)]
    assert checkpoint(here / "outputs/a")["best"] == best
    assert checkpoint(here / "outputs/a", "best.pt")["step"] == 1

    typed = ["checkpoint=outputs/a/checkpoints/last.pt", "device=cpu", "max_workers=0"]
    trained = open_trained(typed[0].removeprefix("checkpoint="))
    with pytest.raises(RunStopped, match=r"last.pt: the outputs of the model are not finite") as stopped:
        evaluate_checkpoint(eval_settings(composed(*typed), trained, typed), trained)
    found = json.loads(Path("eval.json").read_text(), parse_constant=lambda word: 1 / 0)
    assert stopped.value.exit_code == 1
    assert (found["top1"], found["loss"], found["images"], found["not_finite"]) == (0, None, 80, 80)


@pytest.mark.parametrize("bad", [("v2",), ("v2", "sketch")])
def test_a_set_whose_answers_are_not_finite_ends_the_command_with_an_error(bad, small_images, here, monkeypatch):
    for name, folder in (("v2", "7"), ("sketch", "n01440764")):
        shutil.copytree(next((small_images / "val").iterdir()), here / name / folder)
    found = iter([Scores(50.0, 80.0, 1.0, 8, 3 * (name in bad)) for name in ("v2", "sketch")])
    monkeypatch.setattr("engine.evaluation.evaluate.score", lambda *arguments: next(found))
    torch.save(timm.create_model("test_vit3").state_dict(), "w.pt")
    model = ("model=timm", "model.name=test_vit3", "checkpoint=w.pt", "data.crop=160", "data.backend=torch")
    typed = [*model, "sets.v2=v2", "sets.sketch=sketch", "device=cpu", "max_workers=0"]
    with pytest.raises(RunStopped, match=r"w.pt: the outputs of the model are not finite") as stopped:
        evaluate_checkpoint(eval_settings(composed(*typed), None, typed), None)
    assert stopped.value.exit_code == 1
    written = json.loads(Path("eval.json").read_text())["sets"]
    assert {name for name, values in written.items() if "not_finite" in values} == set(bad)


def test_a_model_that_is_partly_not_finite_is_not_the_best_however_high_it_scores(small_images, here, monkeypatch):
    monkeypatch.setattr("engine.loop.score", lambda *arguments: Scores(90.0, 95.0, math.nan, 80, 3))
    train_here(*SMALL, f"data.root={small_images}", "name=a", "max_steps=1")
    assert checkpoint(here / "outputs/a")["best"] is None and not (here / "outputs/a/checkpoints/best.pt").exists()
    line = {"split": "val", "top1": 90.0}
    assert best_top1(5.0, line | {"not_finite": 3}) == 5.0 and best_top1(5.0, line) == 90.0


def test_of_two_equally_good_models_the_first_is_the_best(small_images, here, monkeypatch):
    monkeypatch.setattr("engine.loop.score", lambda *arguments: Scores(50.0, 95.0, 1.0, 80))
    train_here(*SMALL, f"data.root={small_images}", "name=a", "epochs=2")
    assert checkpoint(here / "outputs/a", "best.pt")["step"] == 10


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["output=w.pt"], r"output=\S*w\.pt: \S*w\.pt is the checkpoint: set output to another file"),
        (["predictions=w.pt"], r"predictions=\S*w\.pt: \S*w\.pt is the checkpoint: set predictions to another"),
        (["output=a.json", "predictions=a.json"], r"is written by output=\S*a\.json: set predictions to another file"),
        (["output=a.json", "predictions=a.md"], r"is written by output=\S*a\.json: set predictions to another file"),
    ],
)
def test_no_file_takes_the_place_of_another(typed, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    typed = ["model=deit_tiny", "checkpoint=w.pt", *typed]
    with pytest.raises(UserError, match=said):
        refuse_unwritable(eval_settings(composed(*typed), None, typed))


def test_a_full_disk_does_not_swallow_the_scores(capsys):
    log_to(None, speaks=True)
    typed = ["model=deit_tiny", "checkpoint=w.pt", "output=/dev/full"]
    with pytest.raises(UserError, match=r"/dev/full could not be written \(No space left on device\)"):
        write_scores(eval_settings(composed(*typed), None, typed), Scores(70.0, 90.0, 1.5, 200), "torch")
    assert "top-1 70.00 %, top-5 90.00 %, loss 1.5000" in capsys.readouterr().out


@pytest.mark.parametrize(("images", "said"), [(7500, "7500"), (7499, "7499 of 7500"), (8000, "8000 of 7500")])
def test_a_table_says_where_a_set_is_not_the_whole_one(images, said):
    assert _row("a", Scores(1.0, 5.0, 2.0, images))[:2] == ("ImageNet-A", said)
