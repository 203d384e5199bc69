"""How the global batch is cut: into mix groups, over processes, and into micro-batches.

A mix group is a run of consecutive positions whose images are mixed with one another. Processes and micro-batches
are cut on group borders, so no draw and no pairing depends on the number of processes. Without mixing, every image is
a group.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from data.errors import DataError


@dataclass(frozen=True)
class BatchGeometry:
    """How one global batch is cut.

    Args:
        batch_size: images in the global batch.
        mix_group: images in a group; the last group of a batch may be smaller.
        world_size: number of processes.
        rank: number of this process.
        micro_batch_size: most images a process takes at once, in whole groups, and at least one group; ``None``:
            its whole share. All processes take equally many micro-batches, so a process with a larger share may take
            one group more.

    Raises:
        DataError: if there are fewer groups than processes.
    """

    batch_size: int
    mix_group: int
    world_size: int = 1
    rank: int = 0
    micro_batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.groups < self.world_size:
            if self.mix_group == 1:
                raise DataError(
                    f"batch_size={self.batch_size} is too small for {self.world_size} processes: "
                    f"set batch_size={self.world_size} or more"
                )
            smaller = max(1, self.batch_size // self.world_size)
            raise DataError(
                f"batch_size={self.batch_size} has {self.groups} groups of augment.mix_group={self.mix_group} images, "
                f"too few for {self.world_size} processes: set batch_size={self.mix_group * self.world_size} or more"
                + (f", or augment.mix_group={smaller} or less" if self.batch_size >= self.world_size else "")
            )

    @property
    def groups(self) -> int:
        """Number of mix groups in a global batch."""
        return -(-self.batch_size // self.mix_group)

    def _groups_of(self, rank: int) -> range:
        return shard(self.groups, self.world_size, rank)

    @property
    def micro_steps(self) -> int:
        """Number of micro-batches a process takes for one optimizer step; the same on every process."""
        shares = [len(self._groups_of(rank)) for rank in range(self.world_size)]
        if self.micro_batch_size is None:
            return 1
        at_once = max(1, self.micro_batch_size // self.mix_group)
        return min(-(-max(shares) // at_once), min(shares))

    @cached_property  # every step asks for them
    def micro_batches(self) -> tuple[range, ...]:
        """The positions of each micro-batch of this process inside the global batch."""
        mine, steps = self._groups_of(self.rank), self.micro_steps
        cuts = [mine.start + step * len(mine) // steps for step in range(steps + 1)]
        ends = [min(cut * self.mix_group, self.batch_size) for cut in cuts]
        return tuple(range(start, stop) for start, stop in pairwise(ends))

    @property
    def share(self) -> float:
        """The share of a batch's images that this process has."""
        return sum(len(positions) for positions in self.micro_batches) / self.batch_size

    @property
    def largest_micro_batch(self) -> int:
        """Number of images in the largest micro-batch of this process."""
        return max(len(positions) for positions in self.micro_batches)

    def sizes(self) -> list[int]:
        """Number of images in each micro-batch of a global batch, for all processes in the order of their ranks."""
        ranks = [replace(self, rank=rank) for rank in range(self.world_size)]
        return [len(positions) for geometry in ranks for positions in geometry.micro_batches]

    def groups_in(self, positions: range) -> list[slice]:
        """The rows of each mix group in a micro-batch."""
        size = len(positions)
        return [slice(start, min(start + self.mix_group, size)) for start in range(0, size, self.mix_group)]


def shard(count: int, world_size: int, rank: int) -> range:
    """This process's contiguous share of ``count`` items; together the processes have each item once."""
    return range(rank * count // world_size, (rank + 1) * count // world_size)
