"""The options of ``data/``: where images come from and how they are changed.

``metadata`` holds the rules of an option: its limits, its choices, whether it is a path, and whether it may change when
a run is resumed. ``check`` holds the rules over several options.
"""

import math
from dataclasses import dataclass, field

from omegaconf import MISSING

from data.errors import DataError

# The options of "augment" that mix images with one another; each is 0 where it is off.
MIXES = (
    "mixup",
    "cutmix",
)


@dataclass
class DataConfig:
    """One data set and how its images reach the model (``data.*``)."""

    name: str = MISSING  # name in logs; "synthetic" needs no files
    # Folder with the images: class folders, shards, WebDataset tar files or zip files (docs/imagenet.md).
    root: str | None = field(default=None, metadata={"path": "absolute", "may_change": True})
    # Extensions of a WebDataset: of images, the preferred one first, and of labels (a number or a name as text).
    image_ext: str = "jpg,jpeg,png"
    label_ext: str = "cls"
    # Folder on a disk of the node itself, to which shards, tar files and zip files are copied first; null: no copy.
    stage_to: str | None = field(default=None, metadata={"path": "absolute", "may_change": True})
    # Tar file that holds this folder; unpacked into the user's cache on first use.
    archive: str | None = field(default=None, metadata={"path": "as typed"})
    archive_sha256: str | None = None
    train_split: str = "train"
    split: str = "val"  # the split that is evaluated
    # auto: dali if it is installed, because it is faster; else torch
    backend: str = field(default="auto", metadata={"choices": ("auto", "dali", "torch")})
    # Share of JPEGs that DALI gives to the GPU's hardware decoder, if the GPU has one.
    hw_decoder_load: float = field(default=0.65, metadata={"least": 0, "most": 1, "may_change": True})
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406], metadata={"length": 3, "least": 0})
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225], metadata={"length": 3, "above": 0})
    crop: int = field(default=224, metadata={"above": 0})  # side of the images the model sees
    # Share of the shorter side that evaluation's centre crop covers.
    crop_ratio: float = field(default=0.875, metadata={"above": 0, "most": 1})
    # Shorter side to which evaluation resizes before the crop; null: crop / crop_ratio.
    resize: int | None = field(default=None, metadata={"above": 0})
    # squash: evaluation resizes both sides to that length, without keeping the aspect ratio.
    crop_mode: str = field(default="center", metadata={"choices": ("center", "squash")})
    # Always with antialiasing. random: training draws one of the two each time, evaluation is bicubic.
    interpolation: str = field(default="bicubic", metadata={"choices": ("bicubic", "bilinear", "random")})
    # Where the index of an image folder is kept; null: in root if writable, else in the user's cache.
    index_dir: str | None = field(default=None, metadata={"path": "absolute", "may_change": True})
    on_bad_image: str = field(default="error", metadata={"choices": ("error", "skip"), "may_change": True})
    # Share of the training images to use; the same share of every class.
    subset: float = field(default=1.0, metadata={"above": 0, "most": 1})
    balanced: bool = False  # every class appears equally often in an epoch, however many images it has
    # Number of training images of data=synthetic; a fortieth of that number is evaluated.
    synthetic_images: int = field(default=10240, metadata={"above": 0})
    synthetic_classes: int = field(default=1000, metadata={"above": 0})

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            DataError: the message says what to set instead.
        """
        for name in ("mean", "std"):
            values = getattr(self, name)
            if max(values) > 1:
                scaled = [round(value / 255, 4) for value in values]
                raise DataError(
                    f"data.{name}={values} is for pixels from 0 to 255; here they go from 0 to 1: set {scaled}"
                )
        if (self.archive is None) != (self.archive_sha256 is None):
            raise DataError("data.archive and data.archive_sha256 belong together: set both")
        if self.resize is not None and self.resize < self.crop:
            raise DataError(
                f"data.resize={self.resize} is smaller than data.crop={self.crop}: set data.resize={self.crop} or more"
            )


def evaluation_side(data: DataConfig) -> int:
    """The shorter side, in pixels, to which evaluation resizes images before the centre crop."""
    return data.resize if data.resize is not None else math.floor(data.crop / data.crop_ratio)


@dataclass
class AugmentConfig:
    """How training images are changed (``augment.*``)."""

    # Range of the random crop's area, as a share of the image's area.
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0], metadata={"length": 2, "above": 0, "most": 1})
    # Range of the random crop's aspect ratio (width / height).
    ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3], metadata={"length": 2, "above": 0})
    # What is uniform in that range: the crop's area, as in torchvision and timm, or its height, as in TensorFlow, whose
    # crops are therefore smaller.
    crop_by: str = field(default="area", metadata={"choices": ("area", "height")})
    hflip: float = field(default=0.5, metadata={"least": 0, "most": 1})  # probability of a horizontal flip
    # Policy of automatic augmentation: a timm name such as rand-m9-mstd0.5-inc1 or 3a, or trivial.
    auto_augment: str | None = None
    # Largest change of brightness, contrast and saturation; used only without auto_augment or with 3a.
    color_jitter: float = field(default=0.0, metadata={"least": 0})
    # How often an image appears in an epoch; the epoch keeps its length, so it uses 1/repeats of the images.
    repeats: int = field(default=1, metadata={"above": 0})
    mixup: float = field(default=0.0, metadata={"least": 0})  # alpha of mixup's Beta distribution, 0 = off
    cutmix: float = field(default=0.0, metadata={"least": 0})  # alpha of cutmix's Beta distribution, 0 = off
    mixup_prob: float = field(default=1.0, metadata={"least": 0, "most": 1})  # probability that a group is mixed at all
    mixup_switch_prob: float = field(default=0.5, metadata={"least": 0, "most": 1})  # of cutmix if mixup is on too
    # Number of consecutive images that share one mixing draw and are mixed with one another.
    mix_group: int = field(default=32, metadata={"above": 0})
    # Number of epochs in which images are mixed, from the first one on; null: all.
    mixup_off_epoch: int | None = field(default=None, metadata={"above": 0})
    random_erasing: float = field(default=0.0, metadata={"least": 0, "most": 1})  # probability; fills with noise
    label_smoothing: float = field(default=0.1, metadata={"least": 0, "most": 1})

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with one another."""
        return any(getattr(self, name) > 0 for name in MIXES)

    def mixes_in(self, epoch: int) -> bool:
        """Whether images of an epoch, counted from 0, are mixed with one another."""
        return self.mixes and (self.mixup_off_epoch is None or epoch < self.mixup_off_epoch)

    @property
    def inseparable(self) -> int:
        """Number of consecutive images that a process takes together: those of a mix group, or 1 without mixing."""
        return self.mix_group if self.mixes else 1

    def check(self) -> None:
        """Refuse ranges that begin with the larger number, mixing in groups of one image, and its end without mixing.

        Raises:
            DataError: the message says what is wrong.
        """
        if self.mixes and self.mix_group == 1:
            raise DataError(
                "augment.mix_group=1 leaves no other image to mix with: set augment.mix_group=2 or more, or "
                + " ".join(f"augment.{name}=0" for name in MIXES)
            )
        if self.mixup_off_epoch is not None and not self.mixes:
            raise DataError(
                f"augment.mixup_off_epoch={self.mixup_off_epoch} ends nothing, because no images are mixed: leave it "
                f"out, or set {' or '.join(f'augment.{name}' for name in MIXES)}"
            )
        for name in ("scale", "ratio"):
            if getattr(self, name) != sorted(getattr(self, name)):
                raise DataError(f"augment.{name}={getattr(self, name)} must begin with the smaller number")
