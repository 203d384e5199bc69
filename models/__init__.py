"""Backbones, registered in timm on import; nothing here knows of training."""

from models import lipsformer_swin as lipsformer_swin
from models import vit as vit
from models.build import build_model, refuse_unknown
from models.config import FAMILIES, ModelConfig, family_of
from models.errors import ModelError
from models.weights import load_weights, read_weights

__all__ = [
    "FAMILIES",
    "ModelConfig",
    "ModelError",
    "build_model",
    "family_of",
    "load_weights",
    "read_weights",
    "refuse_unknown",
]
