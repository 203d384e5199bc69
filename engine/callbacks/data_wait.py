"""Says once a run what to change where steps wait for data."""

import logging
from typing import Any

from engine.callbacks.callback import Callback
from engine.config import TrainConfig
from engine.device import default_workers
from engine.runtime import Runtime

log = logging.getLogger(__name__)

MOST = 0.05  # share of the time


class DataWait(Callback):
    """Looks at the share of its time that each interval of the log spent waiting for data.

    Args:
        cfg: the settings, with the backend that was chosen.
        runtime: the device, and the processes on this machine.
    """

    def __init__(self, cfg: TrainConfig, runtime: Runtime):
        self.backend = cfg.data.backend
        self.on_gpu = runtime.device.type == "cuda"
        self.local_size = runtime.world.local_size
        self.cores = default_workers(self.local_size)
        self.workers = runtime.workers(cfg.max_workers)
        self.started = False
        self.said = self.backend == "synthetic"  # noise waits for no disk, and nothing makes it faster

    def on_line(self, line: dict[str, Any]) -> None:
        """Warn of the first interval that waited too long, but for the very first, in which the data workers start."""
        if line["split"] != "train":
            return
        started, self.started = self.started, True
        if started and not self.said and line["data_wait"] > MOST:
            self.said = True
            log.warning("%s", self.advice(line["data_wait"]))

    def advice(self, waited: float) -> str:
        """What to say about an interval in which this share of the time went to waiting."""
        ways = "; or ".join([*self._workers(), *self._decoder(), *self._machine()])
        return f"{waited:.0%} of the time goes to waiting for data. To change that: {ways}"

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
