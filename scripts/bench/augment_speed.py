"""Compare the speed of automatic augmentation with timm's on the same images, for each operation.

OMP_NUM_THREADS=1 python scripts/bench/augment_speed.py
python scripts/bench/augment_speed.py --root /path/to/images --auto trivial

Our operations run on uint8 batches on the device, timm's on PIL images one by one. Both take turns. The columns of the
table are the median milliseconds per image, the median of the ratios of each turn, and the difference of the pixels:
the largest mean absolute difference of an image, in steps of 1/255. The last row times the whole policy as in training,
including the random draws. The images are enlarged embedded ones (Fashion-MNIST), or photographs in --root.
"""

import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from timm.data.auto_augment import LEVEL_TO_ARG, NAME_TO_OP, auto_augment_transform, rand_augment_transform
from torch import Tensor
from torchvision.transforms import InterpolationMode, TrivialAugmentWide
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.augment.auto_augment import carry_out
from data.augment.levels import operations
from data.augment.policies import AutoDraws, Policy, policies
from data.planning.draws import Stream, uniforms
from data.storage.archive import PROJECT, unpacked
from scripts.bench.options import bench_parser
from scripts.bench.training_step import ratio, seconds, tuned_device
from scripts.common.command_line import command, existing_folder, positive

FILL = (124, 116, 104)  # ImageNet's mean
SUFFIXES = (".jpg", ".jpeg", ".png")
MAGNITUDE = 9
HPARAMS = {"fillcolor": FILL, "resample": Image.Resampling.BICUBIC}
NAMES = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd"),
    *("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing", "ShearX", "ShearY"),
    *("TranslateXRel", "TranslateYRel", "GaussianBlur"),
)


def load(root: Path, count: int, side: int) -> list[Image.Image]:
    """Load ``count`` images from a folder and its subfolders, resized to ``side`` pixels."""
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    chosen = random.Random(0).choices(files, k=count)
    return [Image.open(path).convert("RGB").resize((side, side)) for path in chosen]


def timms(auto: str) -> Callable[[Image.Image], Image.Image]:
    """Return the policy of timm or torchvision."""
    if auto == "trivial":
        return TrivialAugmentWide(interpolation=InterpolationMode.BICUBIC, fill=list(FILL))
    parse = rand_augment_transform if auto.startswith("rand") else auto_augment_transform
    return parse(auto, {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC})


def race(ours: Callable[[], object], theirs: Callable[[], object], turns: int, device: torch.device) -> list[float]:
    """Return the median times of both, and the median of the ratios theirs / ours."""
    ours(), theirs()
    pairs = [(seconds(ours, device), seconds(theirs, device)) for _ in tqdm(range(turns), disable=None, leave=False)]
    mine, other = zip(*pairs, strict=True)
    return [median(mine), median(other), ratio(other, mine)]


def one_operation(name: str, count: int) -> AutoDraws:
    """Return draws that apply one operation to all images, in both directions."""
    ones = np.ones((count, 1))
    directions = np.linspace(0, 1, count)[:, None]
    return AutoDraws(*operations([name], np.zeros((count, 1), dtype=np.int64), ones * (MAGNITUDE / 10), directions))


def by_timm(name: str, images: list[Image.Image], draws: AutoDraws) -> list[Image.Image]:
    """Apply timm's operation with our arguments."""
    function = NAME_TO_OP[name]
    if LEVEL_TO_ARG[name] is None:
        return [function(image, **HPARAMS) for image in images]
    whole = name.startswith(("Posterize", "Solarize"))
    args = [int(arg) if whole else arg for arg in draws.args[:, 0].tolist()]
    return [function(image, arg, **HPARAMS) for image, arg in zip(images, args, strict=True)]


def as_batch(images: list[Image.Image]) -> Tensor:
    """Stack images into a uint8 batch ``(n, 3, side, side)``."""
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


def apart(made: Tensor, expected: Tensor) -> float:
    """Return the largest of the images' mean absolute differences."""
    return (made.cpu().float() - expected.float()).abs().mean(dim=(1, 2, 3)).max().item()


def drawn(policy: Policy, batch: int, count: int) -> AutoDraws:
    """Return the random draws of the policy for a batch."""
    return policy.draw(uniforms(0, 0, Stream.AUTO, batch * count, count, policy.uniforms))


@command
def main() -> None:
    parser = bench_parser(__doc__, batch_size=64, turns=15)
    parser.add_argument("--root", type=existing_folder, help="folder of photographs")
    parser.add_argument("--auto", default="rand-m9-mstd0.5-inc1", help="the policy")
    parser.add_argument("--side", type=positive, default=224)
    args = parser.parse_args()
    device = tuned_device()
    embedded: Any = OmegaConf.load(PROJECT / "conf/data/fashion_mnist.yaml")
    root = args.root or unpacked(PROJECT / embedded.archive, embedded.archive_sha256)
    images = load(root, args.batch_size, args.side)
    n = len(images)
    batch = as_batch(images).to(device)
    fill = torch.tensor(FILL, dtype=torch.uint8, device=device).view(1, 3, 1, 1)

    def ours(draws: AutoDraws) -> Tensor:
        return carry_out(batch, draws, None, fill)

    print(f"{n} images of {args.side} px, {torch.get_num_threads()} threads, {device}; ms an image")
    print(f"{'operation':22} {'ours':>8} {'timm':>8} {'timm / ours':>12} {'apart':>8}")
    for name in NAMES:
        draws = one_operation(name, n)
        work = partial(ours, draws), partial(by_timm, name, images, draws)
        a, b, times = race(*work, args.turns, device)
        distance = apart(work[0](), as_batch(work[1]()))
        print(f"{name:22} {a / n * 1e3:8.3f} {b / n * 1e3:8.3f} {times:12.2f} {distance:8.4f}")

    (policy,), theirs, turn = policies(args.auto, 0.0, args.side), timms(args.auto), iter(range(10**6))
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    a, b, times = race(
        lambda: ours(drawn(policy, next(turn), n)), lambda: [theirs(image) for image in images], 2 * args.turns, device
    )
    print(f"{args.auto:22} {a / n * 1e3:8.3f} {b / n * 1e3:8.3f} {times:12.2f}")


if __name__ == "__main__":
    sys.exit(main())
