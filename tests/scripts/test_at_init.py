"""The measurement at initialisation, its table and its verdicts."""

from dataclasses import fields
from pathlib import Path

import pytest

from engine.errors import UserError
from scripts.studies import at_init, study
from scripts.studies.study import read_study


def test_the_gradients_at_initialisation_have_the_slopes_of_the_theory(tmp_path: Path) -> None:
    """A small form of ``phase=init``: the first two claims of the study, at fewer depths and seeds."""
    full = read_study("postln_preln")
    init = full.init | {
        "depths": [4, 16],
        "first_seed": 0,
        "seeds": 8,
        "batches": 2,
        "models": {"theory": full.init["models"]["theory"]},
    }
    init["models"]["theory"] |= {"embed_dim": 64}
    rules = [claim | {"rule": claim["rule"] | {"within": 0.4}} for claim in full.init["claims"][:2]]  # few seeds
    small = study.Study(**{**vars(full), "init": init | {"claims": rules}})
    found = at_init.verdicts_at_init(small, tmp_path, measures=True)
    assert [verdict.verdict for verdict in found] == ["confirmed", "confirmed"], found
    assert len((tmp_path / "at_init.csv").read_text().splitlines()) == 1 + 2 * 8 * (4 + 16)
    assert (tmp_path / "at_init.png").is_file()
    assert at_init.verdicts_at_init(small, tmp_path) == found


def test_a_prediction_outside_the_interval_is_not_confirmed() -> None:
    rule = {"kind": "slope over depths", "model": "m", "position": "pre", "predicts": -0.5, "rival": 0.0}
    rows = [
        at_init.Measured("m", "pre", depth, seed, depth, 1.0 + 0.01 * seed, 1.0, "")
        for depth in (2, 4)
        for seed in (0, 1)
    ]
    assert at_init._judge("", rule, rows).verdict == "not confirmed"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model,position\n1,2\n", "has no column 'depth'"),
        ("{header}\nm,pre\n", "line 2"),
        ("{header}\nm,pre,x,0,1,1,1,c\n", "line 2: depth is 'x'"),
        ("{header}\nm,pre,6,0,1,,1,c\n", "line 2: gradient is '', no number"),
        ("{header}\nm,pre,6.5,0,1,1,1,c\n", "line 2: depth is '6.5', no whole number"),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, text: str, said: str) -> None:
    header = ",".join(field.name for field in fields(at_init.Measured))
    (tmp_path / "at_init.csv").write_text(text.format(header=header))
    with pytest.raises(UserError, match=rf"at_init\.csv.* {said}"):
        at_init.verdicts_at_init(read_study("postln_preln"), tmp_path)
