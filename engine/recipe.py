"""The recipe of a run: which file its numbers come from, and what was changed in them."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from engine.arguments import typed_values
from engine.config import CONF, TrainConfig
from engine.errors import UserError
from engine.settings import as_container, defaults_of, flatten

# Names of timm's models that begin so take the recipe of the family, unless the user chose one.
GROUPS = ("optim.", "schedule.", "augment.")  # a recipe leaves the options it does not name there at their defaults
TIMM_FAMILIES = {"vit_": "deit", "deit": "deit", "swin_": "swin", "cswin": "cswin"}


def implied_recipe(arguments: list[str]) -> list[str]:
    """The argument that chooses the family's recipe for a model of timm, where the user named none."""
    typed = typed_values(arguments)
    name = typed.get("model.name")
    if typed.get("model") != "timm" or not isinstance(name, str) or typed.keys() & {"recipe", "experiment"}:
        return []
    return next(([f"recipe={recipe}"] for start, recipe in TIMM_FAMILIES.items() if name.startswith(start)), [])


def set_recipe(composed: DictConfig, choices: dict[str, Any]) -> None:
    """Note in the settings which recipe they come from.

    An experiment that has ``override /recipe: null`` among its defaults sets all numbers itself, and is the recipe.

    Args:
        composed: what Hydra composed.
        choices: the chosen file of each config group.

    Raises:
        UserError: if the model has no recipe of its own and none was chosen: another model's numbers would be taken.
    """
    name, experiment = choices.get("recipe"), choices.get("experiment")
    if name is None and experiment is not None:
        composed.recipe = f"experiment/{experiment}"
    elif name is not None and recipe_file(f"recipe/{name}") is not None:
        composed.recipe = f"recipe/{name}"
    else:
        what = f"model.name={composed.model.name}" if choices.get("model") == "timm" else f"model={choices['model']}"
        raise UserError(
            f"{what} has no recipe of its own: add {', '.join(f'recipe={n}' for n in general_recipes()[:-1])} or "
            f"recipe={general_recipes()[-1]}"
        )


def general_recipes() -> list[str]:
    """Recipes that are no single model's: of a family, or of nobody."""
    models = {path.stem for path in (CONF / "model").glob("*.yaml")}
    return sorted(path.stem for path in (CONF / "recipe").glob("*.yaml") if path.stem not in models)


def recipe_file(name: str) -> Path | None:
    """The YAML file of ``recipe/NAME`` or ``experiment/NAME``, in a folder of the user's (``--config-dir``), too."""
    folders = [CONF]
    if HydraConfig.initialized():
        sources = HydraConfig.get().runtime.config_sources
        folders = [Path(source.path) for source in sources if source.schema == "file"]
    return next((file for folder in folders if (file := folder / f"{name}.yaml").is_file()), None)


def described(cfg: TrainConfig) -> str:
    """The recipe's file and what differs from it, such as ``conf/recipe/deit.yaml with epochs=100 (300)``."""
    file = recipe_file(cfg.recipe or "")
    if file is None:
        return "the settings as given"
    shown = file.relative_to(CONF.parent) if file.is_relative_to(CONF) else file
    now = flatten(as_container(cfg))
    says = {key: value for key, value in defaults_of(cfg).items() if key.startswith(GROUPS)} | flatten(_values(file))
    changed = [f"{key}={_plain(now[key])} ({_plain(value)})" for key, value in says.items() if now.get(key) != value]
    return f"{shown}{' with ' if changed else ''}{', '.join(changed)}"


def _values(file: Path) -> dict[str, Any]:
    """What a recipe sets, with that of the recipes it builds on."""
    own: Any = OmegaConf.to_container(OmegaConf.load(file))
    bases = [base for base in own.pop("defaults", []) if isinstance(base, str) and base != "_self_"]
    whole: Any = OmegaConf.to_container(OmegaConf.merge(*(_values(file.with_name(f"{b}.yaml")) for b in bases), own))
    return whole


def _plain(value: Any) -> str:
    """As it would be typed."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
