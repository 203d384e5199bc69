"""What the hierarchical backbones share: stages of shrinking maps, a classifier on the mean, timm's manners."""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import calculate_drop_path_rates
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.errors import ModelError


class Pyramid(nn.Module):
    """Patches, stages of blocks on channels-last maps, a last norm, the mean over tokens, a classifier.

    Args:
        img_size: (height, width) in pixels.
        patch_embed: images to the first map ``(batch, height, width, channels)``.
        stages: from map to map.
        norm: after the last stage.
        num_features: channels of the last map.
        num_classes: classes, or 0 for no classifier.
        global_pool: ``"avg"``, or ``""`` to keep the map.
        init: initialises the layers of a module in place.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        patch_embed: nn.Module,
        stages: list[nn.Sequential],
        norm: nn.Module,
        num_features: int,
        num_classes: int,
        global_pool: str,
        init: Callable[[nn.Module], None],
    ):
        super().__init__()
        self.img_size = img_size
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = num_features
        self.grad_checkpointing = False
        self.patch_embed = patch_embed
        self.stages = nn.Sequential(*stages)
        self.norm = norm
        self.head = nn.Linear(num_features, num_classes) if num_classes > 0 else nn.Identity()
        self._init = init
        init(self)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are no weights in the sense of weight decay: the position-bias tables."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one, initialised as the model's layers are, for ``num_classes`` classes."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self._init(self.head)
        self.head.to(next(self.patch_embed.parameters()))  # device and precision

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``(batch, in_chans, *img_size)`` to tokens ``(batch, height, width, num_features)``.

        Raises:
            ModelError: if the image is of another size than the model was built for.
        """
        if x.shape[-2:] != self.img_size:
            raise ModelError(
                f"the model takes images of {self.img_size} pixels and got {tuple(x.shape[-2:])}: "
                f"set model.img_size (it follows data.crop) or resize the images"
            )
        x = self.patch_embed(x)
        if self.grad_checkpointing and self.training:
            # One by one: the compiler does not look into torch's checkpoint_sequential.
            for stage in self.stages.children():
                for block in stage.children():
                    x = checkpoint(block, x, use_reentrant=False)
        else:
            x = self.stages(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """``(batch, height, width, num_features)`` to ``(batch, num_classes)``."""
        if self.global_pool == "avg":
            x = x.mean(dim=(1, 2))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(batch, in_chans, *img_size)`` to logits ``(batch, num_classes)``."""
        return self.forward_head(self.forward_features(x))


def build_stages(
    depths: tuple[int, ...],
    drop_path_rate: float,
    merge: Callable[[int], nn.Module],
    block: Callable[[int, float], nn.Module],
) -> list[nn.Sequential]:
    """The stages of a pyramid; every stage but the first begins by merging tokens.

    Args:
        depths: blocks of each stage.
        drop_path_rate: stochastic-depth rate of the last block; it grows linearly from 0 over all blocks.
        merge: makes the merging layer in front of a stage, counted from 0.
        block: makes a block of a stage with a stochastic-depth rate.
    """
    ramp: Any = calculate_drop_path_rates(drop_path_rate, sum(depths))
    stages = []
    for stage, depth in enumerate(depths):
        layers = [merge(stage)] if stage > 0 else []
        layers += [block(stage, ramp.pop(0)) for _ in range(depth)]
        stages.append(nn.Sequential(*layers))
    return stages
