"""What timm knows of a model: its description (``pretrained_cfg``), and how our plain transformers are created."""

from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, get_deprecated_models
from torch import nn

from models.weights import fitted


def pretrained_cfg(**changes: Any) -> dict[str, Any]:
    """timm's description of an untrained model, for ImageNet at 224 pixels unless ``changes`` says otherwise."""
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
    """timm's ``PretrainedCfg`` of a model, which may have a deprecated name; None if timm has no description."""
    try:
        return timm.get_pretrained_cfg(get_deprecated_models().get(name) or name)
    except RuntimeError:  # a deprecated name may stand for weights that timm no longer has
        return None


def create_vit(
    kind: type[nn.Module], variant: str, pretrained: bool, architecture: dict[str, Any], kwargs: dict[str, Any]
) -> Any:
    """Create a plain vision transformer through timm, so that timm's features work.

    Args:
        kind: class of the model.
        variant: registered name.
        pretrained: as in timm; there are no weights to download.
        architecture: the variant's arguments of the class.
        kwargs: the caller's arguments of the class and of timm's factory. They override ``architecture``.
    """
    arguments = architecture | kwargs
    features = {"out_indices": min(3, arguments["depth"]), "feature_cls": "getter"}
    return build_model_with_cfg(
        kind, variant, pretrained, feature_cfg=features, pretrained_filter_fn=fitted, **arguments
    )
