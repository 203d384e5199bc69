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
        config: the config from a checkpoint or ``config.yaml``, with groups as dictionaries.
    """
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    for old, new in RENAMED.items():
        group, _, name = old.partition(".")
        if name in config.get(group, {}):
            config[group][new.partition(".")[2]] = config[group].pop(name)
    for old in REMOVED:
        group, _, name = old.partition(".")
        config.get(group, {}).pop(name, None)
    return config
