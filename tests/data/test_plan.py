"""The plan: the same images, changed in the same way, for any number of processes and in any order of calls."""

from dataclasses import fields, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from data.augment.mixing import Mix
from data.config import AugmentConfig, DataConfig
from data.planning.crops import Crops
from data.planning.geometry import BatchGeometry
from data.planning.plan import EvalPlan, TrainPlan
from tests.plans import ALL, SIDE, image_index, make_plan

COUNTS = (1, 2, 3, 7, 8)  # numbers of processes


def columns(crops: Crops) -> NDArray:
    """Everything about each crop, one row for each image."""
    return np.column_stack([crops.index, crops.box, crops.size, crops.window, crops.flip, crops.cubic])


def global_batch(step: int, world: int = 1, micro: int | None = None, **options) -> tuple[NDArray, list[Mix]]:
    """Crops, draws and mix groups of one step, joined over all processes; ``rows`` count from the start of the step."""
    rows, mixes, done = [], [], 0
    for rank in range(world):
        plan = make_plan(world=world, rank=rank, micro=micro, **options)
        for epoch, positions in plan.positions(step):
            crops, draws = plan.crops(epoch, positions), plan.device_draws(epoch, positions)
            assert draws.erase is not None and draws.auto is not None
            auto = draws.auto
            rows.append(np.column_stack([columns(crops), draws.erase, auto.ops, auto.args, draws.cubic]))
            shift = [range(done + mix.rows.start, done + mix.rows.stop) for mix in draws.mix]
            mixes += [replace(mix, rows=rows) for mix, rows in zip(draws.mix, shift, strict=True)]
            done += len(positions)
    return np.concatenate(rows), mixes


@pytest.mark.parametrize("world", COUNTS)
@pytest.mark.parametrize("micro", [None, 1, 8, 20, 76])
def test_global_batch_does_not_depend_on_processes_and_micro_batches(world: int, micro: int | None) -> None:
    for step in (0, 1, 5):
        whole, whole_mixes = global_batch(step)
        cut, cut_mixes = global_batch(step, world, micro)
        assert len(whole) == 76
        assert np.array_equal(cut, whole)
        assert cut_mixes == whole_mixes
        assert whole_mixes


def test_an_epoch_goes_on_as_before_when_the_number_of_processes_changes_in_it() -> None:
    """Batches of 1024, as in recipes for ImageNet, on three nodes of eight GPUs, then on two nodes, seven GPUs, one."""
    options = {"count": 4 * 1024, "batch": 1024, "augment": replace(ALL, mix_group=32)}
    taken = []
    for step, world in enumerate((24, 16, 7, 1)):
        whole, whole_mixes = global_batch(step, **options)
        cut, cut_mixes = global_batch(step, world, 64, **options)
        assert np.array_equal(cut, whole) and cut_mixes == whole_mixes
        taken += cut[:, 0].tolist()
    assert sorted(taken) == list(range(4 * 1024)), "every image once"


@pytest.mark.parametrize("world", COUNTS)
def test_nor_do_subsets_balanced_classes_and_repeats(world: int) -> None:
    options = {"count": 800, "augment": replace(ALL, repeats=3), "subset": 0.5, "balanced": True}
    whole, _ = global_batch(4, **options)
    cut, _ = global_batch(4, world, 8, **options)
    assert np.array_equal(cut, whole)
    assert len(np.unique(whole[:, 0])) in (26, 27)  # 76 / 3, and an image whose first copies are in the batch before
    assert len(np.unique(whole, axis=0)) == 76  # each copy is changed differently


def test_these_plans_use_every_augmentation() -> None:
    unused = [f"augment.{o.name}" for o in fields(AugmentConfig) if o.default in (0, None) and not getattr(ALL, o.name)]
    assert not unused, f"give {', '.join(unused)} a value in NAMED of tests/plans.py: the tests of plans take it"


def test_epochs_of_a_subset_are_shorter() -> None:
    plan = make_plan(count=800, subset=0.5)
    assert plan.steps_per_epoch == 400 // 76
    assert set(epoch_order(plan, 0)) | set(epoch_order(plan, 1)) <= set(plan.rows.tolist())
    assert [len(plan.images_of(step)) for step in range(7)] == [76] * 7


