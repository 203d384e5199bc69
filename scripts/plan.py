"""Plan a training run: hours and GPU-hours for several numbers of GPUs, what bounds the speed, and what to change.

python scripts/plan.py model=lipsformer_swin_tiny gpus=8,16,64 network=400 images_per_second=2325
python scripts/plan.py model=deit_small recipe=deit epochs=300 gpus=8 gpu=A100

Options of train.py (model, recipe, batch_size, epochs, …) describe the run. These describe the machines:

  gpus=8,16,64          numbers of GPUs to plan for
  images_per_second=    training speed of one GPU, as train.py prints it; if it is left out, an estimate
  gpu=H100              the GPU to estimate for
  per_node=8            GPUs in a machine
  within=100            GB/s in which the GPUs of a machine exchange gradients (make check measures it)
  network=100           Gbit/s of a machine's network for gradients, all cards together
  loader=4000           images/s that one GPU's share of the cores and its decoder can load
  storage=              MB/s of data.root, for all machines together; if it is left out, it does not bound the speed
  image_kb=108          mean size of an image file (ImageNet: 138 GB in 1.28 million files)
  images=1281167        training images
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import cast

import hydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from data import BatchGeometry
from engine.config import CONF, TrainConfig, register
from engine.device import GPUS
from engine.errors import USER_ERRORS, UserError
from engine.explain import explain
from engine.memory import MOST
from engine.settings import train_settings
from models import build_model
from scripts.bench.trace_step import CLASSES, milliseconds, traced

TRACED_BATCH = 128
SLOWER = 2.0  # measured time of a compiled step over its least time: docs/performance.md has 50 ms against 26
EFFICIENCY = 0.8  # share of a network's rate that NCCL reaches with large buckets
BACKWARD = 2 / 3  # share of a step's time in which gradients come; their exchange runs beside it
EVALUATED, SPEED_OF_EVALUATION = 50_000, 3  # images; how much faster than training a forward pass is
BUCKET_MB = 25  # DDP's default; the last bucket is exchanged after the backward pass


@dataclass
class Machines:
    """The options that describe the machines. See the help text above."""

    gpus: list[int] = field(default_factory=lambda: [8])
    images_per_second: float | None = None
    gpu: str = "H100"
    per_node: int = 8
    within: float = 100.0
    network: float = 100.0
    loader: float = 4000.0
    storage: float | None = None
    image_kb: float = 108.0
    images: int = 1_281_167


@dataclass(frozen=True)
class Plan:
    """The speed of a run on some number of GPUs.

    Attributes:
        gpus: number of GPUs.
        micro: images that a GPU takes at once, and how many times in a step.
        seconds: of a step, by what would bound it: ``GPUs``, ``network``, ``loader``, ``storage``.
        hours: of the whole run, with its validations.
    """

    gpus: int
    micro: tuple[int, int]
    seconds: dict[str, float]
    hours: float

    @property
    def bound(self) -> str:
        """What bounds the speed."""
        slowest = max(self.seconds, key=lambda what: self.seconds[what])
        return "GPUs" if self.seconds[slowest] <= self.seconds["GPUs"] * 1.02 else slowest


def exchange_seconds(size: float, gpus: int, machines: Machines) -> float:
    """Return the seconds in which the GPUs sum ``size`` bytes of gradients: a ring in each machine, a ring of machines.

    In a ring of n members, each sends 2 (n - 1) / n of the bytes (Patarasuk and Yuan, 2009).
    """
    here = min(gpus, machines.per_node)
    nodes = -(-gpus // machines.per_node)
    within = 2 * (here - 1) / here * size / (machines.within * 1e9)
    return within + 2 * (nodes - 1) / nodes * size / (machines.network * 1e9 / 8 * EFFICIENCY)


def plan(cfg: TrainConfig, machines: Machines, gpus: int, rate: float, gradients: float) -> Plan:
    """Compute the plan for a number of GPUs.

    Args:
        cfg: the run.
        machines: the machines.
        gpus: number of GPUs.
        rate: training speed of one GPU in images/s.
        gradients: bytes of the gradients.

    Raises:
        DataError: if the batch is too small for so many GPUs.
    """
    at_once = MOST if cfg.micro_batch_size == "auto" else cast(int | None, cfg.micro_batch_size)
    geometry = BatchGeometry(cfg.batch_size, cfg.augment.mix_group, gpus, 0, at_once)
    images = max(sum(sizes) for sizes in _by_rank(geometry))
    compute = images / rate
    exchange = exchange_seconds(gradients, gpus, machines)
    # Only the last micro-batch's backward pass exchanges gradients. The rest of the exchange, at least the last bucket,
    # comes after it.
    last_bucket = exchange * min(1.0, (cfg.ddp_bucket_mb or BUCKET_MB) * 2**20 / gradients)
    late = max(exchange - BACKWARD * compute / geometry.micro_steps, last_bucket) if gpus > 1 else 0.0
    seconds = {"GPUs": compute, "network": compute + late, "loader": images / machines.loader}
    if machines.storage is not None:
        seconds["storage"] = cfg.batch_size * machines.image_kb * 1e3 / (machines.storage * 1e6)
    validations = -(-cfg.epochs // cfg.eval_every)
    step = max(seconds.values())
    steps = cfg.epochs * (machines.images // cfg.batch_size)
    evaluated = validations * EVALUATED / (SPEED_OF_EVALUATION * rate * gpus)
    return Plan(gpus, (geometry.largest_micro_batch, geometry.micro_steps), seconds, (steps * step + evaluated) / 3600)


def _by_rank(geometry: BatchGeometry) -> list[list[int]]:
    sizes, steps = geometry.sizes(), geometry.micro_steps
    return [sizes[first : first + steps] for first in range(0, len(sizes), steps)]


def estimated_rate(name: str, machines: Machines, optim: str) -> float:
    """Return an estimate of one GPU's training speed in images/s: ``SLOWER`` times the least time of an eager step."""
    if machines.gpu not in GPUS:
        known = ", ".join(name for name in GPUS if "*" not in name)
        raise UserError(f"gpu={machines.gpu} is unknown: choose {known}, or set images_per_second")
    kernels = "triton" if name.startswith("lipsformer") else "torch"
    args = Namespace(
        kernels=kernels, optim="adamw2" if optim == "adamw2" else "adamw", batch_size=TRACED_BATCH, amp="bf16"
    )
    least = milliseconds(traced(name, args), machines.gpu, "all", "")
    return TRACED_BATCH / (SLOWER * least / 1e3)


