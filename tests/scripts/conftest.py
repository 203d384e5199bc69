"""Fixtures of the lab's tests."""

from pathlib import Path

import pytest
import yaml

from scripts import lab
from scripts.studies import study
from tests.small_study import STUDY


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a study called ``small``, where the lab looks for studies."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    monkeypatch.setattr(study, "STUDIES", tmp_path)
    monkeypatch.setattr(lab, "STUDIES", tmp_path)
    return tmp_path
