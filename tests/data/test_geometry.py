"""The global batch is cut without gaps, on group borders, and all processes cut it the same way."""

import re
from itertools import chain

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data.errors import DataError
from data.planning.geometry import BatchGeometry, shard

SIZES = {
    "batch": st.integers(1, 600),
    "group": st.integers(1, 64),
    "world": st.integers(1, 24),
    "micro": st.none() | st.integers(1, 300),
}


def ranks(batch: int, group: int, world: int, micro: int | None) -> list[BatchGeometry]:
    assume(-(-batch // group) >= world)
    return [BatchGeometry(batch, group, world, rank, micro) for rank in range(world)]


@given(**SIZES)
def test_micro_batches_of_all_ranks_are_the_global_batch(batch: int, group: int, world: int, micro: int | None) -> None:
    parts = [list(part) for geometry in ranks(batch, group, world, micro) for part in geometry.micro_batches]
    assert list(chain(*parts)) == list(range(batch))
    assert all(parts)
    assert all(part[0] % group == 0 for part in parts)


@given(**SIZES)
def test_all_ranks_take_the_same_number_of_steps(batch: int, group: int, world: int, micro: int | None) -> None:
    cuts = ranks(batch, group, world, micro)
    steps = {len(geometry.micro_batches) for geometry in cuts} | {geometry.micro_steps for geometry in cuts}
    assert len(steps) == 1
    if micro is None:
        assert steps == {1}


@given(**SIZES)
def test_micro_batches_hold_no_more_than_asked_for(batch: int, group: int, world: int, micro: int | None) -> None:
    cuts = ranks(batch, group, world, micro)
    largest = max(len(part) for geometry in cuts for part in geometry.micro_batches)
    assert largest == max(geometry.largest_micro_batch for geometry in cuts)
    if micro is not None:
        most = max(1, micro // group) * group
        unequal = cuts[0].groups % world != 0
        assert largest <= most + unequal * group
        assert largest <= most or cuts[0].micro_steps == cuts[0].groups // world


@given(**SIZES)
def test_groups_of_a_micro_batch_are_those_of_the_global_batch(
    batch: int, group: int, world: int, micro: int | None
) -> None:
    whole = [range(start, min(start + group, batch)) for start in range(0, batch, group)]
    found = [
        range(part.start + rows.start, part.start + rows.stop)
        for geometry in ranks(batch, group, world, micro)
        for part in geometry.micro_batches
        for rows in geometry.groups_in(part)
    ]
    assert found == whole


@given(batch=SIZES["batch"], group=SIZES["group"], world=SIZES["world"])
def test_too_few_groups_are_refused_with_sizes_that_work(batch: int, group: int, world: int) -> None:
    assume(-(-batch // group) < world)
    with pytest.raises(DataError) as caught:
        BatchGeometry(batch, group, world)
    message = str(caught.value)
    advice = message.split("set ")[1]
    assert "\n" not in message
    assert BatchGeometry(int(re.findall(r"batch_size=(\d+)", advice)[0]), group, world).groups >= world
    smaller = re.findall(r"mix_group=(\d+)", advice)
    assert bool(smaller) == (batch >= world)
    for value in smaller:
        assert BatchGeometry(batch, int(value), world).groups >= world


@given(count=st.integers(0, 1000), world=st.integers(1, 70))
def test_shards_are_a_partition_in_order_and_even(count: int, world: int) -> None:
    shards = [shard(count, world, rank) for rank in range(world)]
    assert list(chain(*shards)) == list(range(count))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