def test_what_replaces_a_bad_image_is_of_the_subset_too() -> None:
    plan = make_plan(count=800, subset=0.5)
    for rows in (plan.images_of(0)[:50], plan.rows[3:]):  # some, and nearly all
        bad = frozenset(rows.tolist())
        taken = set(plan.crops(0, range(76), bad).index.tolist())
        assert taken <= set(plan.rows.tolist()) - bad


def epoch_order(plan: TrainPlan, epoch: int) -> NDArray[np.int64]:
    """The images of an epoch in their order."""
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    return np.concatenate([plan.crops(*place).index for step in steps for place in plan.positions(step)])


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_takes_each_image_at_most_once_in_full_batches(epoch: int) -> None:
    plan = make_plan()
    taken = epoch_order(plan, epoch)
    assert plan.steps_per_epoch == 3
    assert len(taken) == 3 * 76
    assert len(np.unique(taken)) == len(taken)
    assert set(taken) < set(range(230))


def test_an_epoch_of_full_batches_takes_every_image() -> None:
    assert sorted(epoch_order(make_plan(count=228), 3)) == list(range(228))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [epoch_order(make_plan(seed=seed), epoch) for seed in (1, 2) for epoch in (0, 1, 2)]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert (a == b).mean() < 0.05
    left_out = [frozenset(range(230)) - set(order) for order in orders]
    assert len(set(left_out)) > 1


def test_every_image_stands_anywhere_equally_often() -> None:
    plan = make_plan(count=20)
    first = [int(plan.order(epoch)[0]) for epoch in range(2000)]
    assert stats.chisquare(np.bincount(first, minlength=20)).pvalue > 1e-3


def test_any_step_can_be_asked_for_at_once() -> None:
    walked = make_plan(micro=20)
    for step in range(11):
        fresh = make_plan(micro=20)
        assert walked.positions(step) == fresh.positions(step)
        for place in walked.positions(step):
            assert np.array_equal(columns(walked.crops(*place)), columns(fresh.crops(*place)))
            ours, theirs = walked.device_draws(*place), fresh.device_draws(*place)
            assert np.array_equal(ours.erase, theirs.erase)
            assert np.array_equal(ours.auto.args, theirs.auto.args)
            assert (ours.mix, ours.noise) == (theirs.mix, theirs.noise)


def test_each_micro_batch_has_noise_of_its_own() -> None:
    alone = make_plan(micro=16)
    places = [place for step in range(9) for place in alone.positions(step)]  # of three epochs
    seeds = [alone.device_draws(*place).noise for place in places]
    assert len(set(seeds)) == len(seeds) == 45
    assert make_plan(micro=16, seed=2).device_draws(*places[0]).noise != seeds[0]


def test_the_images_of_a_step_are_those_of_all_its_micro_batches() -> None:
    for step in (0, 2, 5):
        plans = [make_plan(world=3, rank=rank, micro=16) for rank in range(3)]
        taken = [plan.crops(epoch, where).index for plan in plans for epoch, where in plan.positions(step)]
        assert np.concatenate(taken).tolist() == plans[0].images_of(step).tolist()


def test_steps_run_through_the_epochs() -> None:
    plan = make_plan()
    assert [plan.positions(step) for step in (0, 2, 3, 10)] == [
        [(0, range(0, 76))],
        [(0, range(152, 228))],
        [(1, range(0, 76))],
        [(3, range(76, 152))],
    ]


def test_an_image_is_cropped_anew_in_each_epoch() -> None:
    plan = make_plan()
    crops = [plan.crops(epoch, range(228)) for epoch in (0, 1)]
    boxes = [dict(zip(c.index.tolist(), c.box.tolist(), strict=True)) for c in crops]
    assert np.mean([boxes[0][i] == boxes[1][i] for i in boxes[0].keys() & boxes[1].keys()]) < 0.05


def test_every_draw_differs_between_epochs_and_seeds() -> None:
    """Of images of one size, so that crops depend on draws alone."""
    found: list[dict[str, NDArray]] = []
    for seed, epoch in ((1, 0), (1, 1), (2, 0)):
        plan = make_plan(seed=seed)
        plan.index = replace(plan.index, heights=np.full(230, 300), widths=np.full(230, 400))
        crops, draws = plan.crops(epoch, range(228)), plan.device_draws(epoch, range(228))
        assert draws.erase is not None and draws.auto is not None and draws.cubic is not None
        whole = {"order": crops.index, "box": crops.box, "flip": crops.flip, "cubic": draws.cubic, "erase": draws.erase}
        mix = np.array([mix.lam for mix in draws.mix])
        found.append(whole | {"auto": draws.auto.args, "mix": mix, "noise": np.array(draws.noise)})
    for other in found[1:]:
        assert not [name for name, values in found[0].items() if np.array_equal(values, other[name])]


