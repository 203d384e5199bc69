"""From what the user typed to the settings of a run: names filled in, mistakes refused."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from engine.config import EvalConfig, RunConfig, TrainConfig
from engine.errors import UserError
from engine.names import output_of, set_name
from engine.options import check
from engine.paths import resolve_paths
from engine.registered import take_registered
from models import FAMILIES, ModelConfig, refuse_unknown


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
    refuse_unknown(settings.model.name)
    return settings


def _refuse_new_name(settings: RunConfig, overrides: Iterable[str]) -> None:
    """A model's name beside the sizes of another would train the other under that name."""
    typed = any(override.lstrip("+").startswith("model.name=") for override in overrides)
    if typed and type(settings.model) not in (ModelConfig, FAMILIES["timm"]):
        name = settings.model.name
        raise UserError(f"model.name={name} does not choose a model: set model={name}, or model=timm model.name={name}")


def _checked(composed: DictConfig) -> RunConfig:
    """Composed options as objects that keep to the rules of their classes."""
    if missing := sorted(OmegaConf.missing_keys(composed)):
        raise UserError(f"{missing[0]} is not set: add {missing[0]}=… to the command")
    settings = OmegaConf.to_object(composed)
    assert isinstance(settings, RunConfig)
    # Hydra lets +name=value add an option that nothing reads.
    if added := sorted(set(flatten(_container(composed))) - set(flatten(as_container(settings)))):
        raise UserError(f"there is no option '{added[0]}': --help lists all")
    check(settings)
    return settings


def _take(composed: DictConfig, group: str, trained: dict[str, Any], typed: set[str], family: str) -> None:
    """Put the trained settings of a group in place of the composed ones, except for what the user typed.

    Where images and their index lie and who reads them is a matter of this machine, not of the training.
    """
    here = {"index_dir", "backend"} if group == "data" else set()
    if group == "data" and trained["name"] == "imagenet" and composed.data.root is not None:
        here.add("root")  # IMAGENET_DIR
    kept = {key: composed[group][key] for key in here | {t.split(".")[1] for t in typed if t.startswith(f"{group}.")}}
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


def defaults_of(settings: TrainConfig) -> dict[str, Any]:
    """The default of every option that has one, for settings of the same kinds of model, optimizer and so on."""
    values: dict[str, Any] = vars(settings)
    groups: dict[str, Any] = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(value):
            kind: Any = type(value)
            groups[name] = kind()
    container: Any = OmegaConf.to_container(OmegaConf.structured(TrainConfig(**groups)))
    return {key: value for key, value in flatten(container).items() if value != MISSING}


def write_settings(settings: RunConfig, path: Path) -> None:
    """Write settings as YAML, so that a reader sees either none or all of it."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(OmegaConf.to_yaml(OmegaConf.create(as_container(settings))), encoding="utf-8")
    os.replace(scratch, path)
