"""Recipes: every run has a recipe with a name, and reports the name."""

import re
from pathlib import Path

import pytest
import timm

from engine.errors import UserError
from engine.options.compose import settings_of
from engine.options.recipe import described, general_recipes, implied_recipe
from optim.build import peak_lr
from scripts.model_table import names
from tests.runs import PROJECT, run_here, settings

LISTED = re.findall(r"^\| `(\w+)` \|", (PROJECT / "docs/models.md").read_text(), re.MULTILINE)
OURS = sorted(path.stem for path in (PROJECT / "conf/model").glob("*.yaml") if path.stem != "timm")


@pytest.mark.parametrize("model", OURS)
def test_every_model_has_a_recipe_of_its_own(model):
    assert any((PROJECT / f"conf/{kind}/{model}.yaml").is_file() for kind in ("recipe", "experiment"))


def test_the_table_lists_the_models_for_large_images():
    assert set(LISTED) == {name for name in names() if "=" not in name} <= set(OURS)


def test_a_model_without_a_recipe_does_not_start():
    with pytest.raises(UserError) as refused:
        settings_of(["model=timm", "model.name=resnet50"])
    assert str(refused.value) == (
        "model.name=resnet50 has no recipe of its own: add recipe=cswin, recipe=deit, recipe=lipsformer, "
        "recipe=plain or recipe=swin"
    )


def test_deit3_of_timm_does_not_take_the_recipe_of_deit_but_names_its_own():
    with pytest.raises(UserError, match="has no recipe of its own: add experiment=deit3_small, or add recipe=cswin"):
        settings_of(["model=timm", "model.name=deit3_base_patch16_224"])
    cfg = settings_of(["model=timm", "model.name=deit3_base_patch16_224", "experiment=deit3_small"])
    assert (cfg.model.name, cfg.loss, cfg.optim.name) == ("deit3_base_patch16_224", "bce", "lamb")


def test_a_model_whose_recipe_is_an_experiment_names_it():
    with pytest.raises(UserError, match="vit5_base has no recipe of its own: use experiment=vit5_base, or add "):
        settings_of(["model=vit5_base"])
    for name in ("vit5_small", "vit5_base", "vit5_small_paper"):
        cfg = settings_of([f"experiment={name}"])
        assert (cfg.recipe, cfg.loss, cfg.optim.name) == (f"experiment/{name}", "bce", "lamb")


@pytest.mark.parametrize("file", sorted((PROJECT / "conf/experiment").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_experiment_has_a_recipe(file):
    assert settings_of([f"experiment={file.stem}"]).recipe


def test_the_chosen_recipe_s_numbers_are_taken_and_named():
    cfg = settings_of(["model=timm", "model.name=resnet50", "recipe=deit"])
    assert (cfg.recipe, cfg.optim.betas, cfg.augment.repeats) == ("recipe/deit", [0.9, 0.999], 3)
    assert described(cfg) == "conf/recipe/deit.yaml"


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("vit_small_patch16_224", "deit"),
        ("deit_small_patch16_224", "deit"),
        ("deit3_small_patch16_224", None),
        ("swin_tiny_patch4_window7_224", "swin"),
        ("resnet50", None),
        ("maxvit_tiny_tf_224", None),
    ],
)
def test_a_model_of_timm_takes_its_family_s_recipe(name, recipe):
    assert implied_recipe(["model=timm", f"model.name={name}"]) == ([f"recipe={recipe}"] if recipe else [])
    for chosen in ("recipe=plain", "experiment=quickstart"):
        assert implied_recipe(["model=timm", f"model.name={name}", chosen]) == []


def test_what_was_changed_in_a_recipe_is_said():
    cfg = settings_of(
        ["model=deit_small", "epochs=100", "optim.lr=1e-3", "model.drop_path_rate=0.2", "augment.mixup=0"]
    )
    assert described(cfg) == (
        "conf/recipe/deit_small.yaml with augment.mixup=0.0 (0.8), optim.lr=0.001 (null), epochs=100 (300), "
        "model.drop_path_rate=0.2 (0.1)"
    )


