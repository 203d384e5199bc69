"""Policies draw the same operations as timm and torchvision, with the same probabilities."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from timm.data import auto_augment as timm
from torchvision import transforms
from torchvision.transforms import autoaugment

from data.augment.levels import LEVELS, Op
from data.augment.policies import AutoAugment, AutoDraws, ColorJitter, Policy, RandAugment, TrivialAugment, policies
from data.errors import DataError
from data.planning.draws import Stream, uniforms

RECIPE = "rand-m9-mstd0.5-inc1"
COUNT = 20_000
CHANCE = 1e-4  # probability of a false alarm; the seeds are fixed


def draw(policy: Policy, count: int = COUNT) -> AutoDraws:
    return policy.draw(uniforms(3, 0, Stream.AUTO, 0, count, policy.uniforms))


def named(auto: str) -> Policy:
    (policy,) = policies(auto, 0.0, 224)
    return policy


def drawn_by_timm(auto: str, count: int = COUNT) -> AutoDraws:
    """timm's own sampling as our draws: its operations are replaced by functions that record name and argument."""

    def note(name: str):
        def take(notes: list, *args: float, **_) -> list:
            if name == "Desaturate":
                args = (1 - args[0],)
            if name == "GaussianBlurRand":
                args = (random.uniform(0.1, 2.0 * args[0]),)
            return [*notes, (LEVELS[name][0], *(args or (0,)))]

        return take

    rand = auto.startswith("rand")
    transform = (timm.rand_augment_transform if rand else timm.auto_augment_transform)(auto)
    for op in transform.ops if rand else [op for sequence in transform.policy for op in sequence]:
        op.aug_fn = note(op.name)
    random.seed(5)
    np.random.seed(5)
    layers = transform.num_layers if rand else len(transform.policy[0])
    notes = [transform([]) for _ in range(count)]
    padded = np.array([[*n, *[(Op.NONE, 0)] * (layers - len(n))] for n in notes])
    return AutoDraws(padded[..., 0].astype(np.int8), padded[..., 1])


def close_up(draws: AutoDraws) -> AutoDraws:
    """The same draws with ``Op.NONE`` moved to the end, as in :func:`drawn_by_timm`."""
    order = np.argsort(draws.ops == Op.NONE, axis=1, kind="stable")
    return AutoDraws(*(np.take_along_axis(array, order, axis=1) for array in (draws.ops, draws.args)))


def counts(ops: NDArray) -> Counter:
    return Counter(map(tuple, ops.tolist()))


def assert_equally_distributed(ours: AutoDraws, theirs: AutoDraws) -> None:
    """Chi-square test for the sequences of operations, Kolmogorov-Smirnov test for the arguments of each operation."""
    a, b = counts(ours.ops), counts(theirs.ops)
    often = [key for key in a | b if a[key] + b[key] >= 20]
    table = np.array([[c[key] for key in often] for c in (a, b)])
    rest = np.array([[len(ours.ops)], [len(theirs.ops)]]) - table.sum(axis=1, keepdims=True)
    table = np.hstack([table, rest]) if rest.sum() >= 20 else table
    assert stats.chi2_contingency(table).pvalue > CHANCE
    for op in set(ours.ops.ravel()) - {Op.NONE}:
        mine, other = ours.args[ours.ops == op], theirs.args[theirs.ops == op]
        assert stats.ks_2samp(mine, other).pvalue > CHANCE, Op(op)


NAMES = (
    *(RECIPE, "rand-m7-n3-p0.8-inc1", "rand-m5-mstd101-inc1", "rand-m15-mmax20-mstd3"),
    *("rand-m9-mstd0.5-tweights", "rand-m8-n3-t3aw", "rand-m10-n1-p1.0-t3a", "3a", "original", "v0", "v0r-mstd0.5"),
)
# The parts of these names are parts of names above.
FURTHER = ("rand", "rand-m9-mstd0.5", "rand-mstd1-tweights-n1", "3a-mstd2", "originalr-mstd0.5")


@pytest.mark.parametrize("auto", [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in FURTHER)])
def test_draws_are_distributed_as_timms(auto: str) -> None:
    assert_equally_distributed(close_up(draw(named(auto))), drawn_by_timm(auto))


def test_the_recipe_is_what_its_name_says() -> None:
    policy = named(RECIPE)
    assert isinstance(policy, RandAugment)
    assert (policy.layers, len(policy.candidates), policy.weights) == (2, 15, None)
    draws = draw(policy, 100_000)
    expected = np.full(16, 0.5 / 15)
    expected[Op.NONE] = 0.5
    for layer in draws.ops.T:
        found = np.bincount(layer, minlength=len(Op))
        found = found[found > 0]
        assert stats.chisquare(found, expected * len(layer)).pvalue > CHANCE
    both = np.bincount((draws.ops[:, 0].astype(int) * len(Op) + draws.ops[:, 1]), minlength=len(Op) ** 2)
    theory = np.outer(expected, expected).ravel()
    assert stats.chisquare(both[both > 0], theory * len(draws.ops)).pvalue > CHANCE  # layers are independent

    turns = draws.args[draws.ops == Op.ROTATE]
    assert stats.binomtest(int((turns > 0).sum()), len(turns)).pvalue > CHANCE
    magnitudes = np.abs(turns) / 3  # N(9, 0.5), clipped at 10
    inside = magnitudes[magnitudes < 10]
    assert stats.kstest(inside, stats.truncnorm(-18, 2, loc=9, scale=0.5).cdf).pvalue > CHANCE
    share = stats.norm.sf(2)
    assert stats.binomtest(int((magnitudes == 10).sum()), len(magnitudes), share).pvalue > CHANCE


