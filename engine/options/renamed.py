"""Options that were renamed. Old files can still be read; for an old command the error message says the new name."""

from typing import Any

RENAMED = {
    "augment.auto": "augment.auto_augment",
    "augment.erase": "augment.random_erasing",
    "augment.smoothing": "augment.label_smoothing",
    "augment.mix_prob": "augment.mixup_prob",
    "augment.mix_switch": "augment.mixup_switch_prob",
}
REMOVED = ("logger.name",)  # logger=NAME now chooses the callback


def translated(config: dict[str, Any]) -> dict[str, Any]:
    """Return an older config with today's option names.

    Args:
        config: the config from a checkpoint or ``config.yaml``, with groups as dictionaries. What somebody has put in
            the place of a group stays as it is.
    """
    groups = {key: dict(value) for key, value in config.items() if isinstance(value, dict)}
    for old, new in RENAMED.items():
        group, _, name = old.partition(".")
        if name in groups.get(group, {}):
            groups[group][new.partition(".")[2]] = groups[group].pop(name)
    for old in REMOVED:
        group, _, name = old.partition(".")
        groups.get(group, {}).pop(name, None)
    return config | groups
