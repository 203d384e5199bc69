"""The recipe of a run: the file that its values come from, what the user changed, and what a resume may not change."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from engine.errors import UserError
from engine.options.arguments import parsed_by_name
from engine.options.config import CONF, TrainConfig
from engine.options.plain import as_container, defaults_of, differences, flatten
from engine.options.rules import declared
from engine.similar import nearest
from models import refuse_unknown

GROUPS = ("optim.", "schedule.", "augment.")  # in these groups, a recipe uses defaults for options it does not set
# A timm model whose name starts like this uses the family's recipe, unless the user chose another.
TIMM_FAMILIES = {"vit_": "deit", "deit_": "deit", "swin_": "swin", "cswin": "cswin"}
# The recipe of these is an experiment, which the user must choose.
TIMM_EXPERIMENTS = {"deit3_": "deit3_small"}


def implied_recipe(arguments: list[str]) -> list[str]:
    """Return the argument that chooses the family's recipe for a timm model, unless the user chose one."""
    typed = parsed_by_name(arguments)
    name = typed.get("model.name")
    if typed.get("model") != "timm" or not isinstance(name, str) or typed.keys() & {"recipe", "experiment"}:
        return []
    return next(([f"recipe={recipe}"] for start, recipe in TIMM_FAMILIES.items() if name.startswith(start)), [])


def set_recipe(composed: DictConfig, choices: dict[str, Any]) -> None:
    """Set ``recipe`` in the settings to the file that their values come from.

    An experiment with ``override /recipe: null`` in its defaults sets all values itself, so it counts as the recipe.

    Args:
        composed: the config from Hydra.
        choices: the chosen file of each config group.

    Raises:
        UserError: if the model has no recipe and the user chose none.
    """
    name, experiment = choices.get("recipe"), choices.get("experiment")
    if name is None and experiment is not None:
        composed.recipe = f"experiment/{experiment}"
    elif name is not None and recipe_file(f"recipe/{name}") is not None:
        composed.recipe = f"recipe/{name}"
    elif name is not None and name != choices.get("model"):  # the default is the recipe with the model's name
        raise UserError(f"recipe={name} is unknown: {nearest(name, all_recipes())}")
    elif not OmegaConf.is_missing(composed.model, "name"):  # a name that is missing has an error of its own
        refuse_unknown(composed.model.name)
        raise UserError(_without_recipe(choices["model"], composed.model.name))


def _without_recipe(chosen: str, name: str) -> str:
    """Return the message for a model that has no recipe: ``model=chosen``, whose name in timm is ``name``."""
    if chosen == "timm":
        what = f"model.name={name}"
        own = [f"add experiment={file}, or " for start, file in TIMM_EXPERIMENTS.items() if name.startswith(start)]
    else:
        what = f"model={chosen}"
        own = [f"use experiment={chosen}, or "] if recipe_file(f"experiment/{chosen}") else []
    *others, last = (f"recipe={recipe}" for recipe in general_recipes())
    return f"{what} has no recipe of its own: {''.join(own)}add {', '.join(others)} or {last}"


def general_recipes() -> list[str]:
    """Return the recipes that do not belong to a single model."""
    models = {path.stem for path in (CONF / "model").glob("*.yaml")}
    return [name for name in all_recipes() if name not in models]


def all_recipes() -> list[str]:
    """Return the names of all recipes, sorted, with those of the user's ``--config-dir``."""
    return sorted({path.stem for folder in _folders() for path in (folder / "recipe").glob("*.yaml")})


def recipe_file(name: str) -> Path | None:
    """Return the YAML file of ``recipe/NAME`` or ``experiment/NAME``. It also searches the user's ``--config-dir``."""
    return next((file for folder in _folders() if (file := folder / f"{name}.yaml").is_file()), None)


def _folders() -> list[Path]:
    """Return the folders that Hydra composes from: ``conf/`` and the user's own."""
    if not HydraConfig.initialized():
        return [CONF]
    sources = HydraConfig.get().runtime.config_sources
    return [Path(source.path) for source in sources if source.schema == "file"]


def described(cfg: TrainConfig) -> str:
    """Return the recipe's file and the changed values, such as ``conf/recipe/deit.yaml with epochs=100 (300)``."""
    file = recipe_file(cfg.recipe or "")
    if file is None:
        return "the settings as given"
    shown = file.relative_to(CONF.parent) if file.is_relative_to(CONF) else file
    now = flatten(as_container(cfg))
    says = {key: value for key, value in defaults_of(cfg).items() if key.startswith(GROUPS)} | flatten(_values(file))
    changed = [f"{key}={_plain(now[key])} ({_plain(value)})" for key, value in says.items() if now.get(key) != value]
    return f"{shown}{' with ' if changed else ''}{', '.join(changed)}"


def _values(file: Path) -> dict[str, Any]:
    """Return the values that a recipe sets, including those of the recipes in its defaults."""
    own: Any = OmegaConf.to_container(OmegaConf.load(file))
    bases = [base for base in own.pop("defaults", []) if isinstance(base, str) and base != "_self_"]
    whole: Any = OmegaConf.to_container(OmegaConf.merge(*(_values(file.with_name(f"{b}.yaml")) for b in bases), own))
    return whole


def _plain(value: Any) -> str:
    """Return a value as a user would type it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def refuse_other_recipe(before: dict[str, Any], settings: TrainConfig, what: str) -> None:
    """Refuse settings that differ from earlier ones in options that must not change.

    Args:
        before: the earlier settings.
        settings: the new settings.
        what: the beginning of the error message.

    Raises:
        UserError: listing each difference as ``key old → new``.
    """
    # The earlier settings may lack options that were added later. These had their defaults.
    old = recipe_options(defaults_of(settings) | flatten(before))
    new = recipe_options(flatten(as_container(settings)))
    if new["data.backend"] == "auto":  # the run then keeps its backend
        new["data.backend"] = old.get("data.backend")
    if found := differences(old, new):
        raise UserError(f"{what}: {', '.join(found)}; set another name=… to start a new run")


def recipe_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that belong to the recipe: those that a resumed run may not change.

    Args:
        options: options by dotted name. An entry of an option, such as ``callbacks.wandb``, counts as that option.
    """
    may_change = {key for key, option in declared(TrainConfig).items() if option.rules.may_change}
    return {
        key: value
        for key, value in options.items()
        if key not in may_change and not any(key.startswith(f"{option}.") for option in may_change)
    }