def test_trivial_augment_is_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    side = 64
    factor = {"Brightness": Op.BRIGHTNESS, "Color": Op.COLOR, "Contrast": Op.CONTRAST, "Sharpness": Op.SHARPNESS}
    moved = {"TranslateX": Op.TRANSLATE_X, "TranslateY": Op.TRANSLATE_Y}
    other = {"Identity": Op.NONE, "AutoContrast": Op.AUTOCONTRAST, "Rotate": Op.ROTATE, "Solarize": Op.SOLARIZE}
    other |= {"ShearX": Op.SHEAR_X, "ShearY": Op.SHEAR_Y, "Posterize": Op.POSTERIZE, "Equalize": Op.EQUALIZE}

    def note(_, name: str, magnitude: float, **__) -> tuple[Op, float]:
        if name in factor:
            return factor[name], 1 + magnitude
        if name in moved:
            return moved[name], int(magnitude) / side
        return other[name], float(np.ceil(magnitude)) if name == "Solarize" else magnitude

    monkeypatch.setattr(autoaugment, "_apply_op", note)
    transform, image = transforms.TrivialAugmentWide(), torch.zeros(3, side, side, dtype=torch.uint8)
    notes = np.array([transform(image) for _ in range(6000)])[:, None]
    theirs = AutoDraws(notes[..., 0].astype(np.int8), notes[..., 1])
    ours = draw(TrivialAugment(side))
    assert_equally_distributed(ours, theirs)
    for op in set(ours.ops.ravel()):  # exactly the same values, however often each appears
        mine, other = np.unique(ours.args[ours.ops == op]), theirs.args[theirs.ops == op]
        if op in moved.values():  # torchvision computes 15.999998 instead of 16 pixels and truncates it to 15
            other = other[np.abs(other) != 15 / side]
        assert np.abs(other[:, None] - mine).min(axis=1).max() < 1e-5, Op(op)


def test_colour_jitter_is_torchvisions() -> None:
    ours = draw(ColorJitter(0.4))
    notes = [transforms.ColorJitter.get_params([0.6, 1.4], [0.6, 1.4], [0.6, 1.4], None) for _ in range(5000)]
    kinds = np.array([Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR])
    order = np.array([[i for i in note[0].tolist() if i < 3] for note in notes])
    args = np.take_along_axis(np.array([note[1:4] for note in notes]), order, axis=1)
    assert_equally_distributed(ours, AutoDraws(kinds[order], args))
    assert 0 <= draw(ColorJitter(1.5)).args.min() < 0.01


@pytest.mark.parametrize(
    ("auto", "jitter", "kinds"),
    [
        (None, 0.0, []),
        (None, 0.4, [ColorJitter]),
        (RECIPE, 0.4, [RandAugment]),
        ("trivial", 0.4, [TrivialAugment]),
        ("original", 0.4, [AutoAugment]),
        ("3a", 0.3, [AutoAugment, ColorJitter]),
        ("3a-mstd1", 0.0, [AutoAugment]),
        ("rand-t3aw", 0.3, [RandAugment, ColorJitter]),
    ],
)
def test_colour_jitter_comes_where_timm_has_it(auto: str | None, jitter: float, kinds: list[type]) -> None:
    assert [type(policy) for policy in policies(auto, jitter, 224)] == kinds


@pytest.mark.parametrize(
    ("auto", "said"),
    [
        ("augmix-m5", "augment.auto_augment=augmix-m5 is unknown: choose rand-m9-mstd0.5-inc1"),
        ("none", "v0r, null"),
        ("randm9", "is unknown"),
        ("", "is unknown"),
        ("rand-m9.5", "'m9.5' is unknown"),
        ("rand-m9-w0", "'w0' is unknown"),
        ("rand-9", "'9' is unknown"),
        ("rand-m9-", "'' is unknown"),
        ("rand-inc", "'inc' is unknown"),
        ("rand-mstd-0.5", "'mstd' is unknown"),
        ("rand-tfoo", "'tfoo' is unknown"),
        ("rand-m9-m5", "'m' is given twice"),
        ("rand-t3a-tweights", "'t' is given twice"),
        ("rand-n0", "no operation"),
        ("rand-n16-tweights", "'n16' is more than the 15 operations"),
        ("v0-m9", "'m9' is unknown"),
        ("trivial-m9", "is unknown"),
    ],
)
def test_what_there_is_not_is_refused_in_one_line(auto: str, said: str) -> None:
    with pytest.raises(DataError) as error:
        policies(auto, 0.0, 224)
    assert (
        said in str(error.value) and f"augment.auto_augment={auto}" in str(error.value) and "\n" not in str(error.value)
    )
