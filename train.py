"""Train a vision transformer without warm-up.

python train.py experiment=quickstart
torchrun --nproc-per-node=8 train.py model=lipsformer_swin_tiny data.root=/path/to/imagenet
python train.py --help
"""

from typing import Any

from omegaconf import DictConfig

from engine.cli import launch
from engine.settings import train_settings
from engine.train import train


def task(composed: DictConfig, choices: dict[str, Any], overrides: list[str], many: bool) -> None:
    train(train_settings(composed, choices, overrides, many))


if __name__ == "__main__":
    launch("train", task)
