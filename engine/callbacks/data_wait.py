"""Warn once if steps wait for data, and say what to change."""

import logging
from typing import Any

from engine.callbacks.callback import Callback
from engine.device import default_workers
from engine.options.config import TrainConfig
from engine.runtime import Runtime

log = logging.getLogger(__name__)

MAX_WAIT_SHARE = 0.05  # largest share of the time without a warning


class DataWait(Callback):
    """Checks which share of the time between two lines of metrics was spent waiting for data.

    Args:
        cfg: the settings, with a backend other than ``auto``.
        runtime: the device, and the processes on this machine.
    """

    def __init__(self, cfg: TrainConfig, runtime: Runtime):
        self.backend = cfg.data.backend
        self.on_gpu = runtime.device.type == "cuda"
        self.local_size = runtime.world.local_size
        self.cores = default_workers(self.local_size)
        self.workers = runtime.workers(cfg.max_workers)
        self.started = False
        self.said = self.backend == "synthetic"  # the advice does not apply to synthetic images

    def on_line(self, line: dict[str, Any]) -> None:
        """Warn about the first interval that waited too long. Skip the very first, in which the data workers start."""
        if line["split"] != "train":
            return
        started, self.started = self.started, True
        if started and not self.said and line["data_wait"] > MAX_WAIT_SHARE:
            self.said = True
            log.warning("%s", self.advice(line["data_wait"]))

    def advice(self, waited: float) -> str:
        """Return the warning for an interval that spent this share of its time waiting."""
        ways = "; or ".join([*self._workers(), *self._decoder(), *self._machine()])
        return f"{waited:.0%} of the time is spent waiting for data. To change this: {ways}"

    def _workers(self) -> list[str]:
        if self.workers >= self.cores:
            return []
        cores = f"the {self.cores} cores" if self.cores > 1 else "the one core"
        return [f"set max_workers={self.cores}, for {cores} that this process may use (now {self.workers})"]

    def _decoder(self) -> list[str]:
        if self.backend == "dali":
            return []
        gain = "decodes on the GPU" if self.on_gpu else "decodes only the crops"
        return [f"start a run with data.backend=dali, which {gain} (requirements.txt installs it)"]

    def _machine(self) -> list[str]:
        fewer = [f"run fewer than {self.local_size} processes on this machine"] if self.local_size > 1 else []
        return [
            *fewer,
            "give it more cores",
            "keep the images on a faster disk (data.stage_to copies them), or packed (docs/imagenet.md)",
        ]
