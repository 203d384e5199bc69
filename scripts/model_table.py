"""Print a table row for every model of conf/model/, and write the table to docs/models.md.

python scripts/model_table.py             # minutes: times a forward pass and a training step of each model
python scripts/model_table.py --no-speed  # two minutes: sizes only, nothing written
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import models
from engine.device import device_name
from engine.measuring.flops import forward_flops
from scripts.bench.options import bench_parser
from scripts.bench.training_step import TrainingStep, seconds, tuned_device
from scripts.common.command_line import command
from scripts.common.tables import head, row

PROJECT = Path(__file__).resolve().parent.parent
SIDE = 224
CLASSES = 1000
COUNTED = ("convolution", "mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product")  # outputs are activations
# Published top-1 on ImageNet-1K. "warm-up": the paper trains with warm-up; it trains the other models without.
PUBLISHED = {
    "lipsformer_swin_tiny": "82.7",
    "lipsformer_cswin_tiny": "83.5",
    "cswin_tiny": "82.8, warm-up, 310 epochs",
    "cswin_small": "83.6, warm-up, 310 epochs",
    "cswin_base": "84.2, warm-up, 310 epochs",
    "swin_tiny": "81.3, warm-up",
    "swin_small": "83.0, warm-up",
    "swin_base": "83.5, warm-up",
    "deit_tiny": "72.2, warm-up",
    "deit_small": "79.8, warm-up",
    "deit_base": "81.8, warm-up",
    "deit3_small": "81.4, warm-up, 800 epochs",
    "vit_small_sincos": "76.7, warm-up, 90 epochs",
    "vit5_small": "82.2, warm-up, 800 epochs",
    "vit5_base": "84.2, warm-up, 800 epochs and 20 at 224 pixels",
}
HEADER = """# Models

Train one with `python train.py model=NAME`, and `deit3_small`, `vit5_small` and `vit5_base` with `experiment=NAME`.
`python scripts/model_table.py` wrote this table ({machine}).

- **Sizes** are for {side} pixels and {classes} classes.
- **GMACs** are half of the FLOPs that torch's `FlopCounterMode` counts on the `meta` device: convolutions (including
  depthwise), matrix products and fused attention.
- **Activations** are the output values of convolutions, linear layers and attention in a forward pass.
- **Images/s** are measured in float32 and eager mode with batches of {batch}; the value is the median of {turns} turns.
- **Lipschitz** says whether `models.lipschitz_bound` is finite, or which layers make it infinite.
- **Published top-1** is the accuracy of the paper on ImageNet-1K in percent, after 300 epochs unless the table says
  otherwise. "warm-up" means that the paper trains with warm-up. We have not reproduced these values yet.

"""
COLUMNS = (
    *("model", "parameters", "GMACs", "activations, M", "forward, images/s", "training, images/s"),
    *("Lipschitz", "published top-1"),
)


@dataclass
class Row:
    """The values of a model in the table."""

    name: str
    parameters: int
    gmacs: float
    activations: float
    lipschitz: str
    forward: float | None = None
    training: float | None = None

    def cells(self) -> list[str]:
        speeds = [f"{speed:.1f}" if speed is not None else "" for speed in (self.forward, self.training)]
        sizes = [f"{self.parameters:,}", f"{self.gmacs:.2f}", f"{self.activations:.1f}"]
        return [f"`{self.name}`", *sizes, *speeds, self.lipschitz, PUBLISHED.get(self.name, "")]


def names() -> list[str]:
    """Return the models of conf/model/ for 224 pixels, and the certified LipsFormers as names with an option."""
    files = {path.stem: OmegaConf.load(path) for path in (PROJECT / "conf/model").glob("*.yaml") if path.stem != "timm"}
    found = {stem for stem, written in files.items() if registered_side(written.name) == SIDE}
    return sorted(found | {f"lipsformer_{kind}_tiny model.attention=certified" for kind in ("swin", "cswin")})


def registered_side(name: str) -> int:
    """Return the side of the images for which a model is registered in timm."""
    return models.registration(name).input_size[-1]


def build(name: str) -> nn.Module:
    """Build the model of a file in conf/model/, with the options that follow its name."""
    stem, *changes = name.split()
    written = OmegaConf.load(PROJECT / "conf/model" / f"{stem}.yaml")
    family = written.defaults[0].removeprefix("/schema/model/").removesuffix("@_here_")
    options = {key: value for key, value in written.items() if key != "defaults"}
    changed = OmegaConf.from_dotlist([change.removeprefix("model.") for change in changes])
    cfg: Any = OmegaConf.to_object(OmegaConf.merge(models.FAMILIES[family], options, changed))
    return models.build_model(cfg, CLASSES, SIDE)


class ActivationCounter(TorchDispatchMode):
    """Adds up the output sizes of convolutions, matrix products and fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__.startswith(COUNTED):
            self.total += (out if isinstance(out, Tensor) else out[0]).numel()
        return out


def activations(model: nn.Module) -> int:
    """Return the number of output values of the counted operations for one image. ``model`` must be on ``meta``."""
    with ActivationCounter() as counter, torch.no_grad():
        model(torch.empty(1, 3, SIDE, SIDE, device="meta"))
    return counter.total


def lipschitz_status(model: nn.Module) -> str:
    """Return the Lipschitz bound if it is finite, else short names of the causes."""
    report = models.lipschitz_bound(model, (1, 3, SIDE, SIDE))
    if report.finite:
        return f"finite: 10^{report.log10_tight:.0f} (published form 10^{report.log10_published:.0f})"
    causes = sorted({reason.split(":")[0] for reason in report.reasons if ":" in reason})
    return "infinite: " + ", ".join(causes or report.reasons)


def sizes(name: str) -> Row:
    """Return a row with all values that need no timing."""
    with torch.device("meta"):
        empty = build(name).eval()
    parameters = sum(p.numel() for p in empty.parameters())
    gmacs = forward_flops(empty, SIDE) / 2e9
    return Row(name, parameters, gmacs, activations(empty) / 1e6, lipschitz_status(build(name)))


def speed(name: str, batch: int, turns: int) -> tuple[float, float]:
    """Return the images per second of a forward pass and of a training step."""
    device = tuned_device()
    step = TrainingStep(build(name).to(device), SIDE, batch)

    def forward() -> None:
        with torch.no_grad():
            step.model(step.images)

    step.model.eval()
    forwards = [seconds(forward, device) for _ in range(turns + 1)]
    step.model.train()
    steps = [step.seconds() for _ in range(turns + 1)]
    return batch / median(forwards[1:]), batch / median(steps[1:])  # the first of each does not count


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    return "\n".join([head(*COLUMNS), *(row(*each.cells()) for each in rows), ""])


@command
def main() -> None:
    parser = bench_parser(__doc__, batch_size=8, turns=5)
    parser.add_argument("--no-speed", action="store_true", help="sizes only; nothing is written")
    parser.add_argument("--out", type=Path, default=PROJECT / "docs/models.md")
    args = parser.parse_args()
    rows = []
    for name in tqdm(names(), disable=None, leave=False):
        rows.append(sizes(name))
        if not args.no_speed:
            rows[-1].forward, rows[-1].training = speed(name, args.batch_size, args.turns)
    print(table(rows))
    if not args.no_speed:
        machine = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        header = HEADER.format(machine=machine, side=SIDE, classes=CLASSES, batch=args.batch_size, turns=args.turns)
        args.out.write_text(header + table(rows), encoding="utf-8")
        print(f"written: {args.out}")


if __name__ == "__main__":
    sys.exit(main())
