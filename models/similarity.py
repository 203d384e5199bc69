"""How attention compares queries and keys: by dot products, or by cosines, which are bounded."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Similarity(nn.Module):
    """How queries, keys and values are normalised and scaled before the softmax, and the output after it.

    It has no parameters. It is an ``nn.Module`` so that TorchScript can compile it.

    Args:
        scale: constant that multiplies the logits.
        normalise: ``"none"`` changes nothing; ``"qk"`` gives queries and keys unit length; ``"qkv"`` replaces every
            query, key and value x by x / √(‖x‖² + ε).
        epsilon: ε of the normalisation; it limits its slope near zero.
        gain: constant that multiplies the output.
    """

    def __init__(self, scale: float, normalise: str = "none", epsilon: float = 0.0, gain: float = 1.0):
        super().__init__()
        self.scale = scale
        self.normalise = normalise
        self.epsilon = epsilon
        self.gain = gain

    def prepare(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise over the last dimension. Shapes and the common dtype do not change."""
        if self.normalise == "none":
            return q, k, v
        q, k = unit_rows(q, self.epsilon), unit_rows(k, self.epsilon)
        return q, k, (unit_rows(v, self.epsilon) if self.normalise == "qkv" else v)

    def extra_repr(self) -> str:
        return f"{self.scale}, {self.normalise!r}, {self.epsilon}, {self.gain}"


@torch.fx.wrap  # FX traces it as one node, because the branch depends on the tensor
def unit_rows(x: Tensor, epsilon: float) -> Tensor:
    """``x / √(‖x‖² + epsilon)`` over the last dimension, with sums in float32; the dtype does not change.

    It is RMSNorm with other constants, for which torch has a fused kernel on GPUs.
    """
    dim = x.shape[-1]
    gain = x.new_full((dim,), dim**-0.5)
    if torch.jit.is_scripting():
        return F.rms_norm(x, (dim,), gain, epsilon / dim).to(x.dtype)
    else:
        # Autocast would make a float32 copy of the map. The meta device has no autocast.
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            return F.rms_norm(x, (dim,), gain, epsilon / dim)
