"""The processes of a run, the device of this process, and the precision."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.device import AMP_DTYPES, check_amp, choose_device, default_workers, release_earlier_runs, tune
from engine.log import log_to
from engine.options.config import RunConfig
from engine.processes.distributed import World


@dataclass(frozen=True)
class Runtime:
    """The processes, device, precision and memory format for training, evaluation and benchmark.

    Attributes:
        world: the rank of this process and the number of processes.
        device: the device of this process.
        amp: ``"bf16"``, ``"fp16"`` or ``"fp32"``.
        memory_format: memory format of image batches.
    """

    world: World
    device: torch.device
    amp: str = "fp32"
    memory_format: torch.memory_format = torch.contiguous_format

    @classmethod
    def start(cls, cfg: RunConfig) -> "Runtime":
        """Choose and set up the device from the settings and torchrun's variables, and log to the console.

        Raises:
            UserError: if the device is not available, or does not support the precision.
        """
        world = World.from_environment()
        device = choose_device(cfg.device, world.local_rank)
        check_amp(cfg.amp, device)
        release_earlier_runs(device)
        tune(device)
        log_to(None, world.is_main)
        return cls(world, device, cfg.amp, torch.channels_last if cfg.channels_last else torch.contiguous_format)

    def autocast(self) -> AbstractContextManager:
        """Return the context in which a model computes in the chosen precision."""
        return torch.autocast(self.device.type, AMP_DTYPES[self.amp]) if self.amp != "fp32" else nullcontext()

    def laid_out(self, images: Tensor) -> Tensor:
        """Return images ``(n, channels, height, width)`` in the chosen memory format."""
        return images.contiguous(memory_format=self.memory_format)

    def workers(self, wanted: int | None) -> int:
        """Return the number of data workers of this process: ``wanted``, or by default its share of the cores."""
        return wanted if wanted is not None else default_workers(self.world.local_size)
