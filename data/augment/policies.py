"""Policies of automatic augmentation: what a name stands for, and which operations it draws for each image.

Names are timm's (``rand-m9-mstd0.5-inc1``, ``3a``, ``original``) and ``trivial``. The draws are numbers on the host
with the distributions of timm and torchvision; :mod:`data.augment.auto_augment` carries them out.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from timm.data.auto_augment import AugmentOp, auto_augment_transform, rand_augment_transform

from data.augment.levels import STEPS, Floats, Op, either_way, operations
from data.errors import DataError

AUTO_AUGMENT = ("3a", "original", "originalr", "v0", "v0r")  # timm's AutoAugment
# Patterns for the parts of a name. timm itself ignores a part that it does not know.
RAND_PART = r"(m|n|mmax|inc)\d+|(p|mstd)\d+(\.\d+)?|t(weights|3a|3aw)"
AUTO_PART = r"mstd\d+(\.\d+)?"


@dataclass(frozen=True)
class AutoDraws:
    """The operations on a batch, in their order; row i of each array belongs to image i."""

    ops: NDArray[np.int8]  # (n, layers) of data.augment.levels.Op
    args: Floats  # (n, layers)

    @classmethod
    def joined(cls, parts: Sequence["AutoDraws"]) -> "AutoDraws":
        """The operations of several policies, one policy after the other."""
        return cls(np.hstack([part.ops for part in parts]), np.hstack([part.args for part in parts]))


class Policy(Protocol):
    """Draws operations."""

    layers: int  # operations for each image
    uniforms: int  # random numbers needed for each image

    def draw(self, u: Floats) -> AutoDraws:
        """The operations on n images, from uniforms ``(n, self.uniforms)``."""
        ...


def policies(auto: str | None, color_jitter: float, side: int) -> list[Policy]:
    """The policies applied to an image, in order: the named one, then colour jitter.

    As in timm, there is colour jitter only without a named policy or with one of 3-Augment's.

    Args:
        auto: the policy's name, ``augment.auto_augment``.
        color_jitter: ``augment.color_jitter``.
        side: side of the images in pixels.

    Raises:
        DataError: if the policy is unknown.
    """
    chosen: list[Policy] = [] if auto is None else [_named(auto, side)]
    if color_jitter > 0 and (auto is None or "3a" in auto):
        chosen.append(ColorJitter(color_jitter))
    return chosen


def _named(auto: str, side: int) -> Policy:
    kind, *parts = auto.split("-")
    if auto == "trivial":
        return TrivialAugment(side)
    if kind == "rand":
        _refuse_parts(auto, parts, RAND_PART, "such as m9, mstd0.5, inc1, n2, p0.5, mmax10, tweights, t3a, t3aw")
        if "n0" in parts:
            raise DataError(f"augment.auto_augment={auto}: 'n0' means no operation: set augment.auto_augment=null")
        return RandAugment(auto)
    if kind in AUTO_AUGMENT:
        _refuse_parts(auto, parts, AUTO_PART, "such as mstd0.5")
        return AutoAugment(auto)
    known = ", ".join(("rand-m9-mstd0.5-inc1 with timm's options", "trivial", *AUTO_AUGMENT, "null"))
    raise DataError(f"augment.auto_augment={auto} is unknown: choose {known}")


def _refuse_parts(auto: str, parts: list[str], known: str, examples: str) -> None:
    seen = set()
    for part in parts:
        if not re.fullmatch(known, part):
            raise DataError(f"augment.auto_augment={auto}: '{part}' is unknown: choose parts {examples}")
        name = "t" if part.startswith("t") else part.rstrip(".0123456789")
        if name in seen:
            raise DataError(f"augment.auto_augment={auto}: '{name}' is given twice")
        seen.add(name)


class RandAugment:
    """timm's RandAugment: operations chosen from a list, all with the same probability and magnitude.

    Args:
        name: in timm's form.
    """

    def __init__(self, name: str):
        parsed = rand_augment_transform(name)
        self.layers = parsed.num_layers
        self.weights = parsed.choice_weights
        self.candidates = Candidates(parsed.ops)
        choices = len(parsed.ops)
        if self.weights is not None and self.layers > choices:
            raise DataError(
                f"augment.auto_augment={name}: 'n{self.layers}' is more than the {choices} operations: use n{choices}"
            )
        self.for_choice = self.layers if self.weights is None else choices
        self.uniforms = self.for_choice + 4 * self.layers

    def draw(self, u: Floats) -> AutoDraws:
        """See :class:`Policy`."""
        return self.candidates.draw(self._chosen(u[:, : self.for_choice]), u[:, self.for_choice :])

    def _chosen(self, u: Floats) -> NDArray[np.int64]:
        if self.weights is None:
            return (u * len(self.candidates)).astype(np.int64)
        # Weighted choice without replacement: the smallest of exponential variables with these weights as rates.
        waiting_times = -np.log1p(-u) / self.weights
        return np.argsort(waiting_times, axis=1)[:, : self.layers]


class AutoAugment:
    """timm's AutoAugment: one of several fixed sequences of operations, chosen for each image.

    One of these policies is 3-Augment (Touvron et al., DeiT III, ECCV 2022): greyscale, solarize from 128 on, or blur.

    Args:
        name: in timm's form.
    """

    def __init__(self, name: str):
        sequences = auto_augment_transform(name).policy
        self.layers = len(sequences[0])
        self.sequences = np.arange(len(sequences) * self.layers).reshape(-1, self.layers)
        self.candidates = Candidates([op for sequence in sequences for op in sequence])
        self.uniforms = 1 + 4 * self.layers

    def draw(self, u: Floats) -> AutoDraws:
        """See :class:`Policy`."""
        chosen = self.sequences[(u[:, 0] * len(self.sequences)).astype(np.int64)]
        return self.candidates.draw(chosen, u[:, 1:])


class Candidates:
    """Operations to choose from, each with its probability and the distribution of its magnitude.

    Args:
        ops: timm's operations.
    """

    def __init__(self, ops: list[AugmentOp]):
        self.names = [op.name for op in ops]
        self.probability = np.array([op.prob for op in ops])
        self.magnitude = np.array([op.magnitude for op in ops])
        self.spread = float(ops[0].magnitude_std)
        self.most = ops[0].magnitude_max or STEPS

    def __len__(self) -> int:
        return len(self.names)

    def draw(self, chosen: NDArray[np.int64], u: Floats) -> AutoDraws:
        """The chosen operations, ``(n, layers)``.

        Each takes four uniforms: one for its probability, two for the magnitude, one for a random sign and the like.
        """
        happens, a, b, way = np.moveaxis(u.reshape(*chosen.shape, 4), 2, 0)
        mean = self.magnitude[chosen]
        if math.isinf(self.spread):  # mstd above 100: uniform up to the magnitude
            magnitude = a * mean
        else:
            magnitude = mean + self.spread * np.sqrt(-2 * np.log1p(-a)) * np.cos(2 * np.pi * b)  # Box-Muller
        ops, args = operations(self.names, chosen, np.clip(magnitude, 0, self.most) / STEPS, way)
        left_out = happens >= self.probability[chosen]
        ops[left_out], args[left_out] = Op.NONE, 0
        return AutoDraws(ops, args)


class TrivialAugment:
    """TrivialAugment, wide (Müller and Hutter, ICCV 2021): one operation of random strength, drawn as in torchvision.

    Args:
        side: side of the images in pixels; translations are up to 32 pixels.
    """

    layers = 1
    uniforms = 3
    STRENGTHS = 31

    def __init__(self, side: int):
        self.side = side

    def draw(self, u: Floats) -> AutoDraws:
        """See :class:`Policy`."""
        strength = np.floor(u[:, 1] * self.STRENGTHS) / (self.STRENGTHS - 1)
        signed, nothing = either_way(strength, u[:, 2]), np.zeros_like(strength)
        factor, share = 1 + 0.99 * signed, np.trunc(32 * signed) / self.side
        space = {
            Op.NONE: nothing,
            Op.SHEAR_X: 0.99 * signed,
            Op.SHEAR_Y: 0.99 * signed,
            Op.TRANSLATE_X: share,
            Op.TRANSLATE_Y: share,
            Op.ROTATE: 135 * signed,
            Op.BRIGHTNESS: factor,
            Op.COLOR: factor,
            Op.CONTRAST: factor,
            Op.SHARPNESS: factor,
            Op.POSTERIZE: 8 - np.rint(6 * strength),
            Op.SOLARIZE: np.ceil(255 - 255 * strength),
            Op.AUTOCONTRAST: nothing,
            Op.EQUALIZE: nothing,
        }
        chosen = (u[:, 0] * len(space)).astype(np.int64)
        args = np.stack(list(space.values()))[chosen, np.arange(len(u))]
        return AutoDraws(np.array(list(space), dtype=np.int8)[chosen][:, None], args[:, None])


class ColorJitter:
    """Colour jitter like torchvision's: brightness, contrast and saturation, in random order.

    Args:
        strength: factors are uniform from 1 - strength, but at least 0, to 1 + strength.
    """

    layers = 3
    uniforms = 6

    def __init__(self, strength: float):
        self.low, self.high = max(0.0, 1 - strength), 1 + strength

    def draw(self, u: Floats) -> AutoDraws:
        """See :class:`Policy`."""
        ops = np.array([Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR], dtype=np.int8)
        return AutoDraws(ops[np.argsort(u[:, :3], axis=1)], self.low + u[:, 3:] * (self.high - self.low))
