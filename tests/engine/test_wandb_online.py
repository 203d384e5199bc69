"""Online runs of Weights & Biases, on a server of our own: what it gets, and what happens if it fails."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.callbacks import wandb_logger
from engine.callbacks.wandb_logger import WandbLogger
from engine.run_dir import RunDirectory
from tests.fake_wandb import FakeWandb, serving
from tests.runs import SMALL, settings


@pytest.fixture
def server(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    with serving() as server:
        for name, value in server.variables(here).items():
            monkeypatch.setenv(name, value)
        yield server


def started(here: Path, state: dict[str, Any] | None = None) -> WandbLogger:
    directory = RunDirectory(here / "a")
    directory.path.mkdir(exist_ok=True)
    cfg = settings(*SMALL, "data.root=unused", "name=a", "logger=wandb", "logger.mode=online")
    run: Any = SimpleNamespace(cfg=cfg, directory=directory)
    return WandbLogger(run, state)


def log_steps(logger: WandbLogger, *steps: int) -> None:
    """Log a line for each step, and write it to metrics.jsonl, as a run does."""
    for step in steps:
        line = {"split": "train", "step": step, "epoch": step / 10, "loss": 1.0}
        with logger.directory.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        logger.on_line(line)


def test_a_run_that_resumes_has_each_step_once(here: Path, server: FakeWandb) -> None:
    first = started(here)
    log_steps(first, 1, 2, 3)
    first.on_end()
    second = started(here, first.state)
    log_steps(second, 4, 5)
    second.on_end()
    assert {name: [row["step"] for row in rows] for name, rows in server.histories.items()} == {
        first.state["id"]: [1, 2, 3, 4, 5]
    }


def test_the_end_of_a_run_does_not_wait_for_a_server_that_is_silent(
    here: Path, server: FakeWandb, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next start sends what the server lacks."""
    monkeypatch.setattr(wandb_logger, "LONGEST_END", 3.0)
    logger = started(here)
    server.status = None
    log_steps(logger, 1, 2)
    with caplog.at_level(logging.WARNING):
        logger.on_end()
    (said,) = (message for message in caplog.messages if "has not taken everything" in message)
    assert "within 3 seconds: `wandb sync" in said
    assert Path(said.split("`")[1].removeprefix("wandb sync ")).is_dir()
    server.status = 200
    again = started(here, logger.state)
    log_steps(again, 3)
    again.on_end()
    assert [row["step"] for row in server.histories[logger.state["id"]]] == [1, 2, 3]


def test_a_server_that_refuses_makes_the_run_offline(
    here: Path, server: FakeWandb, caplog: pytest.LogCaptureFixture
) -> None:
    server.status = 401
    logger = started(here)
    assert "cannot start online (" in caplog.text and "continuing offline" in caplog.text
    log_steps(logger, 1)
    logger.on_end()
    assert not logger.broken and list((here / "a/wandb").glob("offline-run-*/*.wandb"))
