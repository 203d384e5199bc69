"""The four parts that make a transformer a LipsFormer. Each can be switched off alone.

CenterNorm replaces LayerNorm, cosine attention replaces dot products, weighted residuals replace plain ones, and
spectral initialisation replaces Xavier's.
Source: Qi et al., "LipsFormer: Introducing Lipschitz Continuity to Vision Transformers", ICLR 2023, section 4.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from models.errors import ModelError
from models.layers import CenterNorm, PlainResidual, WeightedResidual
from models.similarity import Similarity
from models.sizes import check_choice
from models.spectral import spectral_init_, xavier_init_

UNIT_EPSILON = 1e-24  # the square of 1e-12, the eps of F.normalize
ATTENTIONS = ("released", "certified", "dot")
NORMS: dict[str, Callable[..., Any]] = {"centernorm": CenterNorm, "layernorm": nn.LayerNorm}
RESIDUALS: dict[str, Callable[..., Any]] = {"weighted": WeightedResidual, "plain": PlainResidual}
INITS: dict[str, Callable[[nn.Module], None]] = {"spectral": spectral_init_, "xavier": xavier_init_}


@dataclass(frozen=True)
class Parts:
    """The classes of a LipsFormer's parts, chosen by name.

    Args:
        norm: ``"centernorm"`` or ``"layernorm"``.
        residual: ``"weighted"``, with a learned scale per channel, or ``"plain"``.
        init: ``"spectral"``, or ``"xavier"``: the same without the division by the largest singular value.

    Raises:
        ModelError: if a name is unknown.
    """

    norm: str = "centernorm"
    residual: str = "weighted"
    init: str = "spectral"

    def __post_init__(self) -> None:
        for option, choices in (("norm", NORMS), ("residual", RESIDUALS), ("init", INITS)):
            check_choice(option, getattr(self, option), choices)

    @property
    def make_norm(self) -> Callable[..., Any]:
        """Called with the channels, device and dtype."""
        return NORMS[self.norm]

    @property
    def make_residual(self) -> Callable[..., Any]:
        """Called as :class:`models.layers.WeightedResidual`."""
        return RESIDUALS[self.residual]

    @property
    def init_(self) -> Callable[[nn.Module], None]:
        """Initialises a whole model."""
        return INITS[self.init]


@dataclass(frozen=True)
class AttentionForm:
    """How a LipsFormer's attention compares queries and keys (section 4.1.2).

    Args:
        attention: ``"released"`` is the authors' code: cosines of queries and keys, values not normalised.
            ``"certified"`` is the paper's form: values are normalised too, and its Lipschitz constant is finite.
            ``"dot"`` is the usual scaled dot product, which LipsFormer replaces.
        temperature: constant τ that multiplies the cosines.
        epsilon: ε of the certified form, above 0.
        nu: factor ν of the certified form's output.

    Raises:
        ModelError: if the name is unknown, or if ε or ν gives no finite bound.
    """

    attention: str
    temperature: float
    epsilon: float
    nu: float

    def __post_init__(self) -> None:
        check_choice("attention", self.attention, ATTENTIONS)
        if self.attention != "certified":
            return
        if not 0 < self.epsilon < math.inf:  # nor NaN
            raise ModelError(
                f"model.epsilon={self.epsilon:g} gives certified attention no finite bound: set it to 1e-6 or so"
            )
        if not math.isfinite(self.nu):
            raise ModelError(
                f"model.nu={self.nu:g} gives certified attention no finite bound: set it to a number such as 1"
            )

    def similarity(self, head_dim: int, gain: float = 1.0) -> Similarity:
        """The similarity of heads with ``head_dim`` channels, whose output is multiplied by ``gain``."""
        if self.attention == "dot":
            return Similarity(head_dim**-0.5, gain=gain)
        if self.attention == "released":
            return Similarity(self.temperature, "qk", UNIT_EPSILON, gain)
        return Similarity(self.temperature, "qkv", self.epsilon, self.nu * gain)
