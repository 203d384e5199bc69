"""The table of models gives their true numbers."""

import pytest
import torch

from scripts.model_table import Row, activations, build, names, sizes, table


def test_every_model_of_the_papers_is_in_the_table():
    assert {"lipsformer_swin_tiny", "lipsformer_cswin_tiny", "cswin_base", "swin_tiny", "deit_small"} <= set(names())
    assert "timm" not in names()


@pytest.mark.slow
def test_a_row_of_the_table():
    row = sizes("lipsformer_cswin_tiny")
    assert (row.parameters, row.gmacs) == (23_767_720, pytest.approx(4.67, abs=0.005))
    assert row.lipschitz.startswith("infinite: ")


def test_activations_are_those_timm_publishes():
    """17.06 M for swin_tiny_patch4_window7_224 in timm's results tables."""
    with torch.device("meta"):
        assert activations(build("swin_tiny").eval()) / 1e6 == pytest.approx(17.06, abs=0.01)


def test_the_table_is_markdown():
    text = table([Row("deit_small", 22_050_664, 4.6, 11.9, "infinite: LayerNorm", 12.345)])
    assert (
        text.splitlines()[2]
        == "| `deit_small` | 22,050,664 | 4.60 | 11.9 | 12.3 |  | infinite: LayerNorm | 79.8, warm-up |"
    )
