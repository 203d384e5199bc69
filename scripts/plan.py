"""Plan a training run: hours and GPU-hours for several numbers of GPUs, what bounds the speed, and what to change.

python scripts/plan.py model=lipsformer_swin_tiny gpus=8,16,64 network=400 images_per_second=2325
python scripts/plan.py model=deit_small epochs=300 gpus=8 gpu=A100

Options of train.py (model, recipe, batch_size, epochs, …) describe the run. These describe the machines:

  gpus=8,16,64          numbers of GPUs to plan for
  images_per_second=    training speed of one GPU, as train.py prints it; if it is left out, an estimate
  gpu=H100              the GPU to estimate for
  per_node=8            GPUs in a machine
  within=100            GB/s in which the GPUs of a machine exchange gradients (make check measures it)
  network=100           Gbit/s of a machine's network for gradients, all cards together
  host_ms=78            ms in which a host starts the kernels of a micro-batch, on several GPUs (train.py with
                        compile_mode=default and a small batch measures it); 78 is lipsformer_swin_tiny's
  loader=4000           images/s that one GPU's share of the cores and its decoder can load
  storage=              MB/s of data.root, for all machines together; if it is left out, it does not bound the speed
  image_kb=108          mean size of an image file (ImageNet: 138 GB in 1.28 million files)
  images=1281167        training images; of other sets than ImageNet, type it
  evaluated=50000       validation images
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from data import IMAGENET_CLASSES, BatchGeometry
from engine.compiling import CUDA_GRAPHS
from engine.errors import USER_ERRORS, UserError
from engine.measuring.gpus import GPUS
from engine.measuring.memory import MOST
from engine.options.cli import launch
from engine.options.config import TrainConfig
from engine.options.recipe import implied_recipe
from engine.options.settings import train_settings
from models import build_model, family_of
from scripts.bench.step_cost import milliseconds, traced
from scripts.common.tables import head, row

TRACED_BATCH = 128
# A compiled step takes this many times its least time: 50 ms (docs/performance.md) and 26 ms (docs/measurements.md).
SLOWER = 2.0
EFFICIENCY = 0.8  # share of a network's rate that NCCL reaches with large buckets
BACKWARD = 2 / 3  # share of a step's time in which gradients come; their exchange runs beside it
SPEED_OF_EVALUATION = 3  # how much faster than training a forward pass is
MEASURED = "lipsformer_swin_tiny"  # the model of the default host_ms
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
    host_ms: float = 78.0  # 128 images at 1641 images/s: docs/performance.md, "On a GPU"
    loader: float = 4000.0
    storage: float | None = None
    image_kb: float = 108.0
    images: int = 1_281_167
    evaluated: int = 50_000


@dataclass(frozen=True)
class Plan:
    """The speed of a run on some number of GPUs.

    Attributes:
        gpus: number of GPUs.
        micro: images that a GPU takes at once, and how many times in a step.
        seconds: of a step, by what would bound it: ``GPUs``, ``hosts``, ``loader``, ``storage``, ``network``. The last
            one is that of GPUs or hosts, with the delay by the exchange.
        hours: of the whole run, with its validations.
    """

    gpus: int
    micro: tuple[int, int]
    seconds: dict[str, float]
    hours: float

    @property
    def bound(self) -> str:
        """What bounds the speed."""
        longest = max(self.seconds.values())
        return next(what for what, time in self.seconds.items() if longest <= time * 1.05)


def exchange_seconds(size: float, gpus: int, machines: Machines) -> float:
    """Return the seconds in which the GPUs sum ``size`` bytes of gradients: a ring in each machine, a ring of machines.

    In a ring of n members, each sends 2 (n - 1) / n of the bytes (Patarasuk and Yuan, 2009).
    """
    here = min(gpus, machines.per_node)
    nodes = -(-gpus // machines.per_node)
    within = 2 * (here - 1) / here * size / (machines.within * 1e9)
    return within + 2 * (nodes - 1) / nodes * size / (machines.network * 1e9 / 8 * EFFICIENCY)


def late_seconds(exchange: float, compute: float, gradients: float, bucket_mb: int | None = None) -> float:
    """Return by how many seconds the exchange of gradients delays a step of DDP.

    Args:
        exchange: seconds of the whole exchange.
        compute: seconds that the last micro-batch takes, forward and backward. Only its gradients are exchanged.
        gradients: bytes of the gradients.
        bucket_mb: ``ddp_bucket_mb``. The last bucket is exchanged after the backward pass; with 0, everything is.
    """
    if bucket_mb == 0:
        return exchange
    last_bucket = exchange * min(1.0, (bucket_mb or BUCKET_MB) * 2**20 / gradients)
    return max(exchange - BACKWARD * compute, last_bucket)


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
    geometry = BatchGeometry(cfg.batch_size, cfg.augment.inseparable, gpus, 0, at_once)
    images = max(BatchGeometry(cfg.batch_size, cfg.augment.inseparable, gpus).sizes())  # the largest share of a GPU
    # Several processes train without CUDA graphs, unless told otherwise. Then their hosts start every kernel.
    has_graphs = geometry.micro_steps == 1 and (gpus == 1 or cfg.compile_mode in CUDA_GRAPHS)
    host = 0.0 if has_graphs else geometry.micro_steps * machines.host_ms / 1e3
    exchange = exchange_seconds(gradients, gpus, machines)
    compute = max(images / rate, host)
    bucket_mb = 0 if has_graphs else cfg.ddp_bucket_mb
    late = late_seconds(exchange, compute / geometry.micro_steps, gradients, bucket_mb)
    seconds = {"GPUs": images / rate, "hosts": host, "loader": images / machines.loader}
    if machines.storage is not None:
        seconds["storage"] = cfg.batch_size * machines.image_kb * 1e3 / (machines.storage * 1e6)
    seconds["network"] = compute + late
    validations = -(-cfg.epochs // cfg.eval_every)
    step = max(seconds.values())
    steps = cfg.epochs * (machines.images // cfg.batch_size)
    evaluated = validations * machines.evaluated / (SPEED_OF_EVALUATION * rate * gpus)
    return Plan(gpus, (geometry.largest_micro_batch, geometry.micro_steps), seconds, (steps * step + evaluated) / 3600)


def estimated_rate(cfg: TrainConfig, machines: Machines) -> float:
    """Return an estimate of one GPU's training speed in images/s: ``SLOWER`` times the least time of an eager step.

    Raises:
        UserError: if there is no estimate for this GPU or precision.
    """
    if cfg.amp == "fp32":
        raise UserError("there is no estimate for amp=fp32: set images_per_second")
    if machines.gpu not in GPUS:
        known = ", ".join(name for name in GPUS if "*" not in name)
        raise UserError(f"gpu={machines.gpu} is unknown: choose {known}, or set images_per_second")
    print("estimating the speed of a GPU takes about a minute; images_per_second=… saves it", file=sys.stderr)
    step = traced(
        _built(cfg),
        cfg.data.crop,
        TRACED_BATCH,
        amp=cfg.amp,
        optim="adamw2" if cfg.optim.name == "adamw2" else "adamw",
        kernels="triton" if family_of(cfg.model).startswith("lipsformer") else "torch",
    )
    return TRACED_BATCH / (SLOWER * milliseconds(step, machines.gpu) / 1e3)


def _built(cfg: TrainConfig) -> nn.Module:
    return build_model(cfg.model, cfg.model.num_classes or IMAGENET_CLASSES, cfg.data.crop)


def advice(found: Plan, machines: Machines, cfg: TrainConfig) -> str:
    """Return what to change about what bounds the speed."""
    graphs = "compile_mode=reduce-overhead, or " if found.micro[1] == 1 else ""
    may_be_larger = found.micro[1] > 1 and found.micro[0] < MOST
    at_once = "a larger micro_batch_size" if may_be_larger else "fewer GPUs, or a larger batch_size"
    computing = max(found.seconds["GPUs"], found.seconds["hosts"])
    needed = cfg.batch_size * machines.image_kb * 1e3 / computing
    return {
        "GPUs": "nothing waits",
        "hosts": f"{graphs}more images at once: {at_once}",
        "network": "a faster network, fewer machines, or a larger batch_size",
        "loader": f"{found.seconds['loader'] / computing:.1f} times as many cores for each GPU",
        "storage": f"a storage of {needed / 1e6:.0f} MB/s, or copies of the data on each machine",
    }[found.bound]


def is_of_another_model(machines: Machines, cfg: TrainConfig) -> bool:
    """Whether ``host_ms`` was measured for another model than that of the run."""
    return machines.host_ms == Machines().host_ms and cfg.model.name != MEASURED


def machines_of(typed: Sequence[str]) -> Machines:
    """Read the options that describe the machines.

    Raises:
        UserError: if a number is not above 0. OmegaConf raises its own errors for text that is no number.
    """
    listed = [f"gpus=[{option[5:]}]" if option.startswith("gpus=") else option for option in typed]
    merged = OmegaConf.merge(OmegaConf.structured(Machines), OmegaConf.from_dotlist(listed))
    machines = cast(Machines, OmegaConf.to_object(merged))
    values = [*machines.gpus, *vars(machines).values()]
    if not machines.gpus or any(not value > 0 for value in values if isinstance(value, int | float)):
        raise UserError("the numbers of gpus=…, network=… and the others must be above 0")
    return machines


def _refuse_unknown_size(data: str, typed: Sequence[str]) -> None:
    """Refuse to plan a run on other images than ImageNet's without their number: nothing here looks at the images."""
    if data != "imagenet" and not any(option.startswith("images=") for option in typed):
        raise UserError(
            f"data={data} does not say how many images there are: add images=N of training, evaluated=N of validation "
            "and image_kb=… (the mean size of a file)"
        )


