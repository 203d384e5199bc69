"""Says once a run what to change where steps wait for data."""

import torch

from engine.config import TrainConfig
from engine.device import default_workers

MOST = 0.05  # share of the time


class DataWait:
    """Looks at the share of its time that each interval of the log spent waiting for data.

    Args:
        cfg: the settings, with the backend that was chosen.
        device: the model's.
        local_size: processes on this machine.
    """

    def __init__(self, cfg: TrainConfig, device: torch.device, local_size: int):
        self.backend = cfg.data.backend
        self.on_gpu = device.type == "cuda"
        self.local_size = local_size
        self.cores = default_workers(local_size)
        self.workers = cfg.max_workers if cfg.max_workers is not None else self.cores
        self.started = False
        self.said = self.backend == "synthetic"  # noise waits for no disk, and nothing makes it faster

    def look(self, waited: float) -> str | None:
        """What to say about an interval in which this share of the time went to waiting; None for nothing.

        The first interval is left out: in it the data workers start.
        """
        started, self.started = self.started, True
        if not started or self.said or waited <= MOST:
            return None
        self.said = True
        advice = "; or ".join([*self._workers(), *self._decoder(), *self._machine()])
        return f"{waited:.0%} of the time goes to waiting for data. To change that: {advice}"

    def _workers(self) -> list[str]:
        if self.workers >= self.cores:
            return []
        cores = f"the {self.cores} cores" if self.cores > 1 else "the one core"
        return [f"set max_workers={self.cores}, for {cores} that this process may use (now {self.workers})"]

    def _decoder(self) -> list[str]:
        if self.backend == "dali":
            return []
        gain = "decodes on the GPU" if self.on_gpu else "decodes no more than the crops"
        return [f"start a run with data.backend=dali, which {gain} (requirements.txt installs it)"]

    def _machine(self) -> list[str]:
        fewer = [f"run fewer than {self.local_size} processes on this machine"] if self.local_size > 1 else []
        return [*fewer, "give it more cores", "keep the images on a faster disk, or packed (docs/imagenet.md)"]
