"""Images without files: fixed noise, which depends on the image's place in the index. For trying out and timing."""

from collections.abc import Callable, Generator, Iterator

import torch
from torch import Tensor

from data.config import DataConfig
from data.crops import Crops
from data.waiting import no_check

POOL = 64  # number of different images


class SyntheticBackend:
    """Makes batches from a small pool of noise images. It ignores crop boxes, but applies flips.

    Args:
        cfg: the crop size.
    """

    def __init__(self, cfg: DataConfig):
        generator = torch.Generator().manual_seed(0)
        shape = (POOL, 3, cfg.crop, cfg.crop)
        self.pool = torch.randint(256, shape, dtype=torch.uint8, generator=generator)

    def batches(
        self, requests: Iterator[Crops], look: Callable[[], object] = no_check
    ) -> Generator[Tensor, None, None]:
        """See :class:`data.backends.Backend`."""
        for crops in requests:
            images = self.pool[torch.from_numpy(crops.index % POOL)]
            flip = torch.from_numpy(crops.flip).view(-1, 1, 1, 1)
            yield torch.where(flip, images.flip(-1), images)