def test_an_experiment_that_sets_all_itself_is_the_recipe(small_images, tmp_path: Path):
    experiment = "# @package _global_\ndefaults:\n  - override /model: timm\n  - override /recipe: null\n"
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(
        f"{experiment}model:\n  name: test_vit\nepochs: 1\noptim:\n  betas: [0.5, 0.5]\n"
    )
    options = ("experiment=mine", "data=folder", f"data.root={small_images}", "data.crop=32", "max_steps=1", "amp=fp32")
    more = ("batch_size=16", "augment.mix_group=8", "logger=none", "device=cpu", "monitor.every=0", "max_workers=0")
    done = run_here("train.py", f"--config-dir={tmp_path}", *options, *more, "data.backend=torch", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"recipe: {tmp_path}/experiment/mine.yaml" in done.stdout


def test_the_small_lipsformer_s_recipe_is_the_options_defaults():
    """Before the model had a recipe file, it was trained with these defaults."""
    cfg = settings("model=lipsformer_swin_mini")
    assert (cfg.epochs, cfg.batch_size, cfg.ema, cfg.model.drop_path_rate) == (300, 1024, None, 0.0)
    assert (cfg.optim.base_lr, cfg.optim.betas, cfg.optim.light_decay, cfg.optim.clip) == (5e-4, [0.9, 0.98], 5e-4, 5.0)
    assert (cfg.augment.auto_augment, cfg.augment.mixup, cfg.augment.random_erasing, cfg.augment.label_smoothing) == (
        None,
        0.0,
        0.0,
        0.1,
    )


def test_general_recipes_are_no_single_model_s():
    assert general_recipes() == ["cswin", "deit", "lipsformer", "plain", "swin"]


RAND_AUGMENT, DEIT = "rand-m9-mstd0.5-inc1", [0.9, 0.999]
# What the papers and the released code say: epochs, batch, peak and last learning rate, Adam's betas, weight decay and
# that of biases and norms, clipping, moving average, stochastic depth.
TRAINED = {
    **dict.fromkeys(
        ("model=deit_tiny", "model=deit_small", "model=deit_base", "model=deit_small_convstem"),
        (300, 1024, 1e-3, 1e-5, DEIT, 0.05, 0.0, None, None, 0.1),
    ),
    "experiment=deit3_small": (800, 2048, 4e-3, 1e-5, DEIT, 0.05, 0.0, 1.0, None, 0.05),
    "model=swin_tiny": (300, 1024, 1e-3, 1e-5, DEIT, 0.05, 0.0, 5.0, None, 0.2),
    "model=swin_small": (300, 1024, 1e-3, 1e-5, DEIT, 0.05, 0.0, 5.0, None, 0.3),
    "model=swin_base": (300, 1024, 1e-3, 1e-5, DEIT, 0.05, 0.0, 5.0, None, 0.5),
    "model=cswin_tiny": (310, 2048, 2e-3, 1e-5, DEIT, 0.05, 0.0, None, 0.99984, 0.2),
    "model=cswin_small": (310, 2048, 2e-3, 1e-5, DEIT, 0.05, 0.0, None, 0.99984, 0.4),
    "model=cswin_base": (310, 1024, 1e-3, 1e-5, DEIT, 0.1, 0.0, None, 0.99992, 0.5),
    "model=lipsformer_swin_tiny": (300, 1024, 1e-3, 1e-5, [0.9, 0.98], 0.05, 5e-4, 5.0, None, 0.2),
    "model=lipsformer_cswin_tiny": (300, 1024, 1e-3, 1e-5, [0.9, 0.98], 0.05, 5e-4, 5.0, None, 0.2),
    "model=lipsformer_swin_small": (300, 1024, 1e-3, 1e-5, [0.9, 0.98], 0.05, 5e-4, 5.0, None, 0.3),
    "model=lipsformer_swin_base": (300, 1024, 5e-4, 1e-5, [0.9, 0.998], 0.05, 5e-4, 5.0, None, 0.5),
    "model=vit_small_sincos": (90, 1024, 1e-3, 0.0, DEIT, 0.1, 0.0, 1.0, None, 0.0),
    "experiment=vit5_small": (800, 2048, 4e-3, 1e-5, DEIT, 0.05, 0.0, 1.0, None, 0.05),
    "experiment=vit5_base": (800, 2048, 3e-3, 1e-5, DEIT, 0.05, 0.0, 1.0, None, 0.2),
}
# The policy, colour jitter, mixup, cutmix, erasing, label smoothing, repeats, the smallest crop.
STRONG = (RAND_AUGMENT, 0.4, 0.8, 1.0, 0.25, 0.1, 1, 0.08)
AUGMENTED = {
    **{f"model=deit_{size}": (*STRONG[:6], 3, 0.08) for size in ("tiny", "small", "base", "small_convstem")},
    "experiment=deit3_small": ("3a", 0.3, 0.8, 1.0, 0.0, 0.0, 3, 0.08),
    "model=vit_small_sincos": ("rand-m10-n2-p1", 0.0, 0.2, 0.0, 0.0, 0.0, 1, 0.05),
    "experiment=vit5_small": ("3a", 0.3, 0.8, 1.0, 0.0, 0.0, 3, 0.08),
    "experiment=vit5_base": ("3a", 0.3, 0.8, 1.0, 0.0, 0.0, 3, 0.08),
}
# The crop, the share of the image in an evaluation, the interpolation.
SEEN = {
    **{f"model=cswin_{size}": (224, 0.9, "random") for size in ("tiny", "small", "base")},
    "model=vit_small_sincos": (224, 0.875, "bilinear"),
    "experiment=deit3_small": (224, 1.0, "bicubic"),
    "experiment=vit5_small": (224, 1.0, "bicubic"),
    "experiment=vit5_base": (192, 1.0, "bicubic"),
}
# Epochs and first rate of the warm-up, whether it precedes the schedule, whether rates change once an epoch, the delay.
WARM_UPS = {
    **{f"{model}_paper": (5, 1e-6, False, True, 1) for model in ("deit_small", "deit3_small", "vit5_small")},
    **{f"cswin_{size}_paper": (20, 1e-6, False, True, 0) for size in ("tiny", "small", "base")},
    "swin_tiny_paper": (20, 1e-6, False, False, 0),
    "vit_small_90_paper": (10_000 / 1238, 0.0, True, False, 0),  # 10,000 steps
}


@pytest.mark.parametrize("chosen", TRAINED)
def test_a_recipe_has_the_numbers_of_its_paper(chosen):
    cfg = settings_of([chosen])
    optim, augment = cfg.optim, cfg.augment
    last = optim.base_min_lr * cfg.batch_size / 512 if optim.min_lr is None else optim.min_lr
    adam = (optim.betas, optim.weight_decay, optim.light_decay, optim.clip)
    found = (cfg.epochs, cfg.batch_size, peak_lr(optim, cfg.batch_size), last, *adam, cfg.ema)
    assert (*found, cfg.model.drop_path_rate) == TRAINED[chosen]
    mixed = (augment.auto_augment, augment.color_jitter, augment.mixup, augment.cutmix)
    rest = (augment.random_erasing, augment.label_smoothing, augment.repeats, augment.scale[0])
    assert (*mixed, *rest) == AUGMENTED.get(chosen, STRONG)
    assert (cfg.data.crop, cfg.data.crop_ratio, cfg.data.interpolation) == SEEN.get(chosen, (224, 0.875, "bicubic"))
    assert cfg.schedule.warmup_epochs == 0 and optim.eps == 1e-8


@pytest.mark.parametrize("experiment", sorted(file.stem for file in (PROJECT / "conf/experiment").glob("*_paper.yaml")))
def test_an_experiment_with_warm_up_warms_up_as_its_paper_does(experiment):
    schedule = settings_of([f"experiment={experiment}"]).schedule
    found = (schedule.warmup_lr, schedule.warmup_prefix, schedule.t_in_epochs, schedule.lag_epochs)
    assert (pytest.approx(schedule.warmup_epochs, rel=1e-4), *found) == WARM_UPS[experiment]


@pytest.mark.parametrize("model", [name for name in OURS if not name.startswith("swin_")])
def test_weights_from_elsewhere_get_images_as_the_recipe_prepares_them(model):
    """eval.py takes the registration of a model for weights that are no run's."""
    chosen = "model" if (PROJECT / f"conf/recipe/{model}.yaml").is_file() else "experiment"
    data, known = settings_of([f"{chosen}={model}"]).data, timm.get_pretrained_cfg(model)
    evaluated = data.interpolation.replace("random", "bicubic")
    assert (known.crop_pct, known.interpolation) == (data.crop_ratio, evaluated)
    assert (list(known.mean), list(known.std)) == (data.mean, data.std)


def test_only_the_recipe_of_google_crops_as_tensorflow_does():
    for name, expected in (("deit_small", ([3 / 4, 4 / 3], "area")), ("vit_small_sincos", ([0.75, 1.33], "height"))):
        augment = settings_of([f"model={name}"]).augment
        assert (augment.ratio, augment.crop_by) == expected


def test_a_model_with_batch_norm_names_the_images_that_share_its_statistics():
    assert settings_of(["model=deit_small_convstem"]).micro_batch_size == 128
    assert settings_of(["model=deit_small"]).micro_batch_size == "auto"


def test_cifar10_has_the_published_colours_and_its_own_size():
    data = settings_of(["experiment=lab"]).data
    assert (data.name, data.mean, data.std) == ("cifar10", [0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616])
    assert (data.crop, data.resize) == (32, 32)


@pytest.mark.parametrize("experiment", ["crash_adamw", "crash_adamw2", "lab"])
def test_nothing_but_the_optimizer_and_the_axes_of_a_study_can_cause_a_crash(experiment):
    cfg = settings_of([f"experiment={experiment}"])
    augment = cfg.augment
    off = (augment.color_jitter, augment.mixup, augment.cutmix, augment.random_erasing, cfg.model.drop_path_rate)
    assert not any(off) and (augment.auto_augment, augment.repeats, augment.scale) == (None, 1, [0.9, 1.0])
    assert (cfg.schedule.warmup_epochs, cfg.ema, cfg.amp) == (0, None, "fp32")
