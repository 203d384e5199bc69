"""Images without files: fixed noise, which depends on the image's place in the index. For trying out and timing."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing

import torch
from torch import Tensor

from data.concurrency.waiting import attentive, no_check
from data.config import DataConfig
from data.planning.crops import Crops
from data.transfer import send

POOL = 64  # number of different images


class SyntheticBackend:
    """Makes batches from a small pool of noise images. It ignores crop boxes, but applies flips.

    Args:
        cfg: the crop size.
        device: where the pool is and the batches are made.
    """

    def __init__(self, cfg: DataConfig, device: torch.device):
        generator = torch.Generator().manual_seed(0)  # on the host, so that the noise is the same on every device
        shape = (POOL, 3, cfg.crop, cfg.crop)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        self.pool = torch.cat([images, images.flip(-1)]).to(device)  # the mirrored images are the second half

    def batches(
        self, requests: Iterator[Crops], look: Callable[[], object] = no_check
    ) -> Generator[Tensor, None, None]:
        """See :class:`data.backends.Backend`. Only the requests are made ahead: a batch takes the device no time."""
        planned = (crops for crops in requests)  # a generator, because attentive closes what it has used
        with closing(attentive(planned, look, ahead=1)) as stream:
            for crops in stream:
                rows = crops.index % POOL + POOL * crops.flip
                yield self.pool.index_select(0, send(self.pool.device, rows))
