"""The output of each block: how large it is, and how diverse its tokens are."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stability.tokens import token_diversity


@dataclass(frozen=True)
class BlockReport:
    """Statistics of one block's output.

    Attributes:
        scale: root mean square of its values.
        diversity: diversity of its tokens, averaged over the images; None if there are fewer than two tokens.
    """

    scale: Tensor
    diversity: Tensor | None


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The outermost modules with "Block" or "Bottleneck" in their class name, as in timm's models and ours."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        is_block = any(word in type(module).__name__ for word in ("Block", "Bottleneck"))
        if is_block and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


@contextmanager
def watching_blocks(model: nn.Module) -> Iterator[dict[str, BlockReport]]:
    """In this context every forward pass of the model fills a dictionary with reports by block name."""
    reports: dict[str, BlockReport] = {}
    prefix = getattr(model, "num_prefix_tokens", 0)  # timm's name for the number of class and register tokens
    layout = getattr(model, "output_fmt", None)  # timm's name for the layout of features: NCHW, NHWC or NLC

    def read(name: str, block: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim in (3, 4):
            reports[name] = _report(_tokens(block, output.detach().float(), prefix, layout))

    with ExitStack() as hooks:
        for name, block in find_blocks(model).items():
            hooks.enter_context(block.register_forward_hook(partial(read, name)))
        yield reports


def _report(tokens: Tensor) -> BlockReport:
    diversity = token_diversity(tokens).mean() if tokens.shape[1] > 1 else None
    return BlockReport(tokens.square().mean().sqrt(), diversity)


def _tokens(block: nn.Module, output: Tensor, prefix: int, layout: str | None) -> Tensor:
    """A block's output as ``(batch, tokens, channels)``, without class and register tokens."""
    if output.ndim == 3:
        return output[:, prefix:] if output.shape[1] > prefix + 1 else output
    return output.flatten(2).mT if _has_channels_first(block, output, layout) else output.flatten(1, 2)


def _has_channels_first(block: nn.Module, output: Tensor, layout: str | None) -> bool:
    """Whether a map's channels are its second dimension, as in convolutional networks, or its last one."""
    if layout in ("NCHW", "NHWC"):
        return layout == "NCHW"
    # The model does not say it. But the block's vectors, such as biases, are as long as the map has channels.
    lengths = {parameter.shape[0] for parameter in block.parameters() if parameter.ndim == 1}
    return output.shape[1] in lengths and output.shape[3] not in lengths


@torch.no_grad()
def block_report(model: nn.Module, images: Tensor) -> dict[str, BlockReport]:
    """Run a model once in its current mode, and report on each block's output."""
    with watching_blocks(model) as reports:
        model(images)
    return reports
