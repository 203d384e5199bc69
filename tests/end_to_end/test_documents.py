"""What documents say is so: the program of docs/life_of_an_image.md, and the lists of docs/debugging.md."""

import logging
import re
import sys
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from engine.config import TrainConfig
from engine.options import declared
from tests.runs import PROJECT

LIFE = (PROJECT / "docs/life_of_an_image.md").read_text()
DEBUGGING = (PROJECT / "docs/debugging.md").read_text()
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
    may_change = {key for key, option in options.items() if option.may_change}
    assert all(options[key].may_change for key in options if key.split(".")[0] in groups)
    assert said == {key for key in may_change if key.split(".")[0] not in groups}


@pytest.mark.parametrize("page", ["debugging.md", "extending.md", "life_of_an_image.md", "reliability.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (PROJECT / "docs" / page).read_text()
    titles = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in titles, target
        else:
            assert (PROJECT / "docs" / target.partition("#")[0]).exists(), target
