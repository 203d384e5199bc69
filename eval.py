"""Evaluate a checkpoint: every image of the split once, over all processes.

python eval.py checkpoint=outputs/quickstart/checkpoints/last.pt
python eval.py model=timm model.name=resnet50 checkpoint=resnet50.safetensors data.root=/path/to/imagenet
"""

from typing import Any

from omegaconf import DictConfig

from engine.cli import launch
from engine.eval import evaluate_checkpoint, implied_family, open_trained
from engine.settings import eval_settings


def task(composed: DictConfig, choices: dict[str, Any], overrides: list[str], many: bool) -> None:
    trained = open_trained(composed.checkpoint)
    settings = eval_settings(composed, trained, overrides)
    evaluate_checkpoint(settings, trained)


if __name__ == "__main__":
    launch("eval", task, implied_family)
