"""Random numbers are a pure function of (seed, epoch, stream, position)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from data.planning.draws import Stream, generator_at, raw_words, uniforms


@given(
    start=st.integers(0, 5_000_000),
    before=st.integers(0, 20),
    count=st.integers(1, 20),
    after=st.integers(0, 20),
    draws=st.integers(1, 50),
    stream=st.sampled_from(Stream),
)
def test_numbers_of_a_position_do_not_depend_on_the_others_asked_for(
    start: int, before: int, count: int, after: int, draws: int, stream: Stream
) -> None:
    wide = uniforms(3, 5, stream, start, before + count + after, draws)
    narrow = uniforms(3, 5, stream, start + before, count, draws)
    assert narrow.shape == (count, draws)
    assert np.array_equal(narrow, wide[before : before + count])


def test_generator_of_a_position_does_not_depend_on_what_was_drawn_before() -> None:
    first = generator_at(3, 5, Stream.MIX, 64).random(8)
    generator_at(3, 5, Stream.MIX, 32).random(1000)
    assert np.array_equal(generator_at(3, 5, Stream.MIX, 64).random(8), first)


def test_seeds_epochs_streams_and_positions_have_numbers_of_their_own() -> None:
    places = [(s, e, stream) for s in (0, 1, 2**64 - 1) for e in (0, 1, 256) for stream in Stream]
    side_by_side = np.stack([uniforms(*place, 0, 10, 4) for place in places])
    one_by_one = np.stack([generator_at(*place, position).random(40) for place in places for position in (0, 1, 32)])
    assert len(np.unique(side_by_side)) == side_by_side.size
    assert len(np.unique(one_by_one)) == one_by_one.size


def test_draws_are_pinned() -> None:
    """If a library changes these numbers, every run changes: this test must notice it."""
    assert uniforms(0, 0, Stream.CROP, 0, 2, 3).ravel() == pytest.approx(
        [0.81335406, 0.75133143, 0.67164904, 0.70519522, 0.27307313, 0.814995], abs=1e-8
    )
    assert uniforms(2**63 + 5, 300, Stream.ERASE, 1_000_000, 1, 5).ravel() == pytest.approx(
        [0.99121687, 0.87494352, 0.10467102, 0.72812536, 0.51611866], abs=1e-8
    )
    assert raw_words(7, 3, Stream.ORDER, 3).tolist() == [6062824208859678215, 18225815499514250556, 367774606249613879]
    mix = generator_at(1, 2, Stream.MIX, 64)
    assert (mix.random(), mix.beta(0.8, 0.8)) == pytest.approx((0.39654113, 0.96754996), abs=1e-8)
    assert mix.integers(224) == 209


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    numbers = uniforms(11, 1, Stream.CROP, 0, 20_000, 5)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    along = np.corrcoef(numbers[:-1].T, numbers[1:].T)
    off_diagonal = along[~np.eye(len(along), dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(len(numbers))