def main() -> None:
    """Compose the run as train.py does, and print its plan."""
    own = {each.name for each in fields(Machines)}
    mine = [typed for typed in sys.argv[1:] if typed.partition("=")[0] in own]
    sys.argv[1:] = ["data.root=.", *(typed for typed in sys.argv[1:] if typed not in mine)]

    def task(
        composed: DictConfig, choices: dict[str, Any], overrides: list[str], swept: list[str]
    ) -> Callable[[], None]:
        cfg = train_settings(composed, choices, overrides, swept)
        _refuse_unknown_size(cfg.data.name, mine)
        return lambda: print_plan(cfg, machines_of(mine))

    launch("train", task, implied_recipe)


def print_plan(cfg: TrainConfig, machines: Machines) -> None:
    """Print what is assumed, and a row for each number of GPUs."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in _built(cfg).parameters())
    gradients = 4.0 * parameters
    rate, source = machines.images_per_second, "as you say"
    if rate is None:
        rate = estimated_rate(cfg, machines)
        source = f"an estimate for {machines.gpu}: {SLOWER:g} times the least time"
    is_after = cfg.ddp_bucket_mb == 0 or cfg.compile_mode in CUDA_GRAPHS
    when = "after the backward pass" if is_after else "beside the backward pass"
    print(
        f"{cfg.model.name}: {parameters / 1e6:.1f} M parameters, {cfg.epochs} epochs of {machines.images} images, "
        f"batch {cfg.batch_size}"
    )
    print(f"one GPU: {rate:.0f} images/s ({source}); loader {machines.loader:.0f} images/s a GPU")
    other = is_of_another_model(machines, cfg)
    whose = f", as measured for {MEASURED}; host_ms=… for {cfg.model.name}" if other else ""
    print(f"hosts: {machines.host_ms:g} ms to start the kernels of a micro-batch without CUDA graphs{whose}")
    print(
        f"exchange: {gradients / 1e6:.0f} MB a step, {machines.within:g} GB/s within a machine of {machines.per_node}, "
        f"{machines.network:g} Gbit/s between machines ({EFFICIENCY:.0%} of it used), {when}\n"
    )
    speeds = "step, ms", "images/s", "MB/s read", "hours", "GPU-hours"
    print(head("GPUs", "images at once", *speeds, "bound by", "to change"))
    for gpus in machines.gpus:
        try:
            found = plan(cfg, machines, gpus, rate, gradients)
        except USER_ERRORS as error:
            print(row(gpus, error, *[""] * 7))
            continue
        step, (size, times) = max(found.seconds.values()), found.micro
        speed = cfg.batch_size / step
        numbers = [f"{n:.0f}" for n in (step * 1e3, speed, speed * machines.image_kb / 1e3)]
        hours = f"{found.hours:.1f}", f"{found.hours * gpus:.0f}"
        print(row(gpus, f"{times} x {size}", *numbers, *hours, found.bound, advice(found, machines, cfg)))


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        sys.exit()
    main()
