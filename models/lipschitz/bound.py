"""Upper bound of a model's Lipschitz constant, computed from its weights layer by layer.

The bounds of consecutive layers are multiplied. A residual has the bound 1 + max|α| · Lip(branch) (LipsFormer,
section 4). The bound holds for every pair of inputs, in the Euclidean norm, in eval mode, where drop path is off.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import Attention, DropPath, LayerScale, RmsNorm, RmsNormFp32
from timm.layers import Mlp as TimmMlp
from timm.models.swin_transformer import WindowAttention as SwinAttention
from torch import Tensor, nn

from models.attention import CrossShapedAttention, StripeAttention, WindowAttention
from models.cswin import CSwinBlock
from models.depthwise import DepthwiseConv2d
from models.errors import ModelError
from models.layers import CenterNorm, ConvBranch, ConvEmbed, ConvMerge, PlainResidual, WeightedResidual
from models.lipschitz.layers import (
    GELU,
    Heads,
    certified_attention_bounds,
    conv_bound,
    depthwise_fft_bounds,
    depthwise_norm,
)
from models.lipschitz.report import LayerBound, LipschitzReport, chain, infinite, known, residual
from models.lipsformer_cswin import LipsFormerCSwinBlock
from models.lipsformer_swin import LipsFormerSwinBlock, PatchMerging
from models.norms import DyT
from models.pyramid import Pyramid
from models.similarity import Similarity
from models.spectral import largest_singular_value
from models.tokenwise import Mlp, TokenLinear

DOT_PRODUCT = "dot-product attention: its slope grows with its input"
RAW_VALUES = "un-normalised v: its length multiplies the slope of the attention weights"
RMS_NORM = "RMSNorm: it divides by a token's root mean square, and only eps limits the slope if that is small"
LAYER_NORM = "LayerNorm: it divides by a token's standard deviation, and only eps limits the slope if that is small"

# Modules that call these parts one after the other, in this order.
_CHAINS: dict[type[nn.Module], tuple[str, ...]] = {
    TimmMlp: ("fc1", "act", "norm", "fc2"),
    Mlp: ("fc1", "act", "fc2"),
    ConvEmbed: ("proj", "norm"),
    ConvMerge: ("conv", "norm"),
    # Concatenating the four tokens of a square only moves values: its constant is 1.
    PatchMerging: ("norm", "reduction"),
    LipsFormerSwinBlock: ("conv1", "conv2", "attn", "norm1", "mlp", "norm2"),
    LipsFormerCSwinBlock: ("conv1", "conv2", "attn", "mlp", "norm"),
}
_UNBOUNDED: dict[type[nn.Module], str] = {
    nn.LayerNorm: LAYER_NORM,
    RmsNorm: RMS_NORM,
    RmsNormFp32: RMS_NORM,
    Attention: DOT_PRODUCT,
    SwinAttention: DOT_PRODUCT,
    nn.MultiheadAttention: DOT_PRODUCT,
}
_NEUTRAL = (nn.Identity, nn.Dropout, DropPath)  # the identity in eval mode

Shapes = dict[nn.Module, torch.Size]  # input shape of each module
_Rule = Callable[[Any, str, Shapes], LayerBound]
_RULES: dict[type[nn.Module], _Rule] = {}


def lipschitz_bound(model: nn.Module, input_shape: tuple[int, ...] | None = None) -> LipschitzReport:
    """Bound the Lipschitz constant of ``model`` from its weights. The model is not changed.

    Args:
        model: any module. A module of an unknown class has an infinite bound, and the report gives the reason.
        input_shape: shape of a batch of inputs. Our pyramids know their own. For parts of a pyramid it gives the
            depthwise convolutions the size of their feature map; without it their bounds are much looser.

    Raises:
        ModelError: if the model does not accept inputs of this shape, or a weight is not finite.
    """
    if broken := next((name for name, weight in model.named_parameters() if not weight.isfinite().all()), None):
        raise ModelError(f"there is no bound: {broken} holds NaN or infinity: use an earlier checkpoint")
    return LipschitzReport(_bound(model, "", _input_shapes(model, input_shape) if input_shape else {}))


def _input_shapes(model: nn.Module, input_shape: tuple[int, ...]) -> Shapes:
    """The input shape of every module, from a forward pass on the meta device, which computes no values."""
    shapes: Shapes = {}

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            shapes[module] = args[0].shape

    tensors = {name: t.to("meta") for name, t in [*model.named_parameters(), *model.named_buffers()]}
    dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), None)
    hooks = [module.register_forward_pre_hook(note) for module in model.modules()]
    try:
        with torch.no_grad():
            torch.func.functional_call(model, tensors, (torch.empty(input_shape, dtype=dtype, device="meta"),))
    except (RuntimeError, ValueError) as error:
        message = str(error).splitlines()[0]
        raise ModelError(f"the model takes no input of shape {tuple(input_shape)}: {message}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def _bound(module: nn.Module, name: str, shapes: Shapes) -> LayerBound:
    """The bound of ``module`` by the rule of its class. A subclass with its own ``forward`` is unknown."""
    kind = type(module).__name__
    for base in type(module).__mro__:
        if base in _UNBOUNDED:
            return infinite(name, kind, _UNBOUNDED[base])
        if base in _CHAINS and type(module).forward is base.forward:
            return chain(name, kind, _children(module, name, shapes, *_CHAINS[base]))
        if base in _RULES and type(module).forward is base.forward:
            return _RULES[base](module, name, shapes)
    parts = [_bound(child, _join(name, key), shapes) for key, child in module.named_children()]
    return infinite(name, kind, f"no bound is known for {kind}", parts)


def _children(module: nn.Module, name: str, shapes: Shapes, *keys: str) -> list[LayerBound]:
    """The bounds of the parts with these names, without those that do nothing in eval mode."""
    layers = [(key, module.get_submodule(key)) for key in keys]
    return [_bound(layer, _join(name, key), shapes) for key, layer in layers if not isinstance(layer, _NEUTRAL)]


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _rule(*kinds: type[nn.Module]) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


@_rule(nn.ReLU, *_NEUTRAL)
def _one(module: nn.Module, name: str, shapes: Shapes) -> LayerBound:
    return known(name, type(module).__name__, 1.0)


@_rule(nn.GELU)
def _gelu(module: nn.GELU, name: str, shapes: Shapes) -> LayerBound:
    if module.approximate != "none":
        return infinite(name, "GELU", f"no bound is known for GELU with approximate={module.approximate}")
    return known(name, "GELU", GELU)


@_rule(nn.Linear, TokenLinear)
def _linear(module: nn.Linear, name: str, shapes: Shapes) -> LayerBound:
    return known(name, "Linear", largest_singular_value(module.weight).item())


@_rule(nn.Conv2d)
def _conv(module: nn.Conv2d, name: str, shapes: Shapes) -> LayerBound:
    if module.padding_mode != "zeros":
        return infinite(name, "Conv2d", f"no bound is known for Conv2d with padding_mode={module.padding_mode}")
    return known(name, "Conv2d", conv_bound(module))


@_rule(DepthwiseConv2d)
def _depthwise(module: DepthwiseConv2d, name: str, shapes: Shapes) -> LayerBound:
    if module not in shapes:
        return _conv(module, name, shapes)
    height, width = shapes[module][-2:]
    published = depthwise_fft_bounds(module.weight, (height, width)).max().item()
    return known(name, f"depthwise on {height}x{width}", published, depthwise_norm(module.weight, (height, width)))


@_rule(CenterNorm)
def _center_norm(module: CenterNorm, name: str, shapes: Shapes) -> LayerBound:
    return known(name, "CenterNorm", module.weight.detach().abs().max().item() * module.gain)


@_rule(DyT)
def _dyt(module: DyT, name: str, shapes: Shapes) -> LayerBound:
    return known(name, "DyT", module.weight.detach().abs().max().item() * module.alpha.detach().abs().item())


@_rule(LayerScale)
def _layer_scale(module: LayerScale, name: str, shapes: Shapes) -> LayerBound:
    return known(name, "LayerScale", module.gamma.detach().abs().max().item())


@_rule(nn.Sequential)
def _sequential(module: nn.Sequential, name: str, shapes: Shapes) -> LayerBound:
    return chain(name, "Sequential", _children(module, name, shapes, *dict(module.named_children())))


@_rule(ConvBranch)
def _conv_branch(module: ConvBranch, name: str, shapes: Shapes) -> LayerBound:
    parts = []
    for key in ["depthwise"] if module.pointwise is None else ["depthwise", "pointwise"]:
        parts += [*_children(module, name, shapes, key), known(_join(name, f"{key}_gelu"), "GELU", GELU)]
    return chain(name, "ConvBranch", parts)


@_rule(WeightedResidual)
def _weighted_residual(module: WeightedResidual, name: str, shapes: Shapes) -> LayerBound:
    branch = _bound(module.branch, _join(name, "branch"), shapes)
    return residual(name, module.scale.detach().abs().max().item(), branch)


@_rule(PlainResidual)
def _plain_residual(module: PlainResidual, name: str, shapes: Shapes) -> LayerBound:
    return residual(name, 1.0, _bound(module.branch, _join(name, "branch"), shapes))


@_rule(CSwinBlock)
def _cswin_block(module: CSwinBlock, name: str, shapes: Shapes) -> LayerBound:
    """``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``."""
    attention = chain(_join(name, "attention"), "branch", _children(module, name, shapes, "norm1", "attn"))
    mlp = chain(_join(name, "mlp"), "branch", _children(module, name, shapes, "norm2", "mlp"))
    return chain(name, "CSwinBlock", [residual(branch.name, 1.0, branch) for branch in (attention, mlp)])


@_rule(Pyramid)
def _pyramid(module: Pyramid, name: str, shapes: Shapes) -> LayerBound:
    """The mean over N tokens is, for each channel, a 1 × N matrix of entries 1/N, whose norm is 1/√N."""
    if module.norm not in shapes:
        channels = next(layer.in_channels for layer in module.patch_embed.modules() if isinstance(layer, nn.Conv2d))
        shapes = _input_shapes(module, (1, channels, *module.img_size))
    parts = _children(module, name, shapes, "patch_embed", "stages", "norm")
    if module.global_pool == "avg":
        tokens = math.prod(shapes[module.norm][1:3])
        parts.append(known(_join(name, "mean"), f"mean over {tokens}", 1 / math.sqrt(tokens)))
    return chain(name, type(module).__name__, parts + _children(module, name, shapes, "head"))


@_rule(WindowAttention)
def _window_attention(module: WindowAttention, name: str, shapes: Shapes) -> LayerBound:
    if reason := _why_unbounded(module.similarity):
        return infinite(name, "WindowAttention", reason)
    return _attention(module, name, shapes, [_heads(module, module.window_size**2)])


@_rule(CrossShapedAttention)
def _cross_shaped_attention(module: CrossShapedAttention, name: str, shapes: Shapes) -> LayerBound:
    branches = []
    stripe: Any
    for i, stripe in enumerate(module.stripes):
        if reason := _why_unbounded(stripe.similarity):
            return infinite(name, "CrossShapedAttention", reason)
        lepe = _bound(stripe.lepe, _join(name, f"stripes.{i}.lepe"), shapes)
        branches.append(_heads(stripe, math.prod(stripe.stripe), (lepe.published, lepe.tight)))
    return _attention(module, name, shapes, branches)


def _heads(attention: WindowAttention | StripeAttention, tokens: int, lepe: tuple[float, float] = (0.0, 0.0)) -> Heads:
    similarity = attention.similarity
    return Heads(attention.num_heads, tokens, similarity.scale, similarity.epsilon, similarity.gain, lepe)


def _why_unbounded(similarity: Similarity) -> str:
    """Why attention with this similarity has no bound; empty if it has one."""
    return {"none": DOT_PRODUCT, "qk": RAW_VALUES}.get(similarity.normalise, "")


def _attention(
    module: WindowAttention | CrossShapedAttention, name: str, shapes: Shapes, branches: list[Heads]
) -> LayerBound:
    """The fused qkv layer and the heads together, then the output projection."""
    published, tight = certified_attention_bounds(module.qkv.weight, branches)
    heads = known(_join(name, "qkv"), "certified attention", published, tight)
    return chain(name, type(module).__name__, [heads, *_children(module, name, shapes, "proj")])
