"""Base class of the hierarchical backbones: stages of shrinking feature maps, pooling, classifier, timm's interface."""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import calculate_drop_path_rates
from timm.models import build_model_with_cfg, checkpoint_seq, named_apply
from timm.models._features import feature_take_indices  # timm has no public name for these two
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from models.layers import ConvEmbed
from models.sizes import check_choice
from models.weights import fitted

POOLS = ("avg", "max", "avgmax", "")


class Pyramid(nn.Module):
    """Patch embedding, stages of blocks on channels-last feature maps, final norm, pooling and classifier.

    Args:
        img_size: (height, width) in pixels.
        patch_embed: maps images to the first feature map ``(batch, height, width, channels)``.
        stages: the stages; each except the first halves the feature map and doubles the channels.
        norm: norm after the last stage.
        in_chans: image channels.
        embed_dim: channels of the first feature map.
        reduction: stride of the first feature map in pixels.
        num_classes: classes, or 0 for no classifier.
        global_pool: one of ``POOLS``; ``""`` keeps the feature map.
        drop_rate: dropout rate before the classifier.
        init: initialises the layers of a module in place.
        **factory: device and dtype of the classifier.

    Raises:
        ModelError: for an unknown ``global_pool``.
    """

    output_fmt = "NHWC"  # timm's name for the layout of the feature maps

    def __init__(
        self,
        img_size: tuple[int, int],
        patch_embed: ConvEmbed,
        stages: list[nn.Sequential],
        norm: nn.Module,
        in_chans: int,
        embed_dim: int,
        reduction: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        init: Callable[[nn.Module], None],
        **factory: Any,
    ):
        super().__init__()
        check_choice("global_pool", global_pool, POOLS)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.feature_info = [
            {"num_chs": embed_dim * 2**stage, "reduction": reduction * 2**stage, "module": f"stages.{stage}"}
            for stage in range(len(stages))
        ]
        self.num_features = self.head_hidden_size = embed_dim * 2 ** (len(stages) - 1)
        self.grad_checkpointing = False
        self.patch_embed = patch_embed
        self.patch_embed.img_size = img_size
        self.stages = nn.Sequential(*stages)
        self.norm = norm
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(self.num_features, num_classes, **factory) if num_classes > 0 else nn.Identity()
        self._init = init
        init(self)

    @property
    def img_size(self) -> tuple[int, int]:
        """(height, width) in pixels that images must have."""
        assert self.patch_embed.img_size is not None
        return self.patch_embed.img_size

    def init_weights(self) -> None:
        """Initialise all weights again, in the constructor's order: the same seed gives the same weights.

        A model that was built on the meta device needs this after ``to_empty``.
        """

        def reset(module: Any, name: str) -> None:
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()

        named_apply(reset, self)
        self._init(self)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay: the relative position bias tables."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups for timm's layer-wise learning rate decay: stem, stages (``coarse``) or their layers, head."""
        # 99999 is timm's MATCH_PREV_GROUP: the norm belongs to the last layer.
        layers = [(r"^stages\.(\d+)\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^patch_embed", "blocks": r"^stages\.(\d+)" if coarse else layers}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one for ``num_classes`` classes, initialised like the other layers."""
        if global_pool is not None:
            check_choice("global_pool", global_pool, POOLS)
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self._init(self.head)
        self.head.to(next(self.patch_embed.parameters())).train(self.training)  # same device and dtype

    def _set_img_size(self, img_size: tuple[int, int], **options: Any) -> None:
        """Change the image size, and record it in timm together with the options that changed."""
        self.patch_embed.img_size = img_size
        update_model_input_size(self, img_size, **options)

    @property
    def _recomputes(self) -> bool:
        return self.grad_checkpointing and self.training

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The output of :meth:`forward_features`, and the feature maps after the stages.

        Args:
            x: images ``(batch, in_chans, *img_size)``.
            indices: indices of the requested stages; an int n means the last n stages, None all stages.
            norm: whether to apply the final norm to the last stage's feature map.
            stop_early: whether to stop after the last requested stage.
            output_fmt: layout of the feature maps, ``"NCHW"`` or ``"NHWC"``.
            intermediates_only: whether to return only the feature maps.

        Raises:
            ModelError: if the layout is unknown, or the image size is not the model's.
        """
        check_choice("output_fmt", output_fmt, ("NCHW", "NHWC"))
        wanted, last = feature_take_indices(len(self.stages), indices)
        end = len(self.stages) - 1
        maps = []
        x = self.patch_embed(x)
        for index in range((last if stop_early else end) + 1):
            x = checkpoint_seq(self.stages[index], x) if self._recomputes else self.stages[index](x)
            if index in wanted:
                found = self.norm(x) if norm and index == end else x
                maps.append(found.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else found)
        if intermediates_only:
            return maps
        return (self.norm(x) if index == end else x), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers after the last requested stage. Returns the indices of the requested stages.

        Args:
            indices: as for :meth:`forward_intermediates`.
            prune_norm: whether to remove the final norm too.
            prune_head: whether to remove the classifier too.
        """
        wanted, last = feature_take_indices(len(self.stages), indices)
        is_shorter = last < len(self.stages) - 1
        if is_shorter:
            self.stages = self.stages[: last + 1]
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_norm or is_shorter:
            self.norm = nn.Identity()  # the norm only fits the channels of the original last stage
        if prune_head or is_shorter:
            self.reset_classifier(0, "")
        return wanted

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``(batch, in_chans, *img_size)`` to tokens ``(batch, height, width, num_features)``.

        Raises:
            ModelError: if the image size is not the model's.
        """
        x = self.patch_embed(x)
        if self._recomputes and not torch.jit.is_scripting():
            x = checkpoint_seq(self.stages, x, flatten=True)
        else:
            x = self.stages(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """``(batch, height, width, num_features)`` to ``(batch, num_classes)``."""
        if self.global_pool == "avg":
            x = x.mean(dim=(1, 2))
        elif self.global_pool == "max":
            x = x.amax(dim=(1, 2))
        elif self.global_pool == "avgmax":
            x = 0.5 * (x.mean(dim=(1, 2)) + x.amax(dim=(1, 2)))
        x = self.head_drop(x)
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
    """The stages of a pyramid. Every stage except the first begins with a layer that merges tokens.

    Args:
        depths: blocks of each stage.
        drop_path_rate: stochastic-depth rate of the last block; it grows linearly from 0 over all blocks.
        merge: builds the merging layer of a stage from the stage's index.
        block: builds a block from the stage's index and a stochastic-depth rate.
    """
    ramp: Any = calculate_drop_path_rates(drop_path_rate, sum(depths))
    stages = []
    for stage, depth in enumerate(depths):
        layers = [merge(stage)] if stage > 0 else []
        layers += [block(stage, ramp.pop(0)) for _ in range(depth)]
        stages.append(nn.Sequential(*layers))
    return stages


def create_pyramid(
    kind: type[Pyramid], variant: str, pretrained: bool, architecture: dict[str, Any], kwargs: dict[str, Any]
) -> Any:
    """Create a pyramid through timm. With ``features_only=True`` it returns the maps of stages in ``out_indices``.

    The arguments are those of :func:`models.registry.create_vit`.
    """
    arguments = architecture | kwargs
    stages = len(arguments["depths"]) if "depths" in arguments else 4
    features = {"out_indices": tuple(range(stages)), "flatten_sequential": True}
    return build_model_with_cfg(
        kind, variant, pretrained, feature_cfg=features, pretrained_filter_fn=fitted, **arguments
    )