def advice(found: Plan, machines: Machines, cfg: TrainConfig) -> str:
    """Return what to change about what bounds the speed."""
    needed = cfg.batch_size * machines.image_kb * 1e3 / found.seconds["network"]
    return {
        "GPUs": "nothing waits",
        "network": "a faster network, fewer machines, or a larger batch_size",
        "loader": f"{found.seconds['loader'] / found.seconds['network']:.1f} times as many cores for each GPU",
        "storage": f"a storage of {needed / 1e6:.0f} MB/s, or copies of the data on each machine",
    }[found.bound]


def options(typed: Sequence[str]) -> tuple[TrainConfig, Machines]:
    """Split the command line into the run and the machines.

    Raises:
        UserError: or another of ``USER_ERRORS``, if an option is wrong.
    """
    own = {each.name for each in fields(Machines)}
    mine = [option for option in typed if option.partition("=")[0] in own]
    others = [option for option in typed if option not in mine]
    mine = [f"gpus=[{option[5:]}]" if option.startswith("gpus=") else option for option in mine]
    merged = OmegaConf.merge(OmegaConf.structured(Machines), OmegaConf.from_dotlist(mine))
    machines = cast(Machines, OmegaConf.to_object(merged))
    numbers = [getattr(machines, name) for name in own - {"gpus", "gpu"}]
    if not machines.gpus or min([*machines.gpus, *(number for number in numbers if number is not None)]) <= 0:
        raise UserError("the numbers of gpus=…, network=… and the others must be above 0")
    register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        composed = hydra.compose("train", overrides=["data.root=.", *others], return_hydra_config=True)
    choices = dict(composed.hydra.runtime.choices)
    OmegaConf.set_struct(composed, False)
    del composed["hydra"]
    return train_settings(composed, choices, others), machines


def main(typed: Sequence[str]) -> int:
    """Print the plan, or a mistake in one line. Returns the exit status."""
    try:
        print_plan(*options(typed))
    except (*USER_ERRORS, HydraException, OmegaConfBaseException) as error:
        said = str(error) if isinstance(error, USER_ERRORS) else explain(error, "train")
        print(f"error: {said}", file=sys.stderr)
        return 2
    return 0


def print_plan(cfg: TrainConfig, machines: Machines) -> None:
    """Print what is assumed, and a row for each number of GPUs."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_model(cfg.model, CLASSES, cfg.data.crop).parameters())
    gradients = 4.0 * parameters
    rate, source = machines.images_per_second, "as you say"
    if rate is None:
        rate = estimated_rate(cfg.model.name, machines, cfg.optim.name)
        source = f"an estimate for {machines.gpu}: {SLOWER:g} times the least time"
    print(
        f"{cfg.model.name}: {parameters / 1e6:.1f} M parameters, {cfg.epochs} epochs of {machines.images} images, "
        f"batch {cfg.batch_size}"
    )
    print(f"one GPU: {rate:.0f} images/s ({source}); loader {machines.loader:.0f} images/s a GPU")
    print(
        f"exchange: {gradients / 1e6:.0f} MB a step, {machines.within:g} GB/s within a machine of {machines.per_node}, "
        f"{machines.network:g} Gbit/s between machines ({EFFICIENCY:.0%} of it used), beside the backward pass\n"
    )
    print("| GPUs | images at once | step, ms | images/s | MB/s read | hours | GPU-hours | bound by | to change |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for gpus in machines.gpus:
        try:
            found = plan(cfg, machines, gpus, rate, gradients)
        except USER_ERRORS as error:
            print(f"| {gpus} | {error} | | | | | | | |")
            continue
        step, (size, times) = max(found.seconds.values()), found.micro
        speed = cfg.batch_size / step
        print(
            f"| {gpus} | {times} x {size} | {step * 1e3:.0f} | {speed:.0f} | {speed * machines.image_kb / 1e3:.0f} | "
            f"{found.hours:.1f} | {found.hours * gpus:.0f} | {found.bound} | {advice(found, machines, cfg)} |"
        )


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        sys.exit()
    sys.exit(main(sys.argv[1:]))
