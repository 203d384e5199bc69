"""What ``--help`` shows: Hydra's list of groups and options, with the rules of each option beside it."""

import re

from engine.options import ENTRIES, declared
from engine.recipe import general_recipes

COLUMN = 44  # of the rules


def with_rules(text: str, entry: str) -> str:
    """Hydra's help with the limits and choices of each option, and recipes in the order in which people choose them.

    Args:
        text: as Hydra prints it: a list of groups, then every option as YAML.
        entry: ``"train"`` or ``"eval"``.
    """
    options = declared(ENTRIES[entry])
    groups, heading, config = text.partition("== Config ==")
    groups = re.sub(r"^recipe: .*", _recipes(), groups, flags=re.MULTILINE)
    groups = re.sub(r"^schema/model: .*\n", "", groups, flags=re.MULTILINE)  # it is chosen with the model
    lines: list[str] = []
    names: list[str] = []  # the option of a line, with the groups around it
    for line in config.split("\n"):
        words = ""
        if key := re.match(r"( *)(\w+):", line):
            names[len(key[1]) // 2 :] = [key[2]]
            option = options.get(".".join(names))
            words = option.rules.words() if option else ""
        lines.append(f"{line:<{COLUMN}}# {words}" if words else line)
    return groups + heading + "\n".join(lines)


def _recipes() -> str:
    return f"recipe: {', '.join(general_recipes())}; or a model's own, which comes with the model"
