"""The draws of mixup and cutmix."""

from dataclasses import fields

import numpy as np
import pytest
from scipy import stats
from timm.data.mixup import cutmix_bbox_and_lam

from data.augment.mixing import Cutmix, Mix, Mixup
from data.config import MIXES, AugmentConfig
from data.errors import DataError
from tests.plans import SIDE, make_plan

GROUPS = 4000


def mixes(**options) -> list[Mix]:
    """The mix draws of many groups of four images."""
    count = 4 * GROUPS
    plan = make_plan(count=count, augment=AugmentConfig(mix_group=4, **options), batch=count)
    return plan.device_draws(0, range(count)).mix


def test_mix_groups_cover_the_batch_once() -> None:
    assert [mix.rows for mix in mixes(mixup=0.8)] == [slice(start, start + 4) for start in range(0, 4 * GROUPS, 4)]


def test_nothing_is_mixed_where_both_are_off() -> None:
    assert mixes() == []


def test_each_option_is_known_as_a_mix_or_as_none() -> None:
    """A mix that ``MIXES`` lacks would be used only beside another one, and nothing would say so."""
    no_mix = {"scale", "ratio", "hflip", "auto_augment", "color_jitter", "repeats", "mixup_prob", "mixup_switch_prob"}
    no_mix |= {"mix_group", "mixup_off_epoch", "random_erasing", "label_smoothing", "crop_by"}
    assert {field.name for field in fields(AugmentConfig)} - no_mix == set(MIXES)


def test_mixing_ends_after_so_many_epochs_and_changes_nothing_else() -> None:
    """As timm's ``--mixup-off-epoch``: epochs count from 0 there, and mixup and cutmix both end."""
    options = {"mix_group": 4, "mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.5}
    ends, goes_on = (make_plan(augment=AugmentConfig(mixup_off_epoch=off, **options)) for off in (2, None))
    for epoch in range(4):
        drawn, other = (plan.device_draws(epoch, range(76)) for plan in (ends, goes_on))
        assert drawn.mix == (other.mix if epoch < 2 else [])
        assert np.array_equal(drawn.erase, other.erase) and len(other.mix) == 19
        assert np.array_equal(*(plan.crops(epoch, range(76)).index for plan in (ends, goes_on)))


def test_an_end_of_mixing_without_mixing_is_refused() -> None:
    AugmentConfig(mixup_off_epoch=5, cutmix=1.0).check()
    message = "augment.mixup_off_epoch=5 ends nothing, because no images are mixed: leave it out, or set augment.mixup"
    with pytest.raises(DataError, match=message):
        AugmentConfig(mixup_off_epoch=5).check()


def test_groups_of_one_image_cannot_be_mixed() -> None:
    AugmentConfig(mix_group=1).check()
    assert [AugmentConfig(mix_group=4, **mixing).inseparable for mixing in ({}, {"cutmix": 1.0})] == [1, 4]
    message = (
        "augment.mix_group=1 leaves no other image to mix with: set augment.mix_group=2 or more, or augment.mixup=0"
    )
    with pytest.raises(DataError, match=message):
        AugmentConfig(mix_group=1, cutmix=1.0).check()


def test_as_many_groups_are_mixed_and_cut_as_asked_for() -> None:
    half = mixes(mixup=0.8, cutmix=1.0)
    assert len(half) == GROUPS
    assert np.mean([isinstance(mix, Cutmix) for mix in half]) == pytest.approx(0.5, abs=0.03)
    fewer = mixes(mixup=0.8, cutmix=1.0, mixup_prob=0.3, mixup_switch_prob=0.9)
    assert len(fewer) / GROUPS == pytest.approx(0.3, abs=0.03)
    assert np.mean([isinstance(mix, Cutmix) for mix in fewer]) == pytest.approx(0.9, abs=0.04)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_mixup_shares_are_beta_distributed(alpha: float) -> None:
    drawn = mixes(mixup=alpha)
    assert all(isinstance(mix, Mixup) for mix in drawn)
    assert stats.kstest([mix.lam for mix in drawn], stats.beta(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_cutmix_boxes_and_shares_are_timms(alpha: float) -> None:
    boxes = np.array([mix.box for mix in mixes(cutmix=alpha) if isinstance(mix, Cutmix)])
    assert len(boxes) == GROUPS
    state = np.random.get_state()
    np.random.seed(0)
    theirs = []
    for _ in range(GROUPS):
        (top, bottom, left, right), _ = cutmix_bbox_and_lam((3, SIDE, SIDE), np.random.beta(alpha, alpha))
        theirs.append((top, left, bottom - top, right - left))
    np.random.set_state(state)
    for column in range(4):
        assert stats.ks_2samp(boxes[:, column], np.array(theirs)[:, column]).pvalue > 1e-3
    areas, odd = zip(*((of[:, 2] * of[:, 3], (of[:, 2:] % 2).mean()) for of in (boxes, np.array(theirs))), strict=True)
    assert stats.ks_2samp(*areas).pvalue > 1e-3
    assert odd[0] == pytest.approx(odd[1], abs=0.03)


def test_cutmix_share_is_what_the_box_leaves() -> None:
    for mix in mixes(cutmix=1.0):
        assert isinstance(mix, Cutmix)
        top, left, height, width = mix.box
        assert 0 <= top <= top + height <= SIDE
        assert 0 <= left <= left + width <= SIDE
        assert mix.lam == pytest.approx(1 - height * width / SIDE**2, abs=1e-12)
