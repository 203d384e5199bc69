"""Write the model's predictions on every image to a file (``eval.py predictions=FILE``), to find its mistakes."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data import EvalImages
from engine.errors import UserError
from engine.processes.distributed import World

TOP_K = 5  # classes written for each image


class Predictions:
    """Collects the most probable classes of each image, in the order of the images.

    Attributes:
        parts: for each batch the classes and their probabilities, ``(n, k)`` each, the most probable class first.
    """

    def __init__(self) -> None:
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, logits: Tensor) -> None:
        """Add a batch's logits ``(n, classes)``. This waits for the device."""
        best = torch.softmax(logits.float(), dim=1).topk(min(TOP_K, logits.shape[1]), dim=1)
        self.parts.append((best.indices.cpu().numpy(), best.values.cpu().numpy()))

    def of_all(self, world: World) -> tuple[np.ndarray, np.ndarray] | None:
        """Gather the classes and probabilities, ``(images, k)`` each, of all images in order on the first process.

        The images are split among the processes in consecutive parts, in the order of the ranks.

        Returns:
            The classes and the probabilities; None on all other processes.
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
    """Write a CSV file with a row for each image: path, labels, most probable classes and their probabilities.

    Names are written as they are, also those that a spreadsheet takes for a formula (``=1+1``): whoever joins the file
    with other tables by these names needs them unchanged.

    Args:
        path: the file.
        images: the evaluated images.
        classes: ``(n, k)``, the most probable first; indices into ``images.classes``, if that is not None.
        probabilities: ``(n, k)``.
        names: names of the model's classes.

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
