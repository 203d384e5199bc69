"""A file with the model's answer on every image (``eval.py predictions=FILE``), for a look at what it gets wrong."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data import EvalImages
from engine.distributed import World
from engine.errors import UserError

MOST = 5  # classes of an image


class Predictions:
    """Collects the best classes of each image, in the order of the images.

    Attributes:
        parts: classes and probabilities of each batch, ``(n, k)`` each, the best first.
    """

    def __init__(self) -> None:
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, logits: Tensor) -> None:
        """Take a batch's logits ``(n, classes)``; waits for the device."""
        best = torch.softmax(logits.float(), dim=1).topk(min(MOST, logits.shape[1]), dim=1)
        self.parts.append((best.indices.cpu().numpy(), best.values.cpu().numpy()))

    def of_all(self, world: World) -> tuple[np.ndarray, np.ndarray] | None:
        """Classes and probabilities ``(images, k)`` of all processes' images in order; None but on the first process.

        Processes have consecutive shares of the images, in the order of their ranks.
        """
        parts: list[Any] = [self.parts]
        if world.size > 1:
            gathered: list[Any] | None = [None] * world.size if world.is_main else None
            dist.gather_object(self.parts, gathered)
            if gathered is None:
                return None
            parts = gathered
        flat = [part for of_rank in parts for part in of_rank]
        return np.concatenate([classes for classes, _ in flat]), np.concatenate([shares for _, shares in flat])


def write_predictions(
    path: Path, images: EvalImages, classes: np.ndarray, probabilities: np.ndarray, names: list[str]
) -> None:
    """Write a CSV file with a row for each image: its path, right answer, best classes and their probabilities.

    Args:
        path: of the file.
        images: what was evaluated.
        classes: ``(n, k)``, the best first. Numbers among ``images.classes``, where these are given.
        probabilities: ``(n, k)``.
        names: of the model's classes.

    Raises:
        UserError: if the file cannot be written.
    """
    chosen = images.classes if images.classes is not None else np.arange(len(names))
    count = classes.shape[1]
    head = ["path", "label", "name", *(f"{word}{i + 1}" for i in range(count) for word in ("top", "name", "p"))]
    try:
        with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(head)
            for row, (best, shares) in enumerate(zip(classes, probabilities, strict=True)):
                right = [int(chosen[label]) for label in np.atleast_1d(images.answers[row]) if label >= 0]
                answer = [images.source.name(row), " ".join(map(str, right)), " ".join(names[label] for label in right)]
                found = [(int(chosen[k]), names[chosen[k]], f"{p:.4f}") for k, p in zip(best, shares, strict=True)]
                writer.writerow([*answer, *(cell for cells in found for cell in cells)])
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror}): set predictions to another file") from error
