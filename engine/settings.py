"""From what the user typed to the settings of a run: names filled in, mistakes refused."""

import difflib
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from data import policies
from engine.config import EvalConfig, RunConfig, TrainConfig
from engine.errors import UserError
from engine.names import output_of, set_name
from engine.paths import resolve_paths
from engine.registered import take_registered
from models import FAMILIES, ModelConfig, refuse_unknown

CHOICES = {
    "device": ("auto", "cpu", "cuda"),
    "amp": ("bf16", "fp16", "fp32"),
    "data.backend": ("auto", "dali", "torch"),
    "data.interpolation": ("bicubic", "bilinear", "random"),
    "data.crop_mode": ("center", "squash"),
    "data.on_bad_image": ("error", "skip"),
    "eval.weights": ("ema", "raw"),
    "optim.clip_mode": ("norm", "value", "agc"),
    "logger.name": ("wandb", "none"),
    "logger.mode": ("offline", "online", "auto"),
}
POSITIVE = (
    *("epochs", "max_steps", "batch_size", "micro_batch_size", "log_every", "eval_every", "eval.batch_size"),
    *(
        "data.crop",
        "data.crop_ratio",
        "data.resize",
        "data.synthetic_images",
        "data.synthetic_classes",
        "augment.mix_group",
        "augment.repeats",
        "data.subset",
    ),
    *("checkpoint.every_steps", "checkpoint.every_epochs", "checkpoint.every_minutes"),
    *("optim.lr", "optim.base_lr", "optim.eps", "optim.clip", "model.num_classes", "model.img_size"),
    *("optim.tau", "optim.power_iterations", "schedule.step_epochs", "schedule.step_factor"),
    *("schedule.timescale_epochs", "monitor.images", "benchmark_runs"),
)
NOT_NEGATIVE = (
    *("seed", "max_workers", "checkpoint.keep", "schedule.warmup_epochs", "schedule.warmup_lr", "optim.min_lr"),
    *("schedule.cooldown_epochs", "schedule.decay_epochs", "schedule.lag_epochs", "monitor.every"),
    *("optim.weight_decay", "optim.light_decay", "augment.mixup", "augment.cutmix"),
    *("augment.color_jitter", "monitor.history"),
)
NOT_IN_PROJECTS = r"/\#?%:"  # characters that Weights & Biases refuses in the name of a project
MAY_BE_INFINITE = ("optim.tau",)
LARGEST = {"seed": 2**64 - 1}  # of other whole numbers, what 64 bits with a sign hold
SHARES = (
    *("augment.hflip", "augment.mix_prob", "augment.mix_switch", "augment.erase", "augment.smoothing"),
    *("model.drop_path_rate", "data.crop_ratio", "data.subset", "data.hw_decoder_load"),
)
# Of each option that is a list: its length, whether 0 is in range, and its upper limit.
LISTS = {
    "data.mean": (3, True, 1.0),
    "data.std": (3, False, 1.0),
    "optim.betas": (2, True, 1.0),
    "augment.scale": (2, False, 1.0),
    "augment.ratio": (2, False, math.inf),
}
DECAYS = ("ema", "optim.momentum")  # at 1 nothing new would enter


def train_settings(
    composed: DictConfig, choices: dict[str, Any], overrides: Iterable[str], swept: Sequence[str] = ()
) -> TrainConfig:
    """The settings of a training run.

    Args:
        composed: what Hydra composed.
        choices: the chosen file of each config group.
        overrides: what the user typed.
        swept: those that tell the run from the others of a sweep or job array; they enter its name.

    Raises:
        UserError: naming the first option that makes no sense.
    """
    set_name(composed, choices, swept)
    resolve_paths(composed)
    settings = _checked(composed)
    assert isinstance(settings, TrainConfig)
    _refuse_new_name(settings, overrides)
    policies(settings.augment.auto, settings.augment.color_jitter, settings.data.crop)  # refuses what there is not
    return settings


