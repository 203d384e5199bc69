"""The order of an epoch: which image is at which position, as a pure function of seed, epoch and a few options."""

import numpy as np
from numpy.typing import NDArray

from data.planning.draws import Stream, raw_words, uniforms

Rows = NDArray[np.int64]


def subset_rows(targets: NDArray[np.int32], share: float) -> Rows:
    """The rows of the index that ``data.subset`` keeps: the same share of every class, and at least one image of each.

    They depend on the classes alone, so runs with different seeds train on the same images. A smaller subset is part
    of a larger one.

    Args:
        targets: class of each row, ``(images,)``.
        share: more than 0, at most 1.
    """
    if share == 1:
        return np.arange(len(targets))
    rows, starts, sizes = _by_class(targets, raw_words(0, 0, Stream.SUBSET, len(targets)))
    kept = np.maximum(np.round(share * sizes), 1)
    ranks = np.arange(len(rows)) - np.repeat(starts, sizes)
    return np.sort(rows[ranks < np.repeat(kept, sizes)])


def epoch_order(
    seed: int,
    epoch: int,
    targets: NDArray[np.int32],
    batch_size: int,
    repeats: int = 1,
    balanced: bool = False,
) -> Rows:
    """Which image is at each position of an epoch, ``(images,)``: an epoch has as many positions as there are images.

    Args:
        seed: the run's seed.
        epoch: counted from 0.
        targets: class of each image, ``(images,)``.
        batch_size: the global batch size; used only with ``repeats``.
        repeats: how often an image appears, augmented differently each time. The epoch then uses 1/repeats of the
            images (repeated augmentation: Berman et al. 2019, section 3.2; DeiT, section 6).
        balanced: whether every class appears equally often. An epoch then uses only a part of a large class, and
            repeats the images of a small one.
    """
    words = raw_words(seed, epoch, Stream.ORDER, len(targets))
    order = _balanced(seed, epoch, targets, words) if balanced else np.argsort(words, kind="stable")
    return order if repeats == 1 else order[_repeated(len(order), batch_size, repeats)]


def without_bad(seed: int, epoch: int, start: int, index: Rows, rows: Rows, bad: frozenset[int]) -> Rows:
    """Replace each bad image with another one: a row drawn for the position, or the next row that is good.

    Args:
        seed: the run's seed.
        epoch: counted from 0.
        start: position of the first image.
        index: the images at the positions from ``start`` on, ``(n,)``.
        rows: all images to choose from; at least one must be good.
        bad: rows of the images that cannot be read.
    """
    index = index.copy()
    places = uniforms(seed, epoch, Stream.REPLACE, start, len(index), 1)[:, 0] * len(rows)
    for i in np.flatnonzero(np.isin(index, list(bad))):
        place = int(places[i])
        while int(rows[place]) in bad:
            place = (place + 1) % len(rows)
        index[i] = rows[place]
    return index


def _by_class(targets: NDArray[np.int32], words: NDArray[np.uint64]) -> tuple[Rows, Rows, Rows]:
    """Images sorted by class and then by their word; and the start and the size of each class that occurs."""
    rows = np.lexsort((words, targets))
    starts = np.unique(targets[rows], return_index=True)[1]
    return rows, starts, np.diff(starts, append=len(rows))


def _balanced(seed: int, epoch: int, targets: NDArray[np.int32], words: NDArray[np.uint64]) -> Rows:
    rows, starts, sizes = _by_class(targets, words)
    turn, place = np.divmod(np.arange(len(rows)), len(starts))
    classes = np.argsort(raw_words(seed, epoch, Stream.BALANCE, len(starts)), kind="stable")[place]
    chosen = rows[starts[classes] + turn % sizes[classes]]
    # Here the classes still take turns. Shuffle with words that come later in the stream than those used above.
    shuffle = raw_words(seed, epoch, Stream.BALANCE, len(starts) + len(rows))[len(starts) :]
    return chosen[np.argsort(shuffle, kind="stable")]


def _repeated(count: int, batch_size: int, repeats: int) -> Rows:
    """For each position, the place of its image in the order.

    The copies of an image are in the same global batch, except at the edges of a batch. Inside the batch they are as
    far apart as possible. If the batch has at least ``repeats`` mix groups, copies are therefore not mixed with one
    another, and usually no process sees two of them.
    """
    positions = np.arange(count)
    spread = np.argsort(np.arange(batch_size) % repeats, kind="stable")
    full = count // batch_size * batch_size
    positions[:full] = (positions[:full].reshape(-1, batch_size)[:, :1] + spread).ravel()
    return positions // repeats
