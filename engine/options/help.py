"""The text of ``--help``: Hydra's list of groups and options, with the rules of each option beside it."""

import re
from dataclasses import fields

from engine.options.config import ENTRIES
from engine.options.recipe import general_recipes
from engine.options.rules import Option, declared
from models import FAMILIES

COLUMN = 44  # where the rules start


def with_rules(text: str, entry: str) -> str:
    """Add the limits and choices of each option to Hydra's help, and list only the general recipes.

    Args:
        text: Hydra's help: a list of groups, then every option as YAML.
        entry: ``"train"`` or ``"eval"``.
    """
    options = declared(ENTRIES[entry]) | _of_the_model(text)
    groups, heading, config = text.partition("== Config ==")
    groups = re.sub(r"^recipe: .*", _recipes(), groups, flags=re.MULTILINE)
    groups = re.sub(r"^([\w/]+): .*\n", lambda line: line[0] if _is_chosen(line[1], entry) else "", groups, flags=re.M)
    lines: list[str] = []
    names: list[str] = []  # the groups around the current line's option, and its name
    for line in config.split("\n"):
        words = ""
        if key := re.match(r"( *)(\w+):", line):
            names[len(key[1]) // 2 :] = [key[2]]
            option = options.get(".".join(names))
            words = option.rules.words() if option else ""
        lines.append(f"{line:<{COLUMN}}# {words}" if words else line)
    return groups + heading + "\n".join(lines)


def _of_the_model(text: str) -> dict[str, Option]:
    """Return the options of the model that the help shows. Families have options of one name with other choices."""
    shown = re.search(r"^model:\n((?: +.*\n)+)", text, re.MULTILINE)
    keys = set(re.findall(r"^  (\w+):", shown[1], re.MULTILINE)) if shown else set()
    for family in FAMILIES.values():
        if {field.name for field in fields(family)} == keys:
            return {f"model.{name}": option for name, option in declared(family).items()}
    return {}


def _is_chosen(group: str, entry: str) -> bool:
    """Whether a user chooses a file of this group. Models choose their schemas, scripts/lab.py reads the studies."""
    if entry == "eval":
        return group in ("model", "data")
    return not group.startswith(("schema/", "study"))


def _recipes() -> str:
    return f"recipe: {', '.join(general_recipes())}; or a model's own, which comes with the model"