def eval_settings(
    composed: DictConfig, trained: dict[str, Any] | None, overrides: Iterable[str], swept: Sequence[str] = ()
) -> EvalConfig:
    """The settings of an evaluation.

    Args:
        composed: what Hydra composed.
        trained: the checkpoint's content, where it is one of ours: its run's model and data are taken unless the
            user chose others by ``model=`` or ``data=``; single options typed beside it still count. None: bare
            weights, for which images are prepared as the model's registration says, in the same way.
        overrides: what the user typed.
        swept: those that tell the evaluation from the others of a sweep or job array; each writes its own file.

    Raises:
        UserError: naming the first option that makes no sense.
        ModelError: if no model has that name.
    """
    typed = {o.lstrip("+").split("=", 1)[0] for o in overrides}
    composed.output = output_of(composed.output, swept)
    if trained is not None:
        config = trained["config"]
        for group in ("model", "data"):
            if group not in typed:
                _take(composed, group, config[group], typed, trained["family"])
        for key in ("amp", "channels_last"):
            if key not in typed:
                composed[key] = config.get(key, composed[key])
    elif "model" not in typed and OmegaConf.is_missing(composed.model, "name"):
        what = f"{composed.checkpoint} holds weights alone" if composed.checkpoint else "benchmark=true needs a model"
        raise UserError(f"{what}: add model=NAME, such as model=deit_small")
    elif not OmegaConf.is_missing(composed.model, "name"):
        refuse_unknown(composed.model.name)
        take_registered(composed, typed)
    settings = _checked(composed)
    assert isinstance(settings, EvalConfig)
    if settings.sets.labels is not None and settings.sets.imagenet is None:
        raise UserError("sets.labels is a list for the images of sets.imagenet: add sets.imagenet=FOLDER")
    if settings.benchmark and settings.sets.folders():
        raise UserError("benchmark=true measures speed on noise, without sets.…: run the two one after the other")
    refuse_unknown(settings.model.name)
    return settings


def _refuse_new_name(settings: RunConfig, overrides: Iterable[str]) -> None:
    """A model's name beside the sizes of another would train the other under that name."""
    typed = any(override.lstrip("+").startswith("model.name=") for override in overrides)
    if typed and type(settings.model) not in (ModelConfig, FAMILIES["timm"]):
        name = settings.model.name
        raise UserError(f"model.name={name} does not choose a model: set model={name}, or model=timm model.name={name}")


def _checked(composed: DictConfig) -> RunConfig:
    """Composed options as objects, once they make sense."""
    _refuse_nonsense(composed)
    settings = OmegaConf.to_object(composed)
    assert isinstance(settings, RunConfig)
    # Hydra lets +name=value add an option that nothing reads.
    if added := sorted(set(flatten(_container(composed))) - set(flatten(as_container(settings)))):
        raise UserError(f"there is no option '{added[0]}': --help lists all")
    return settings


def _take(composed: DictConfig, group: str, trained: dict[str, Any], typed: set[str], family: str) -> None:
    """Put the trained settings of a group in place of the composed ones, except for what the user typed.

    Where images and their index lie and who reads them is a matter of this machine, not of the training.
    """
    here = {"index_dir", "backend"} if group == "data" else set()
    if group == "data" and trained["name"] == "imagenet" and composed.data.root is not None:
        here.add("root")  # IMAGENET_DIR
    kept = {key: composed[group][key] for key in here | {t.split(".")[1] for t in typed if t.startswith(f"{group}.")}}
    if trained.get("name") == "synthetic":
        kept.pop("backend", None)
    if "data.crop" in typed and group == "model":
        kept.setdefault("img_size", None)  # it follows the crop
    if group == "data" and trained["resize"] is not None:
        if "data.crop_ratio" in typed:
            kept.setdefault("resize", None)
        elif "data.crop" in typed:  # the same share of the image is seen
            kept.setdefault("resize", round(trained["resize"] * composed.data.crop / trained["crop"]))
    composed._set_flag("struct", False)
    base = OmegaConf.structured(FAMILIES[family]) if group == "model" else composed.data
    composed[group] = OmegaConf.merge(base, trained, kept)


def as_container(settings: RunConfig) -> dict[str, Any]:
    """Settings as plain dictionaries, lists, strings and numbers."""
    return _container(OmegaConf.structured(settings))


