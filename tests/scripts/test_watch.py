"""The pictures of watched trainings."""

from dataclasses import replace
from pathlib import Path

from scripts.studies import watch
from scripts.studies.study import read_study
from scripts.studies.watch import Seen


def test_a_training_looks_the_same_in_every_panel_and_in_the_legend(tmp_path: Path, monkeypatch) -> None:
    """Only AdamW² has the second panel's number."""
    study = replace(read_study("adamw2"), watch={"keys": ["loss", "lr_factor_median"], "cells": []})
    seen = [Seen(name, "", step, "loss", 2.0, "") for name in ("AdamW", "AdamW²") for step in (1, 2)]
    seen += [Seen("AdamW²", "", step, "lr_factor_median", 0.5, "") for step in (1, 2)]
    figures = []
    monkeypatch.setattr(watch, "save", lambda figure, path: figures.append(figure))
    watch.draw_watched(study, seen, tmp_path / "watched.png")
    (figure,) = figures
    lines = [*(line for panel in figure.axes for line in panel.lines), *figure.legends[0].get_lines()]
    looks = [
        {(li.get_color(), li.get_linestyle()) for li in lines if li.get_label() == name} for name in ("AdamW", "AdamW²")
    ]
    assert [len(found) for found in looks] == [1, 1] and looks[0] != looks[1]
