"""Orders of an epoch: which images appear, how often, and how far apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from data.planning.order import epoch_order, subset_rows

SIZES = [120, 60, 30, 9, 1]  # number of images in each class


def targets(sizes: list[int] = SIZES) -> NDArray[np.int32]:
    return np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)


def counts(rows: NDArray[np.int64], sizes: list[int] = SIZES) -> list[int]:
    return np.bincount(targets(sizes)[rows], minlength=len(sizes)).tolist()


# --- subsets --------------------------------------------------------------------------------------------------------


def test_the_whole_is_every_image() -> None:
    assert subset_rows(targets(), 1.0).tolist() == list(range(sum(SIZES)))


@pytest.mark.parametrize(
    "share, expected",
    [(0.5, [60, 30, 15, 4, 1]), (0.59, [71, 35, 18, 5, 1]), (0.1, [12, 6, 3, 1, 1]), (1e-6, [1] * 5)],
)
def test_a_subset_is_the_same_share_of_every_class(share: float, expected: list[int]) -> None:
    rows = subset_rows(targets(), share)
    assert counts(rows) == expected
    assert (np.diff(rows) > 0).all()


@given(st.floats(1e-3, 1), st.floats(1e-3, 1))
def test_a_smaller_subset_is_part_of_a_larger_one(a: float, b: float) -> None:
    small, large = (set(subset_rows(targets(), share).tolist()) for share in sorted((a, b)))
    assert small <= large


def test_a_subset_is_drawn_from_all_of_a_class() -> None:
    rows = subset_rows(targets([10_000]), 0.1)
    assert stats.kstest(rows / 10_000, "uniform").pvalue > 1e-3


def test_classes_need_not_lie_together() -> None:
    mixed = np.random.default_rng(0).permutation(targets())
    rows = subset_rows(mixed, 0.5)
    assert np.bincount(mixed[rows]).tolist() == [60, 30, 15, 4, 1]


# --- balanced classes -----------------------------------------------------------------------------------------------


def test_balanced_classes_come_equally_often() -> None:
    for epoch in range(3):
        order = epoch_order(1, epoch, targets(), 16, balanced=True)
        assert sorted(counts(order)) == [44] * 5


def test_those_of_a_small_class_come_equally_often_and_of_a_large_one_at_most_once() -> None:
    order = epoch_order(1, 0, targets(), 16, balanced=True)
    times = np.bincount(order, minlength=sum(SIZES))
    assert times[:120].max() == 1
    assert times[210:219].tolist().count(5) == 44 - 4 * 9
    assert times[219] == 44


def test_which_class_comes_once_more_changes_with_the_epoch() -> None:
    more = [
        np.argmax(counts(epoch_order(1, epoch, targets([7, 7, 8]), 4, balanced=True), [7, 7, 8])) for epoch in range(90)
    ]
    assert min(np.bincount(more, minlength=3)) > 15


def test_balanced_classes_are_shuffled() -> None:
    classes = np.array([targets()[epoch_order(1, epoch, targets(), 16, balanced=True)[:100]] for epoch in range(400)])
    at_each_place = np.stack([np.bincount(column, minlength=5) for column in classes.T])
    assert stats.chisquare(at_each_place.ravel()).pvalue > 1e-3
    follows = (classes[:, 1:] == classes[:, :-1]).mean()
    assert follows == pytest.approx(43 / 219, abs=0.01)


# --- repeats --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeats", [2, 3, 4])
def test_an_image_comes_that_many_times_in_one_batch_and_far_apart(repeats: int) -> None:
    batch = 12
    order = epoch_order(1, 0, targets(), batch, repeats)
    assert len(order) == sum(SIZES)
    for rows in order[: len(order) // batch * batch].reshape(-1, batch):
        assert np.bincount(rows).max() == repeats
        assert len(set(rows.tolist())) == batch // repeats
        for part in rows.reshape(repeats, -1):  # the parts of that many processes
            assert len(set(part.tolist())) == batch // repeats


def test_repeats_that_do_not_divide_a_batch_go_on_in_the_next() -> None:
    order = epoch_order(1, 0, targets(), 16, 3)
    times = np.bincount(order, minlength=sum(SIZES))
    assert sorted(set(times.tolist())) == [0, 1, 3]
    assert (times == 1).sum() == 1  # 220 = 73 · 3 + 1
    plain = epoch_order(1, 0, targets(), 16)
    assert set(order.tolist()) == set(plain[:74].tolist())


def test_without_options_the_order_is_a_permutation_and_ignores_the_batch() -> None:
    order = epoch_order(3, 5, targets(), 16)
    assert sorted(order.tolist()) == list(range(sum(SIZES)))
    assert np.array_equal(order, epoch_order(3, 5, targets(), 64))
