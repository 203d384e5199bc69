"""Settings as plain values: dictionaries that can be flattened, compared and written."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from engine.options.config import RunConfig, TrainConfig


def as_container(settings: RunConfig | DictConfig) -> dict[str, Any]:
    """Return settings, or a config from Hydra, as plain dictionaries, lists, strings and numbers."""
    node = settings if isinstance(settings, DictConfig) else OmegaConf.structured(settings)
    container = OmegaConf.to_container(node, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries into one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return ``NAME expected → found`` for each option that differs."""
    names = sorted(expected.keys() | found.keys())
    return [f"{n} {expected.get(n)} → {found.get(n)}" for n in names if expected.get(n) != found.get(n)]


def defaults_of(settings: TrainConfig) -> dict[str, Any]:
    """Return the default of every option that has one, for the same config classes as in ``settings``."""
    values: dict[str, Any] = vars(settings)
    groups: dict[str, Any] = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(value):
            kind: Any = type(value)
            groups[name] = kind()
    container: Any = OmegaConf.to_container(OmegaConf.structured(TrainConfig(**groups)))
    return {key: value for key, value in flatten(container).items() if value != MISSING}


def write_settings(settings: RunConfig, path: Path) -> None:
    """Write settings as YAML. The file appears by renaming, so a reader never sees an incomplete file."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(OmegaConf.to_yaml(OmegaConf.create(as_container(settings))), encoding="utf-8")
    os.replace(scratch, path)