def test_boxes_belong_to_their_images() -> None:
    plan = make_plan()
    crops = plan.crops(0, range(228))
    sizes = np.stack([plan.index.heights, plan.index.widths], axis=1)[crops.index]
    assert (crops.box[:, :2] + crops.box[:, 2:] <= sizes).all()
    assert (crops.size == SIDE).all()
    assert (crops.window == 0).all()


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_as_many_images_are_flipped_and_erased_as_asked_for(probability: float) -> None:
    augment = AugmentConfig(hflip=probability, random_erasing=probability)
    plan = make_plan(count=6000, augment=augment, batch=6000)
    erase = plan.device_draws(0, range(6000)).erase
    assert plan.crops(0, range(6000)).flip.mean() == pytest.approx(probability, abs=0.03)
    assert (erase is not None) == (probability > 0)
    if erase is not None:
        assert (erase[:, 2] > 0).mean() == pytest.approx(probability, abs=0.03)


def test_what_happens_to_an_image_has_nothing_to_do_with_its_flip_and_erasing() -> None:
    plan = make_plan(count=20_000, augment=AugmentConfig(auto_augment="rand-m9-inc1", random_erasing=0.5), batch=20_000)
    draws = plan.device_draws(0, range(20_000))
    assert draws.auto is not None and draws.erase is not None
    for other in (plan.crops(0, range(20_000)).flip, draws.erase[:, 2] > 0):
        for layer in draws.auto.ops.T:
            table = [np.bincount(layer[other == yes])[np.unique(layer)] for yes in (False, True)]
            assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize(("interpolation", "share"), [("bicubic", 1.0), ("bilinear", 0.0), ("random", 0.5)])
def test_interpolation_is_drawn_for_each_image_and_each_movement(interpolation: str, share: float) -> None:
    count = 10_000
    data = DataConfig(name="any", crop=SIDE, interpolation=interpolation)
    geometry = BatchGeometry(count, 8)
    plan = TrainPlan(image_index(count), 1, data, AugmentConfig(auto_augment="rand-m9", hflip=0.5), geometry)
    crops, draws = plan.crops(0, range(count)), plan.device_draws(0, range(count))
    assert draws.auto is not None and draws.cubic is not None and draws.cubic.shape == draws.auto.ops.shape
    drawn = np.column_stack([crops.cubic, draws.cubic])
    if share in (0, 1):
        assert (drawn == share).all()
    else:
        patterns = np.bincount(np.column_stack([drawn, crops.flip]) @ [1, 2, 4, 8], minlength=16)
        assert stats.chisquare(patterns).pvalue > 1e-3  # all are independent of one another and of flips
    assert EvalPlan(plan.index, data).crops(range(10)).cubic.all() == (interpolation != "bilinear")


def test_crop_scale_and_ratio_are_those_asked_for() -> None:
    plan = make_plan(augment=AugmentConfig(scale=[1.0, 1.0], ratio=[0.01, 100.0]))
    crops = plan.crops(0, range(228))
    area = plan.index.heights[crops.index] * plan.index.widths[crops.index]
    assert np.median(crops.box[:, 2] * crops.box[:, 3] / area) == pytest.approx(1, abs=0.02)


# --- evaluation -----------------------------------------------------------------------------------------------------


def test_evaluation_takes_the_images_in_order() -> None:
    index = image_index(20)
    plan = EvalPlan(index, DataConfig(name="any", crop=SIDE, resize=80))
    crops = plan.crops(range(5, 12))
    assert crops.index.tolist() == list(range(5, 12))
    assert crops.box.tolist() == [[0, 0, h, w] for h, w in zip(index.heights[5:12], index.widths[5:12], strict=True)]
    assert (crops.size.min(axis=1) == 80).all()
    assert not crops.flip.any()


@pytest.mark.parametrize(("crop", "ratio", "side"), [(224, 0.875, 256), (224, 0.9, 248), (384, 1.0, 384)])
def test_evaluation_resizes_as_the_crop_ratio_says(crop: int, ratio: float, side: int) -> None:
    plan = EvalPlan(image_index(3), DataConfig(name="any", crop=crop, crop_ratio=ratio))
    assert (plan.crops(range(3)).size.min(axis=1) == side).all()
