"""Images without files: the synthetic backend makes noise for them. For trying out and timing."""

from pathlib import Path

import numpy as np

from data.config import DataConfig
from data.index import ImageIndex, Strings
from data.sources.source import Source

EVALUATED = 40  # number of training images for each image that is evaluated


class SyntheticSource(Source):
    """Labels and sizes of images without files, spread evenly over the classes (``data=synthetic``).

    Args:
        count: number of images.
        classes: number of classes.
        side: side of the square images in pixels.
    """

    backend = "synthetic"

    def __init__(self, count: int, classes: int, side: int):
        self.place = Path("synthetic")
        sizes = np.full(count, side, dtype=np.int32)
        self.index = ImageIndex(
            classes=[str(label) for label in range(classes)],
            paths=Strings.pack([""] * count),
            targets=(np.arange(count) % classes).astype(np.int32),
            heights=sizes,
            widths=sizes,
        )

    @classmethod
    def fits(cls, cfg: DataConfig, split: str) -> bool:
        """See :class:`data.sources.Source`."""
        return cfg.name == "synthetic"

    @classmethod
    def open(cls, cfg: DataConfig, split: str, build: bool = True) -> "SyntheticSource":
        """See :class:`data.sources.Source`."""
        count = cfg.synthetic_images if split == cfg.train_split else max(1, cfg.synthetic_images // EVALUATED)
        return cls(count, cfg.synthetic_classes, cfg.crop)

    @property
    def layout(self) -> str:
        """See :class:`data.sources.Source`."""
        return "no files"

    def name(self, i: int) -> str:
        """See :class:`data.sources.Source`."""
        return f"synthetic image {i}"
