"""What timm is told of a model when it is registered."""

from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_deprecated_models


def pretrained_cfg(**changes: Any) -> dict[str, Any]:
    """timm's description of a model that is untrained, for 224-pixel ImageNet unless changed."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        **changes,
    }


def registration(name: str) -> Any:
    """timm's description (``PretrainedCfg``) of a model, which an old name of timm has as well; None without one."""
    try:
        return timm.get_pretrained_cfg(get_deprecated_models().get(name) or name)
    except RuntimeError:  # an old name may stand for weights that timm has no more
        return None
