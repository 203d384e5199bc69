"""What documents say is so.

The program of docs/life_of_an_image.md, the lists of docs/debugging.md, the options of docs/timm.md, and the commands
and messages of docs/clusters.md.
"""

import logging
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot as plt
from timm import create_model
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from engine.options.config import EvalConfig, TrainConfig, config_groups
from engine.options.rules import declared
from engine.options.timm_names import OUR_NAMES
from models import ModelError, load_weights, read_weights
from optim import build_optimizer, build_schedule
from tests.runs import PROJECT, same_tensors, settings

LIFE = (PROJECT / "docs/life_of_an_image.md").read_text()
DEBUGGING = (PROJECT / "docs/debugging.md").read_text()
CLUSTERS = (PROJECT / "docs/clusters.md").read_text()
PYTHON = re.compile(r"^```python\n(.*?)^```\n\n((?:    [^\n]*\n)*)", re.M | re.S)


def test_the_life_of_an_image_is_as_the_page_says(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Losses differ in their last digits from CPU to CPU; all else is equal."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(embedded.parent.parent))
    for room in ("data", "engine"):  # an earlier test may have sent their messages to the console
        monkeypatch.setattr(logging.getLogger(room), "handlers", [])
    monkeypatch.setattr(sys, "argv", ["-", str(tmp_path / "life.png")])
    parts = PYTHON.findall(LIFE + "\n")
    exec("".join(code for code, _ in parts), {"__name__": "life"})
    plt.close("all")
    printed = [line for line in capsys.readouterr().out.splitlines() if line]
    shown = [line.removeprefix("    ") for _, lines in parts for line in lines.splitlines()]
    assert [without_loss(line) for line in printed] == [without_loss(line) for line in shown]
    losses = [float(line.split()[-1]) for line in printed if line.startswith("loss")]
    assert losses == pytest.approx([float(line.split()[-1]) for line in shown if line.startswith("loss")], abs=2e-3)
    assert f'"loss": {losses[-1]:.2f}' in LIFE, "the line of metrics holds the same loss"
    assert (tmp_path / "life.png").read_bytes()[:4] == (PROJECT / "docs/life_of_an_image.png").read_bytes()[:4]


def without_loss(line: str) -> str:
    return line.rsplit(maxsplit=1)[0] if line.startswith("loss") else line


def test_the_options_that_may_change_are_listed() -> None:
    (listed,) = re.findall(r"\*\*These options may change\*\*.*?\n\n(.*?)\n\n", DEBUGGING, re.S)
    groups = {name for name in re.findall(r"`([\w.]+)\.\*`", listed)}
    said = set(re.findall(r"`([\w.]+)`", listed))
    options = declared(TrainConfig)
    may_change = {key for key, option in options.items() if option.rules.may_change}
    assert all(options[key].rules.may_change for key in options if key.split(".")[0] in groups)
    assert said == {key for key in may_change if key.split(".")[0] not in groups}


def test_the_options_that_take_the_place_of_timms_exist() -> None:
    rows = re.findall(r"^\| `-[^|]*\| ([^|]*) \|", (PROJECT / "docs/timm.md").read_text(), re.M)
    typed = [word.partition("=")[0] for said in re.findall(r"`([^`]+)`", " ".join(rows)) for word in said.split()]
    known = declared(TrainConfig).keys() | declared(EvalConfig).keys() | config_groups() | {"checkpoint"}
    others = [word for word in typed if word not in known and not word.startswith("+model.kwargs.")]
    # Values of amp, and a file of an experiment.
    assert len(typed) > 60 and sorted(others) == ["conf/experiment/NAME.yaml", "fp16", "fp32"]


def test_the_names_of_timm_that_errors_translate_are_those_of_the_page() -> None:
    """Each is in a row whose second column has our name, and is no name of ours."""
    rows = re.findall(r"^\| (`-[^|]*) \| ([^|]*) \|", (PROJECT / "docs/timm.md").read_text(), re.M)
    known = declared(TrainConfig).keys() | declared(EvalConfig).keys()
    for name, ours in OUR_NAMES.items():
        said = [column for names, column in rows if re.search(rf"-{name.replace('_', '-')}\b(?!-)", names)]
        assert any(re.search(rf"`{re.escape(ours)}\b", column) for column in said), (name, said)
        assert name not in known


def timm_commands() -> list[TrainConfig]:
    """The settings of the commands in docs/timm.md."""
    lines = shell_lines(re.sub(r"^```.*?^```", "", (PROJECT / "docs/timm.md").read_text(), flags=re.M | re.S))
    return [settings(*line[line.index("train.py") + 1 :]) for line in lines]


def test_timm_s_defaults_are_those_that_its_page_types_out() -> None:
    """The learning rates are those of timm's schedule, with what ``train.py`` passes to it."""
    (cfg,) = (cfg for cfg in timm_commands() if cfg.model.name == "convnext_tiny")
    theirs = create_optimizer_v2(nn.Linear(2, 2), "sgd", lr=0.1 * cfg.batch_size / 256, weight_decay=2e-5, momentum=0.9)
    schedule, epochs = create_scheduler_v2(theirs, num_epochs=300, warmup_epochs=5, warmup_lr=1e-5)
    optimizer = build_optimizer(cfg.optim, nn.Linear(2, 2), cfg.batch_size)
    ours = build_schedule(cfg.schedule, cfg.optim, optimizer, cfg.batch_size, cfg.epochs, 1)
    assert epochs == cfg.epochs and isinstance(optimizer, type(theirs))
    for epoch in range(epochs):
        schedule.step(epoch)
        ours.step_update(epoch)
        groups = zip(
            *(sorted(o.param_groups, key=lambda g: g["weight_decay"]) for o in (optimizer, theirs)), strict=True
        )
        for mine, group in groups:
            for key in ("lr", "weight_decay", "momentum", "nesterov"):
                assert mine[key] == pytest.approx(group[key], rel=1e-12), (epoch, key)


def test_timm_renames_released_weights_as_its_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Swin's files a stage ends with the merging, and in timm the next stage begins with it."""
    monkeypatch.chdir(tmp_path)
    model = create_model("swin_tiny_patch4_window7_224")
    theirs = {
        re.sub(r"layers\.(\d)\.down", lambda m: f"layers.{int(m[1]) - 1}.down", name).replace("head.fc", "head"): value
        for name, value in model.state_dict().items()
    }
    torch.save({"model": theirs}, "theirs.pth")
    with pytest.raises(ModelError, match=r"theirs\.pth holds weights of another model"):
        load_weights(model, "theirs.pth")
    (code,) = re.findall(r"^```python\n(.*?)^```", (PROJECT / "docs/timm.md").read_text(), re.M | re.S)
    exec(code, {})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_weights(create_model("swin_tiny_patch4_window7_224"), "renamed.pth")
    assert same_tensors(read_weights("renamed.pth"), before)


@pytest.mark.parametrize("page", sorted(path.name for path in (PROJECT / "docs").glob("*.md")))
def test_links_lead_somewhere(page: str) -> None:
    text = (PROJECT / "docs" / page).read_text()
    titles = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in titles, target
        elif not target.startswith("https:"):
            assert (PROJECT / "docs" / target.partition("#")[0]).exists(), target


def shell_lines(page: str) -> list[list[str]]:
    """The words of each command in a page's indented blocks."""
    blocks = "".join(line[4:] for line in page.splitlines(keepends=True) if line.startswith("    "))
    return [shlex.split(line, comments=True) for line in blocks.replace("\\\n", " ").splitlines()]


def test_the_commands_for_clusters_are_right() -> None:
    """Each script and target exists, the array has the size of its file, and the options of runs compose."""
    lines = shell_lines(CLUSTERS)
    (grid,) = (line for line in lines if line[0] == "printf")
    runs: dict[str, set[str]] = {}  # the options of all commands that begin with the same one: composing takes long
    for line in lines:
        if "make" in line:
            assert re.search(rf"^{line[line.index('make') + 1]}:", (PROJECT / "Makefile").read_text(), re.M)
        for script in (word for word in line if word.endswith((".py", ".sbatch"))):
            assert (PROJECT / script).is_file(), script
            options = line[line.index(script) + 1 :]
            if script.endswith("sweep.sbatch"):
                assert [line[1], f">{options[0]}"] == [f"--array=1-{len(grid[2:-1])}", grid[-1]]
                options = [*options[1:], *" ".join(grid[2:-1]).split()]
            if script == "train.py" or script.endswith(".sbatch"):
                runs.setdefault(options[0], set()).update(options)
    assert runs.keys() == {"experiment=quickstart", "model=lipsformer_swin_tiny"}
    for options in runs.values():
        settings(*options)


def test_the_messages_for_clusters_are_those_of_the_programs() -> None:
    files = [
        *(PROJECT / "engine").rglob("*.py"),
        *(PROJECT / "data").rglob("*.py"),
        *(PROJECT / "scripts/slurm").iterdir(),
    ]
    # A text that goes on in the next line of the code; then what is put into a message.
    joined = re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text() for file in files))
    said = re.sub(r"\$?\{[^}]*\}+|\$[A-Z_a-z]+|%[sd]", "…", joined)
    ours = re.findall(r"^\| Coldstart \| `([^`]+)` \|", CLUSTERS, re.M)
    assert len(ours) == CLUSTERS.count("| Coldstart |") > 5
    assert [message for message in ours if message not in said] == []
