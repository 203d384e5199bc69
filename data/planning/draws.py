"""Random numbers as a pure function of where they are used.

Every draw is keyed by (seed, epoch, stream, position), with numpy's Philox as the counter-based generator. Nothing
depends on what was drawn before, so any batch of any epoch can be made at any time, on any process.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

WORDS_PER_BLOCK = 4  # Philox yields four 64-bit words for each value of its counter


class Stream(IntEnum):
    """What a draw is for. Streams are independent: adding one changes no other."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    MIX = 3
    ERASE = 4
    AUTO = 5  # automatic augmentation (RandAugment and its relatives)
    INTERPOLATION = 6
    SUBSET = 7
    BALANCE = 8
    REPLACE = 9  # replacement of images that cannot be read
    NOISE = 10  # the seed of the noise in erased boxes


def _key(seed: int, epoch: int, stream: Stream) -> NDArray[np.uint64]:
    return np.array([seed, epoch << 8 | stream], dtype=np.uint64)


def raw_words(seed: int, epoch: int, stream: Stream, count: int) -> NDArray[np.uint64]:
    """The first ``count`` 64-bit words of a stream."""
    return np.random.Philox(key=_key(seed, epoch, stream)).random_raw(count)


def uniforms(seed: int, epoch: int, stream: Stream, start: int, count: int, draws: int) -> NDArray[np.float64]:
    """``draws`` numbers in [0, 1) for each of the positions ``start … start + count - 1``: ``(count, draws)``.

    The numbers of a position do not depend on which other positions are drawn in the same call.
    """
    blocks = -(-draws // WORDS_PER_BLOCK)
    generator = np.random.Philox(key=_key(seed, epoch, stream), counter=start * blocks)
    words = generator.random_raw(count * blocks * WORDS_PER_BLOCK)
    numbers = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers.reshape(count, -1)[:, :draws]


def generator_at(seed: int, epoch: int, stream: Stream, position: int) -> np.random.Generator:
    """A separate generator for one position, for distributions that need an unknown number of draws."""
    return np.random.Generator(np.random.Philox(key=_key(seed, epoch, stream), counter=[0, position, 0, 0]))
