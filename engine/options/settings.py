"""Turn the config that Hydra composed into the settings of a run: fill in recipe, names and paths, refuse mistakes."""

from collections.abc import Iterable, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from engine.credentials import refuse_secrets
from engine.errors import UserError
from engine.options.arguments import texts_by_name
from engine.options.config import EvalConfig, RunConfig, TrainConfig
from engine.options.names import output_of, set_name
from engine.options.paths import resolve_paths
from engine.options.plain import as_container, flatten
from engine.options.recipe import set_recipe
from engine.options.rules import check
from engine.options.timm_registration import apply_registration
from models import FAMILIES, ModelConfig, refuse_unknown


def train_settings(
    composed: DictConfig, choices: dict[str, Any], overrides: Iterable[str], swept: Sequence[str] = ()
) -> TrainConfig:
    """Return the settings of a training run.

    Args:
        composed: the config from Hydra.
        choices: the chosen file of each config group.
        overrides: the options that the user typed.
        swept: those that differ between the runs of a sweep or job array. They become a part of the run's name.

    Raises:
        UserError: naming the first invalid option.
        ModelError: if no model has the chosen name.
    """
    _refuse_ending(choices)
    set_recipe(composed, choices)
    set_name(composed, choices, swept)
    resolve_paths(composed)
    settings = _checked(composed)
    assert isinstance(settings, TrainConfig)
    _refuse_no_family(settings)
    _refuse_new_name(settings, overrides)
    return settings


def eval_settings(
    composed: DictConfig, trained: dict[str, Any] | None, overrides: Iterable[str], swept: Sequence[str] = ()
) -> EvalConfig:
    """Return the settings of an evaluation.

    For a checkpoint of this project, model, data and precision come from its run, unless the user chose others with
    ``model=``, ``data=`` and so on. For other weights, images are prepared as the model's timm registration says,
    unless the user typed ``data=``. Single options that the user typed, such as ``data.crop``, override both.

    Args:
        composed: the config from Hydra.
        trained: the content of a checkpoint of this project; None for other weights.
        overrides: the options that the user typed.
        swept: those that differ between the evaluations of a sweep or job array. Each evaluation writes its own files.

    Raises:
        UserError: naming the first invalid option.
        ModelError: if no model has the chosen name.
    """
    typed = set(texts_by_name(overrides))
    for option in ("output", "predictions"):
        if composed[option] is not None:
            composed[option] = output_of(option, composed[option], swept)
    if trained is not None:
        if "model" not in typed:
            _take_model(composed, trained, typed)
        if "data" not in typed:
            _take_data(composed, trained, typed)
        for key in ("amp", "channels_last"):
            if key not in typed:
                composed[key] = trained["config"].get(key, composed[key])
    elif "model" not in typed and OmegaConf.is_missing(composed.model, "name"):
        what = f"{composed.checkpoint} holds only weights" if composed.checkpoint else "benchmark=true needs a model"
        raise UserError(f"{what}: add model=NAME, such as model=deit_small")
    elif not OmegaConf.is_missing(composed.model, "name"):
        refuse_unknown(composed.model.name)
        apply_registration(composed, typed)
    settings = _checked(composed)
    assert isinstance(settings, EvalConfig)
    refuse_unknown(settings.model.name)
    return settings


def _refuse_ending(choices: dict[str, Any]) -> None:
    """Refuse ``experiment=quickstart.yaml``, which Hydra reads: the run would have another name and no reference."""
    for group, name in choices.items():
        if isinstance(name, str) and name.endswith(".yaml"):
            raise UserError(f"{group}={name} has an ending: type {group}={name.removesuffix('.yaml')}")


def _refuse_no_family(settings: RunConfig) -> None:
    """Refuse a file of ``conf/model/`` that does not say which family's options its model has."""
    if type(settings.model) is ModelConfig:
        raise UserError(
            f"the file of {settings.model.name} in conf/model/ names no family: begin it with 'defaults: "
            f"[/schema/model/FAMILY@_here_, _self_]', where FAMILY is one of {', '.join(FAMILIES)}"
        )


def _refuse_new_name(settings: RunConfig, overrides: Iterable[str]) -> None:
    """Refuse ``model.name`` together with another model's options, because it would only rename that other model."""
    if "model.name" in texts_by_name(overrides) and not isinstance(settings.model, FAMILIES["timm"]):
        name = settings.model.name
        raise UserError(f"model.name={name} does not choose a model: set model={name}, or model=timm model.name={name}")


def _checked(composed: DictConfig) -> RunConfig:
    """Convert the composed config to objects, and check them against the rules of their classes."""
    if missing := sorted(OmegaConf.missing_keys(composed)):
        raise UserError(f"{missing[0]} is not set: add {missing[0]}=… to the command")
    settings = OmegaConf.to_object(composed)
    assert isinstance(settings, RunConfig)
    values = flatten(as_container(settings))
    refuse_secrets(values.items())
    # With +name=value, Hydra adds options that do not exist in the config classes.
    if added := sorted(flatten(as_container(composed)).keys() - values.keys()):
        raise UserError(f"there is no option '{added[0]}': --help lists all")
    check(settings)
    return settings


def _take_model(composed: DictConfig, trained: dict[str, Any], typed: set[str]) -> None:
    """Replace the options of the model by those of the checkpoint ``trained``, except those that the user typed."""
    kept = _typed_in("model", composed, typed)
    if "data.crop" in typed:
        kept.setdefault("img_size", None)  # the image size follows the crop
    OmegaConf.set_struct(composed, False)  # another family has other options
    known = OmegaConf.structured(FAMILIES[trained["family"]])
    composed.model = OmegaConf.merge(known, trained["config"]["model"], kept)


def _take_data(composed: DictConfig, trained: dict[str, Any], typed: set[str]) -> None:
    """Replace the options of the images by those of the checkpoint ``trained``, except those that the user typed.

    The folder of the index and the backend also stay, because they belong to this machine and not to the training.
    """
    data, before = composed.data, trained["config"]["data"]
    kept = _typed_in("data", composed, typed) | {"index_dir": data.index_dir, "backend": data.backend}
    if before["name"] == "imagenet" and data.root is not None:
        kept["root"] = data.root  # set by IMAGENET_DIR
    if before["resize"] is not None and "data.crop_ratio" in typed:
        kept.setdefault("resize", None)
    elif before["resize"] is not None and "data.crop" in typed:  # keep the ratio of crop to resize
        kept.setdefault("resize", round(before["resize"] * data.crop / before["crop"]))
    OmegaConf.set_struct(composed, False)
    composed.data = OmegaConf.merge(data, before, kept)


def _typed_in(group: str, composed: DictConfig, typed: set[str]) -> dict[str, Any]:
    """Return the options of a group that the user typed, with their values."""
    return {key: composed[group][key] for key in (t.split(".")[1] for t in typed if t.startswith(f"{group}."))}
