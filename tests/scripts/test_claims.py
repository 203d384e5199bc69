"""How the lab judges claims, and how wide it finds the range of good learning rates, on made rows."""

from dataclasses import replace

import numpy as np
import pytest

from engine.errors import UserError
from scripts.studies import claims, width
from scripts.studies.study import read_study


def made_rows(values: dict[tuple[str, str], list[float]]) -> list[dict[str, str]]:
    """Rows of a grid of methods and rates; less than 15 % is a crash."""
    return [
        {"method": method, "lr": lr, "seed": str(seed), "top1": str(top1), "crashed": str(top1 < 15)}
        for (method, lr), found in values.items()
        for seed, top1 in enumerate(found)
    ]


@pytest.mark.parametrize(
    ("better", "verdict"),
    [
        ([62.0, 63.0, 64.0], "confirmed"),  # 12, 12, 12 more
        ([62.0, 53.0, 66.0], "partly"),
        ([52.0, 53.0, 54.0], "not confirmed"),
        ([62.0], "not yet run"),
    ],
)
def test_a_difference_is_judged_by_its_interval(better, verdict):
    rows = made_rows({("a", "1"): better, ("b", "1"): [50.0, 51.0, 52.0]})
    rule = {"kind": "difference", "of": {"method": "a", "lr": 1}, "minus": {"method": "b", "lr": 1}, "least": 5}
    assert claims.judge({"says": "", "rule": rule}, rows).verdict == verdict


def test_a_place_that_names_not_all_axes_is_the_mean_over_the_others():
    """At each seed; a seed of which a training is missing does not count."""
    better = {("a", "1"): [60.0, 61.0, 99.0], ("a", "2"): [50.0, 51.0]}
    rows = made_rows(better | {("b", "1"): [50.0, 50.0, 50.0], ("b", "2"): [50.0, 50.0, 50.0]})
    rule = {"kind": "difference", "of": {"method": "a"}, "minus": {"method": "b"}, "least": 5}
    verdict = claims.judge({"says": "", "rule": rule}, rows)
    assert verdict.verdict == "confirmed" and verdict.evidence.startswith("+5.50 points, +5.00 to +6.00 (2 seeds)")


@pytest.mark.parametrize(
    ("plain", "rescued", "verdict"),
    [
        ([10.0, 10.0], [59.0, 59.5], "confirmed"),
        ([10.0, 10.0], [50.0, 51.0], "partly"),
        ([10.0, 30.0], [59.0, 59.5], "not confirmed"),
    ],
)
def test_a_rescue_needs_a_rate_at_which_every_seed_of_the_other_crashes(plain, rescued, verdict):
    rows = made_rows(
        {("plain", "1"): [60.0, 60.0], ("plain", "2"): plain, ("a", "1"): [40.0, 41.0], ("a", "2"): rescued}
    )
    rule = {"kind": "rescue", "axis": "method", "over": "lr", "fails": "plain", "hold": ["a"], "points": 2}
    assert claims.judge({"says": "", "rule": rule}, rows).verdict == verdict


def test_a_rescuer_must_be_as_good_as_the_other_at_its_best_rate():
    rows = made_rows({("plain", "1"): [60.0], ("plain", "2"): [10.0], ("a", "1"): [40.0], ("a", "2"): [40.0]})
    rule = {"kind": "rescue", "axis": "method", "over": "lr", "fails": "plain", "hold": ["a"], "points": 2}
    assert claims.judge({"says": "", "rule": rule}, rows).verdict == "partly"
    assert claims.judge({"says": "", "rule": rule | {"hold": ["b"]}}, rows).verdict == "not yet run"


def test_a_rescue_needs_several_seeds_at_one_rate_only():
    rows = made_rows(
        {
            (name, lr): [10.0 if name == "plain" else 60.0] * seeds
            for name in ("plain", "a")
            for lr, seeds in (("1", 2), ("2", 1))
        }
        | {("plain", "0"): [60.0, 60.0]}
    )
    rule = {"kind": "rescue", "axis": "method", "over": "lr", "fails": "plain", "hold": ["a"], "points": 2}
    assert claims.judge({"says": "", "rule": rule}, rows).verdict == "confirmed"


