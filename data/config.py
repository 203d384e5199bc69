"""The options of the data room: where images come from and how they are changed.

``metadata`` holds the rules of an option: its limits, its choices, whether it is a path, and whether it may change when
a run goes on. ``check`` holds the rules over several options.
"""

import math
from dataclasses import dataclass, field

from omegaconf import MISSING

from data.errors import DataError


@dataclass
class DataConfig:
    """One data set and how its images reach the model (``data.*``)."""

    name: str = MISSING  # label in logs; "synthetic" needs no files
    # Folder that holds <split>/<class>/<image>, or shards in <split>.
    root: str | None = field(default=None, metadata={"path": "absolute", "may_change": True})
    # Tar file that holds the folder, unpacked into the user's cache on first use.
    archive: str | None = field(default=None, metadata={"path": "as typed"})
    archive_sha256: str | None = None
    train_split: str = "train"
    split: str = "val"  # what is evaluated
    # auto: dali where it is installed, being the faster one
    backend: str = field(default="auto", metadata={"choices": ("auto", "dali", "torch")})
    # Share of JPEGs for a GPU's hardware decoder, where DALI decodes and it has one.
    hw_decoder_load: float = field(default=0.65, metadata={"least": 0, "most": 1, "may_change": True})
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406], metadata={"length": 3, "least": 0})
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225], metadata={"length": 3, "above": 0})
    crop: int = field(default=224, metadata={"above": 0})  # side of the images the model sees
    # Evaluation sees this share of the shorter side, through a crop at the centre.
    crop_ratio: float = field(default=0.875, metadata={"above": 0, "most": 1})
    resize: int | None = field(default=None, metadata={"above": 0})  # shorter side before that; null: crop / crop_ratio
    # squash: evaluation resizes both sides to that, whatever the image's shape
    crop_mode: str = field(default="center", metadata={"choices": ("center", "squash")})
    # With antialiasing; random: either, in training.
    interpolation: str = field(default="bicubic", metadata={"choices": ("bicubic", "bilinear", "random")})
    # Where a folder's index lies; null: in root if writable, else in the user's cache.
    index_dir: str | None = field(default=None, metadata={"path": "absolute", "may_change": True})
    on_bad_image: str = field(default="error", metadata={"choices": ("error", "skip"), "may_change": True})
    # Share of the training images to take, the same of every class.
    subset: float = field(default=1.0, metadata={"above": 0, "most": 1})
    balanced: bool = False  # every class equally often in an epoch, whatever the sizes of the folders
    # Training images of data=synthetic; a fortieth as many are evaluated.
    synthetic_images: int = field(default=10240, metadata={"above": 0})
    synthetic_classes: int = field(default=1000, metadata={"above": 0})

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            DataError: that says what to set instead.
        """
        for name in ("mean", "std"):
            values = getattr(self, name)
            if max(values) > 1:
                scaled = [round(value / 255, 4) for value in values]
                raise DataError(
                    f"data.{name}={values} is for pixels from 0 to 255; here they go from 0 to 1: set {scaled}"
                )
        if self.resize is not None and self.resize < self.crop:
            raise DataError(
                f"data.resize={self.resize} is smaller than data.crop={self.crop}: set data.resize={self.crop} or more"
            )


def evaluation_side(data: DataConfig) -> int:
    """The shorter side in pixels that images are resized to before evaluation's centre crop."""
    return data.resize if data.resize is not None else math.floor(data.crop / data.crop_ratio)


@dataclass
class AugmentConfig:
    """How training images are changed (``augment.*``)."""

    # Area of the random crop, as a share of the image's.
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0], metadata={"length": 2, "above": 0, "most": 1})
    # Aspect ratio of the random crop.
    ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3], metadata={"length": 2, "above": 0})
    hflip: float = field(default=0.5, metadata={"least": 0, "most": 1})  # probability of a horizontal flip
    # Policy of automatic augmentation: timm's rand-m9-mstd0.5-inc1 and the like, trivial, 3a.
    auto_augment: str | None = None
    # Most that brightness, contrast and saturation change; only without auto_augment, or with 3a.
    color_jitter: float = field(default=0.0, metadata={"least": 0})
    # Times that an image comes in an epoch, which then takes as many images less.
    repeats: int = field(default=1, metadata={"above": 0})
    mixup: float = field(default=0.0, metadata={"least": 0})  # alpha of mixup's Beta distribution, 0 = off
    cutmix: float = field(default=0.0, metadata={"least": 0})  # alpha of cutmix's Beta distribution, 0 = off
    mixup_prob: float = field(default=1.0, metadata={"least": 0, "most": 1})  # that a group is mixed at all
    mixup_switch_prob: float = field(default=0.5, metadata={"least": 0, "most": 1})  # of cutmix where both are on
    # Consecutive images that share one mixing draw and are partners of each other.
    mix_group: int = field(default=32, metadata={"above": 0})
    random_erasing: float = field(default=0.0, metadata={"least": 0, "most": 1})  # probability; with noise
    label_smoothing: float = field(default=0.1, metadata={"least": 0, "most": 1})

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with one another."""
        return self.mixup > 0 or self.cutmix > 0

    def check(self) -> None:
        """Refuse ranges that end before they begin.

        Raises:
            DataError: that names the first.
        """
        for name in ("scale", "ratio"):
            if getattr(self, name) != sorted(getattr(self, name)):
                raise DataError(f"augment.{name}={getattr(self, name)} must begin with the smaller number")
