"""Where a run computes: its processes, this one's device, and the precision."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.config import RunConfig
from engine.device import AMP_DTYPES, check_amp, choose_device, default_workers, tune
from engine.distributed import World
from engine.log import log_to


@dataclass(frozen=True)
class Runtime:
    """What training, evaluation and benchmark need to know of the machine.

    Attributes:
        world: this process among all.
        device: of this process.
        amp: ``"bf16"``, ``"fp16"`` or ``"fp32"``.
        memory_format: of batches of images.
    """

    world: World
    device: torch.device
    amp: str = "fp32"
    memory_format: torch.memory_format = torch.contiguous_format

    @classmethod
    def start(cls, cfg: RunConfig) -> "Runtime":
        """As the settings and the environment say, with the device tuned and messages sent to the console.

        Raises:
            UserError: if there is no such device, or it has no such precision.
        """
        world = World.from_environment()
        device = choose_device(cfg.device, world.local_rank)
        check_amp(cfg.amp, device)
        tune(device)
        log_to(None, world.is_main)
        return cls(world, device, cfg.amp, torch.channels_last if cfg.channels_last else torch.contiguous_format)

    def autocast(self) -> AbstractContextManager:
        """The context in which a model computes in the wanted precision."""
        return torch.autocast(self.device.type, AMP_DTYPES[self.amp]) if self.amp != "fp32" else nullcontext()

    def laid_out(self, images: Tensor) -> Tensor:
        """Images ``(n, channels, height, width)`` in the wanted memory format."""
        return images.contiguous(memory_format=self.memory_format)

    def workers(self, wanted: int | None) -> int:
        """Data workers of this process: as many as wanted, or its share of the cores."""
        return wanted if wanted is not None else default_workers(self.world.local_size)