def test_a_rescue_on_one_seed_is_not_yet_confirmed():
    crashing = {("plain", "1"): [60.0, 60.0], ("plain", "2"): [10.0, 10.0]}
    rows = made_rows(crashing | {("a", "1"): [60.0], ("a", "2"): [60.0]})
    rule = {"kind": "rescue", "axis": "method", "over": "lr", "fails": "plain", "hold": ["a"], "points": 2}
    found = claims.judge({"says": "", "rule": rule}, rows)
    assert found.verdict == "not yet run" and found.evidence.startswith("too few seeds; best means")


def test_a_run_that_diverged_counts_as_a_crash_in_a_difference():
    rows = made_rows({("a", "1"): [50.0, 50.0], ("b", "1"): [45.0, 45.0]})
    rows[2]["top1"] = rows[3]["top1"] = ""
    rule = {"kind": "difference", "of": {"method": "a"}, "minus": {"method": "b"}, "least": 30}
    found = claims.judge({"says": "", "rule": rule}, rows)
    assert (found.verdict, found.evidence[:13]) == ("confirmed", "+50.00 points")


def test_a_difference_may_be_one_of_losses():
    rows = made_rows({("a", "1"): [50.0, 50.0], ("b", "1"): [50.0, 50.0]})
    for row, loss in zip(rows, ("1.0", "1.2", "1.5", "1.6"), strict=True):
        row["last_loss"] = loss
    rule = {"kind": "difference", "column": "last_loss", "of": {"method": "b"}, "minus": {"method": "a"}, "least": 0}
    assert claims.judge({"says": "", "rule": rule}, rows).evidence == "+0.45, +0.40 to +0.50 (2 seeds)"


@pytest.mark.parametrize(
    ("means", "shown"),
    [
        ([50.0, 60.0, 59.0, 10.0], "1.2"),  # 0.2 of the first octave, the second, 1/49 of the third
        ([60.0, 59.0, 59.0, 58.0], "≥ 3.0"),
        ([10.0, 60.0, 10.0, 10.0], "0.1"),
        ([10.0, 10.0, 10.0, 60.0], "≥ 0.0"),
    ],
)
def test_the_width_of_good_rates_is_interpolated(means, shown):
    assert str(width.width([1e-3, 2e-3, 4e-3, 8e-3], means)) == shown


def test_only_rows_that_were_run_at_every_rate_have_a_width():
    """Nor has one whose runs crash at every rate."""
    methods, rates = {"sgd": (), "adamw": (), "lion": ()}, {"1e-3": (), "2e-3": ()}
    study = replace(read_study("replacements"), axes={"method": methods, "lr": rates})
    tops = {("sgd", "1e-3"): 50.0, ("sgd", "2e-3"): 50.0, ("adamw", "1e-3"): 50.0}
    rows = made_rows({place: [top1] for place, top1 in (tops | {("lion", rate): 14.0 for rate in rates}).items()})
    assert {place: str(value) for place, value in width.widths(study, rows).items()} == {("sgd",): "≥ 1.0"}
    assert width.widths(replace(study, axes={"lr": rates, "method": methods}), rows) == {}


def test_an_interval_of_equal_values_is_a_point_and_a_wider_spread_is_wider():
    assert claims.interval([3.0, 3.0, 3.0]) == (3.0, 3.0)
    low, high = claims.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert 1.0 <= low < 2.5 and 3.5 < high <= 5.0


def test_an_interval_holds_95_percent_of_the_resampled_means():
    draw = np.random.default_rng(0)
    values = draw.exponential(size=100)
    low, high = np.percentile(draw.choice(values, (10_000, 100)).mean(1), [2.5, 97.5])
    assert claims.interval(values.tolist()) == pytest.approx((low, high), abs=0.1 * (high - low) / 4)


def test_an_unknown_rule_is_refused():
    with pytest.raises(UserError, match="'better' is unknown"):
        claims.judge({"says": "", "rule": {"kind": "better"}}, [])
