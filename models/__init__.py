"""Backbones. Importing this package registers them in timm. Nothing here depends on the training code."""

from importlib import import_module
from pkgutil import iter_modules

from models.build import build_model, refuse_unknown
from models.config import FAMILIES, ModelConfig, family_of
from models.errors import ModelError
from models.lipschitz import LipschitzReport, lipschitz_bound
from models.registry import registration
from models.weights import has_average, load_resized, load_weights, read_file, read_weights, start_from, weights_in

for _module in iter_modules(__path__):  # "@register_model" acts when its file is imported
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "FAMILIES",
    "LipschitzReport",
    "ModelConfig",
    "ModelError",
    "build_model",
    "family_of",
    "has_average",
    "lipschitz_bound",
    "load_resized",
    "load_weights",
    "read_file",
    "read_weights",
    "refuse_unknown",
    "registration",
    "start_from",
    "weights_in",
]