def _container(node: DictConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(node, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def write_settings(settings: RunConfig, path: Path) -> None:
    """Write settings as YAML, so that a reader sees either none or all of it."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(OmegaConf.to_yaml(OmegaConf.create(as_container(settings))), encoding="utf-8")
    os.replace(scratch, path)


def _refuse_nonsense(cfg: DictConfig) -> None:
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise UserError(f"{missing[0]} is not set: add {missing[0]}=… to the command")
    for key, allowed in CHOICES.items():
        value = OmegaConf.select(cfg, key)
        if key == "data.backend" and value == cfg.data.name == "synthetic":
            continue  # what auto was resolved to
        if value is not None and value not in allowed:
            near = difflib.get_close_matches(str(value), allowed, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose {', '.join(allowed)}"
            raise UserError(f"{key}={value} is unknown: {hint}")
    for keys, fits, what in (
        (POSITIVE, lambda v: v > 0, "more than 0"),
        (NOT_NEGATIVE, lambda v: v >= 0, "0 or more"),
        (SHARES, lambda v: 0 <= v <= 1, "between 0 and 1"),
        (DECAYS, lambda v: 0 <= v < 1, "0 or more, and less than 1"),
    ):
        for key in keys:
            value = OmegaConf.select(cfg, key)
            if value is not None and not fits(value):
                raise UserError(f"{key}={value} must be {what}")
    _refuse_endless(cfg)
    project = OmegaConf.select(cfg, "logger.project", default="")
    if len(project) > 128 or set(project) & set(NOT_IN_PROJECTS):
        raise UserError(
            f"logger.project={project} must have 128 characters at most, and none of {NOT_IN_PROJECTS}, "
            "which Weights & Biases refuses"
        )
    _refuse_sizes(cfg)


def _refuse_endless(cfg: DictConfig) -> None:
    """Numbers that are infinite, not a number, or too large for 64 bits."""
    for key, value in flatten(_container(cfg)).items():
        for number in value if isinstance(value, list) else [value]:
            if key.startswith("model.kwargs."):
                continue
            if isinstance(number, float) and math.isnan(number):
                raise UserError(f"{key}={value} is not a number")
            if isinstance(number, float) and math.isinf(number) and key not in MAY_BE_INFINITE:
                raise UserError(f"{key}={value} must be finite")
            if isinstance(number, int) and abs(number) > LARGEST.get(key, 2**63 - 1):
                raise UserError(f"{key}={value} must be {LARGEST.get(key, 2**63 - 1)} or less")


def _refuse_sizes(cfg: DictConfig) -> None:
    if cfg.data.resize is not None and cfg.data.resize < cfg.data.crop:
        raise UserError(
            f"data.resize={cfg.data.resize} is smaller than data.crop={cfg.data.crop}: "
            f"set data.resize={cfg.data.crop} or more"
        )
    if cfg.model.img_size not in (None, cfg.data.crop):
        raise UserError(
            f"model.img_size={cfg.model.img_size} differs from data.crop={cfg.data.crop}: "
            "set data.crop alone, the model follows"
        )
    _refuse_lists(cfg)
    resume = OmegaConf.select(cfg, "resume")
    if resume is not None and resume not in ("auto", "never") and not resume.endswith(".pt"):
        raise UserError(f"resume={resume} is unknown: choose auto, never, or the path of a .pt file")
    mixes = (OmegaConf.select(cfg, "augment.mixup") or 0) + (OmegaConf.select(cfg, "augment.cutmix") or 0) > 0
    micro = OmegaConf.select(cfg, "micro_batch_size")
    if mixes and micro is not None and micro < cfg.augment.mix_group:
        raise UserError(
            f"micro_batch_size={micro} is smaller than augment.mix_group={cfg.augment.mix_group}, whose images are "
            f"mixed with one another: set micro_batch_size={cfg.augment.mix_group} or more"
        )


def _refuse_lists(cfg: DictConfig) -> None:
    for key, (length, may_be_0, most) in LISTS.items():
        values = OmegaConf.select(cfg, key)
        if values is None:
            continue
        said = f"{key}={list(values)}"
        if key in ("data.mean", "data.std") and max(values, default=0) > 1:
            scaled = [round(value / 255, 4) for value in values]
            raise UserError(f"{said} is for pixels from 0 to 255; here they go from 0 to 1: set {scaled}")
        is_in_range = len(values) == length and 0 <= min(values) and max(values) <= most
        if not is_in_range or (min(values) == 0 and not may_be_0):
            least = "0 or more" if may_be_0 else "more than 0"
            limit = f", and {most:g} at most" if most < math.inf else ""
            raise UserError(f"{said} must be {length} numbers of {least}{limit}")
        if key == "optim.betas" and max(values) == 1:
            raise UserError(f"{said} must be less than 1: at 1 nothing new would enter")
        if key.startswith("augment.") and list(values) != sorted(values):
            raise UserError(f"{said} must begin with the smaller number")
