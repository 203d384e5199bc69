"""The order of an epoch: which image stands at which position, as a pure function of seed, epoch and a few options."""

import numpy as np
from numpy.typing import NDArray

from data.draws import Stream, raw_words, uniforms

Rows = NDArray[np.int64]


def subset_rows(targets: NDArray[np.int32], share: float) -> Rows:
    """The rows of the index that ``data.subset`` leaves: the same share of every class, and at least one image.

    A function of the classes alone, so that runs of all seeds train on the same images; a smaller subset is part of a
    larger one.

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
    """Which image stands at each position of an epoch, ``(images,)``: always as many as there are.

    Args:
        seed: the run's.
        epoch: counted from 0.
        targets: class of each image, ``(images,)``.
        batch_size: the global one; only repeats depend on it.
        repeats: times that an image comes, each time in another form; the epoch takes as many images less (repeated
            augmentation: Berman et al. 2019, section 3.2; DeiT, section 6).
        balanced: every class equally often. Of a large one an epoch takes a part, those of a small one come again.
    """
    words = raw_words(seed, epoch, Stream.ORDER, len(targets))
    order = _balanced(seed, epoch, targets, words) if balanced else np.argsort(words, kind="stable")
    return order if repeats == 1 else order[_repeated(len(order), batch_size, repeats)]


def without_bad(seed: int, epoch: int, start: int, index: Rows, rows: Rows, bad: frozenset[int]) -> Rows:
    """Images with another one in the place of each that is bad: one drawn for the position, or the next that is good.

    Args:
        seed: the run's.
        epoch: counted from 0.
        start: position of the first image.
        index: the images at the positions from there on, ``(n,)``.
        rows: all images to choose from, of which some are good.
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
    """Images sorted by class and, inside it, by their word; where each class that occurs starts, and its size."""
    rows = np.lexsort((words, targets))
    starts = np.unique(targets[rows], return_index=True)[1]
    return rows, starts, np.diff(starts, append=len(rows))


def _balanced(seed: int, epoch: int, targets: NDArray[np.int32], words: NDArray[np.uint64]) -> Rows:
    rows, starts, sizes = _by_class(targets, words)
    turn, place = np.divmod(np.arange(len(rows)), len(starts))
    classes = np.argsort(raw_words(seed, epoch, Stream.BALANCE, len(starts)), kind="stable")[place]
    chosen = rows[starts[classes] + turn % sizes[classes]]
    # So far the classes come in turn. Words further on in the stream than those that ordered them.
    shuffle = raw_words(seed, epoch, Stream.BALANCE, len(starts) + len(rows))[len(starts) :]
    return chosen[np.argsort(shuffle, kind="stable")]


def _repeated(count: int, batch_size: int, repeats: int) -> Rows:
    """For each position the place of its image in the order.

    Copies of an image are in one global batch, but for those at its edge, and as far apart there as can be: in a batch
    of that many mix groups they are not mixed with one another, and as a rule not seen by one process.
    """
    positions = np.arange(count)
    spread = np.argsort(np.arange(batch_size) % repeats, kind="stable")
    full = count // batch_size * batch_size
    positions[:full] = (positions[:full].reshape(-1, batch_size)[:, :1] + spread).ravel()
    return positions // repeats
