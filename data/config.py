"""The options of the data room: where images come from and how they are changed."""

import math
from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class DataConfig:
    """One data set and how its images reach the model (``data.*``)."""

    name: str = MISSING  # label in logs; "synthetic" needs no files
    # Folder that holds <split>/<class>/<image>, or shards in <split>.
    root: str | None = field(default=None, metadata={"path": "absolute"})
    # Tar file that holds the folder, unpacked into the user's cache on first use.
    archive: str | None = field(default=None, metadata={"path": "as typed"})
    archive_sha256: str | None = None
    train_split: str = "train"
    split: str = "val"  # what is evaluated
    backend: str = "auto"  # dali | torch | auto: dali where it is installed, being the faster one
    hw_decoder_load: float = 0.65  # share of JPEGs for a GPU's hardware decoder, where DALI decodes and it has one
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    crop: int = 224  # side of the images the model sees
    crop_ratio: float = 0.875  # evaluation sees this share of the shorter side, through a crop at the centre
    resize: int | None = None  # shorter side before that crop; null: crop / crop_ratio
    crop_mode: str = "center"  # center | squash: evaluation resizes both sides to that, whatever the image's shape
    interpolation: str = "bicubic"  # bicubic | bilinear, with antialiasing | random: either, in training
    # Where a folder's index lies; null: in root if writable, else in the user's cache.
    index_dir: str | None = field(default=None, metadata={"path": "absolute"})
    on_bad_image: str = "error"  # error | skip
    subset: float = 1.0  # share of the training images to take, the same of every class
    balanced: bool = False  # every class equally often in an epoch, whatever the sizes of the folders
    synthetic_images: int = 10240  # training images of data=synthetic; a fortieth as many are evaluated
    synthetic_classes: int = 1000


def evaluation_side(data: DataConfig) -> int:
    """The shorter side in pixels that images are resized to before evaluation's centre crop."""
    return data.resize if data.resize is not None else math.floor(data.crop / data.crop_ratio)


@dataclass
class AugmentConfig:
    """How training images are changed (``augment.*``)."""

    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])  # area of the random crop, share of the image
    ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])  # aspect ratio of the random crop
    hflip: float = 0.5  # probability of a horizontal flip
    auto: str | None = None  # policy of automatic augmentation: timm's rand-m9-mstd0.5-inc1 and the like, trivial, 3a
    color_jitter: float = 0.0  # most that brightness, contrast and saturation change; only without auto, or with 3a
    repeats: int = 1  # times that an image comes in an epoch, which then takes as many images less
    mixup: float = 0.0  # alpha of mixup's Beta distribution, 0 = off
    cutmix: float = 0.0  # alpha of cutmix's Beta distribution, 0 = off
    mix_prob: float = 1.0  # probability that a group is mixed at all
    mix_switch: float = 0.5  # probability of cutmix where both are on
    mix_group: int = 32  # consecutive images that share one mixing draw and are partners of each other
    erase: float = 0.0  # probability of random erasing with noise
    smoothing: float = 0.1  # label smoothing
