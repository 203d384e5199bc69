"""References: which runs they are for, the curve of a run, and the verdict."""

from functools import partial
from pathlib import Path

import pytest

from engine.errors import UserError
from engine.options.config import CONF
from engine.options.plain import as_container, defaults_of, differences
from engine.reference import Curve, Reference, setting_of, unlike
from tests.runs import cached_settings, settings

STEPS = 10
quickstart = partial(cached_settings, "experiment=quickstart")


def metrics(top1: list[float | None]) -> list[dict[str, object]]:
    """The lines of a run with two training lines and a validation for each epoch."""
    lines: list[dict[str, object]] = []
    for epoch, value in enumerate(top1):
        for step in (4, STEPS):  # 4 steps with loss 1, then 6 with loss 2: their mean is 1.6
            done = epoch * STEPS + step
            lines.append({"split": "train", "step": done, "epoch": done / STEPS, "loss": 1.0 if step == 4 else 2.0})
        lines.append({"split": "val", "step": done, "epoch": done / STEPS, "top1": value, "images": 20})
    return lines


def a_reference(*curves: list[float]) -> Reference:
    epochs = range(1, len(curves[0]) + 1)
    return Reference(
        Path("x.json"),
        {"epochs": 5},
        [Curve(dict(zip(epochs, c, strict=True)), dict.fromkeys(epochs, 1.0)) for c in curves],
    )


def verdict(reference: Reference, top1: list[float | None]) -> str:
    return reference.verdict(Curve(dict(enumerate(top1, 1)), {}))


def test_the_loss_of_an_epoch_is_the_mean_over_its_steps_however_often_it_was_read():
    curve = Curve.of(metrics([50.0, 60.0]))
    assert curve == Curve({1: 50.0, 2: 60.0}, {1: pytest.approx(1.6), 2: pytest.approx(1.6)})
    rarely = [{"split": "train", "step": 10, "epoch": 1.0, "loss": 1.6}, *metrics([50.0])[2:]]
    assert Curve.of(rarely) == Curve({1: 50.0}, {1: pytest.approx(1.6)})


def test_a_validation_inside_an_epoch_is_no_point_of_the_curve():
    inside = {"split": "val", "step": 13, "epoch": 1.3, "top1": 55.0, "images": 20}
    assert Curve.of([*metrics([50.0]), inside]).top1 == {1: 50.0}


def test_what_is_not_finite_is_none():
    lines = metrics([None])
    lines[0]["loss"] = None
    assert Curve.of(lines) == Curve({1: None}, {1: None})


def test_a_reference_of_one_run_tolerates_two_points():
    reference = a_reference([50.0] * 5)
    assert verdict(reference, [48.0]) == (
        "on track: after epoch 1 of 5 top-1 is 48.00 %, the reference had 50.00 %, "
        "one run; up to 2.0 points apart is on track"
    )
    assert verdict(reference, [47.9]).startswith("behind by 2.1 points: after epoch 1 of 5")
    assert verdict(reference, [52.1]).startswith("ahead by 2.1 points: after epoch 1 of 5")


def test_a_reference_of_several_runs_tolerates_their_spread_but_at_least_one_point():
    assert [a_reference([50.0, 60.0], [54.0, 60.2]).tolerance(epoch) for epoch in (1, 2)] == [4.0, 2.0]
    reference = a_reference([50.0, 60.0], [54.0, 60.2], [52.0, 60.1])
    assert [reference.tolerance(epoch) for epoch in (1, 2)] == [4.0, 1.0]
    assert verdict(reference, [48.0]).startswith("on track") and verdict(reference, [47.9]).startswith("behind")
    assert verdict(reference, [48.0, 59.0]) == (
        "behind by 1.1 points: after epoch 2 of 5 top-1 is 59.00 %, the reference had 60.10 %, "
        "60.00 to 60.20 % in 3 runs; up to 1.0 points apart is on track"
    )


def test_a_run_that_loses_twice_in_a_row_is_falling_back():
    reference = a_reference([50.0, 60.0, 70.0, 75.0, 80.0])
    falling = verdict(reference, [49.0, 59.0, 69.5, 73.0, 76.9])
    assert falling.startswith(
        "behind by 3.1 points, and falling back since epoch 3: after epoch 5 of 5 top-1 is 76.90 %"
    )
    assert "falling" not in verdict(reference, [49.0, 59.0, 65.0, 72.0, 76.9])  # once


def test_epochs_that_only_one_of_them_has_are_left_out():
    reference = a_reference([50.0, 60.0, 70.0])
    assert verdict(reference, [50.0, None]).startswith("on track: after epoch 1 of 5")
    with pytest.raises(UserError, match=r"no validation yet after one of the epochs of x\.json: 1, 2, 3"):
        reference.verdict(Curve({4: 50.0}, {}))


@pytest.mark.parametrize(
    "free", ["seed=7", "data.backend=torch", "name=b", "device=cpu", "log_every=3", "max_steps=20"]
)
def test_what_does_not_change_the_curve_may_differ(free):
    assert differences(setting(), setting(free)) == []


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ("epochs=8", "epochs 9 → 8"),
        ("optim.lr=0.001", "optim.lr 0.004 → 0.001"),
        ("batch_size=128", "batch_size 64 → 128"),
        ("augment.hflip=0", "augment.hflip 0.5 → 0.0"),
        ("model.embed_dim=80", "model.embed_dim 40 → 80"),
        ("optim=lion", "optim.name adamw → lion"),
    ],
)
def test_a_run_of_another_recipe_differs(other, complaint):
    assert complaint in differences(setting(), setting(other))


def setting(*overrides: str, steps: int = 156, images: int = 2000) -> dict[str, object]:
    return setting_of(as_container(quickstart(*overrides)), steps, images)


def test_a_run_on_other_images_differs():
    assert differences(setting(), setting(steps=20, images=300)) == [
        "steps_per_epoch 156 → 20",
        "validation_images 2000 → 300",
    ]


def test_an_option_that_was_added_later_had_its_default():
    old = as_container(quickstart())
    del old["optim"]["power_iterations"], old["channels_last"]
    assert differences(setting_of(old, 156, 2000), setting()) == []


def test_a_reference_from_before_an_option_was_added_still_fits():
    old = setting()
    del old["augment.random_erasing"], old["model.depths"]
    reference = Reference(Path("a.json"), old, [])
    plain = quickstart()
    assert unlike(reference, setting()) == ["model.depths None → [1, 2]"]  # not the default, also of its class
    assert unlike(reference, setting("augment.random_erasing=0.25"), defaults_of(plain))[0].startswith("augment.random")


def test_every_committed_reference_fits_its_experiment_or_recipe():
    files = sorted(CONF.glob("*/*.json"))
    assert CONF / "experiment/quickstart.json" in files
    for file in files:
        reference = Reference.read(file)
        steps, images = reference.setting["steps_per_epoch"], reference.setting["validation_images"]
        command = f"{'model' if file.parent.name == 'recipe' else 'experiment'}={file.stem}"
        today = settings(command)
        found = setting_of(as_container(today), steps, images)
        differing = unlike(reference, found, defaults_of(today))
        assert differing == [], f"write {file} again, from a run of today's {command}"
