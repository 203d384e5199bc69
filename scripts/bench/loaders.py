"""The loaders that ``loader_speed.py`` compares; each yields batches for a model."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2

from data import (
    AugmentConfig,
    BatchGeometry,
    DataConfig,
    DeviceAugment,
    EncodedSource,
    Loader,
    TrainPlan,
    build_backend,
    open_source,
    open_split,
)

POLICY = "rand-m9-mstd0.5-inc1"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Batches = Iterator[Tensor]


@dataclass(frozen=True)
class Setting:
    """The settings of one measurement."""

    root: str
    split: str
    index_dir: str | None
    crop: int
    batch_size: int
    batches: int
    workers: int
    full: bool = False  # the recipe
    hw_load: float = DataConfig.hw_decoder_load

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def data(self) -> DataConfig:
        options = {"crop": self.crop, "index_dir": self.index_dir, "hw_decoder_load": self.hw_load}
        return DataConfig(name="folder", root=self.root, **options)

    def files(self) -> list[tuple[str, int]]:
        """Return paths and classes, shuffled, and repeated until there are enough for all batches."""
        source = open_source(self.data, self.split)
        assert isinstance(source, EncodedSource)
        files = [(str(source.path(i)), int(target)) for i, target in enumerate(source.index.targets)]
        random.Random(0).shuffle(files)
        wanted = self.batches * self.batch_size
        return (files * (wanted // len(files) + 1))[:wanted]


def ours(kind: str, setting: Setting) -> Batches:
    """Yield batches of this project's loader with one of its backends."""
    images = open_split(setting.data, setting.split)
    augment = AugmentConfig()
    if setting.full:
        augment = AugmentConfig(auto_augment=POLICY, random_erasing=0.25, mixup=0.8, cutmix=1.0)
    geometry = BatchGeometry(setting.batch_size, augment.mix_group)
    plan = TrainPlan(images.index, 0, setting.data, augment, geometry)
    backend = build_backend(kind, images.source, setting.data, setting.device, setting.workers, setting.batch_size)
    change = DeviceAugment(list(MEAN), list(STD), images.num_classes, augment.label_smoothing).to(setting.device)
    for batch in Loader(backend, images.labels, setting.device).train(plan, 0, setting.batches):
        assert batch.draws is not None
        yield change(batch.images, batch.labels, batch.draws)[0]


class Listed(Dataset):
    """The images of a list, with a transform that timm's loader may set."""

    def __init__(self, files: list[tuple[str, int]], transform: Callable[[Image.Image], Any] | None = None):
        self.files = files
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Any:
        path, target = self.files[i]
        with Image.open(path) as file:
            image = file.convert("RGB")
        return (self.transform(image) if self.transform else 0), target


def timm_loader(setting: Setting) -> Batches:
    """Yield batches of timm's loader: Pillow in workers; normalisation, erasing and mixing on the device."""
    from timm.data import Mixup, create_loader

    files = setting.files()
    loader = create_loader(
        Listed(files),  # type: ignore[arg-type]
        (3, setting.crop, setting.crop),
        setting.batch_size,
        is_training=True,
        interpolation="bicubic",
        color_jitter=0.0,
        auto_augment=POLICY if setting.full else None,
        re_prob=0.25 if setting.full else 0.0,
        re_mode="pixel",
        num_workers=setting.workers,
        device=setting.device,
    )
    mix = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=1000) if setting.full else None
    for images, labels in loader:
        yield images if mix is None else mix(images, labels)[0]


class TunedCrops(Dataset):
    """torchvision v2 in its fastest form: only the crop is copied, and it is resized as channels-last uint8."""

    def __init__(self, files: list[tuple[str, int]], side: int, full: bool):
        self.files, self.size = files, [side, side]
        last: list[Callable] = [v2.RandomHorizontalFlip()]
        if full:  # torchvision's RandAugment differs from timm's, and cannot move tensors with bicubic interpolation
            last.append(v2.RandAugment(interpolation=InterpolationMode.BILINEAR))
        self.last = v2.Compose(last)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Tensor:
        content = Path(self.files[i][0]).read_bytes()  # faster than letting Pillow open the path
        with Image.open(BytesIO(content)) as file:
            blank = torch.empty(1).expand(3, file.height, file.width)
            top, left, height, width = RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3])
            pixels = np.array(file.convert("RGB").crop((left, top, left + width, top + height)))
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        image = v2.functional.resize(image, self.size, InterpolationMode.BICUBIC, antialias=True)
        return self.last(image)


def torchvision_loader(setting: Setting) -> Batches:
    """Yield batches with torchvision's transforms in workers; normalisation, erasing and mixing on the device."""
    dataset = TunedCrops(setting.files(), setting.crop, setting.full)
    loader = DataLoader(
        dataset, setting.batch_size, num_workers=setting.workers, pin_memory=setting.device.type == "cuda"
    )
    mean, std = (torch.tensor(values, device=setting.device).view(1, 3, 1, 1) * 255 for values in (MEAN, STD))
    erase = v2.RandomErasing(0.25)
    mix = v2.RandomChoice([v2.MixUp(alpha=0.8, num_classes=1000), v2.CutMix(alpha=1.0, num_classes=1000)])
    for images in loader:
        images = images.to(setting.device, non_blocking=True).float().sub_(mean).div_(std)
        if setting.full:
            images = torch.stack([erase(image) for image in images])
            images, _ = mix(images, torch.zeros(len(images), dtype=torch.long, device=setting.device))
        yield images


def pillow_decode(setting: Setting) -> Batches:
    """Decode whole images with Pillow in workers, and discard them."""
    loader = DataLoader(Listed(setting.files()), setting.batch_size, num_workers=setting.workers)
    for nothing, _ in loader:
        yield nothing


def dali_decode(setting: Setting) -> Batches:
    """Decode random crops with DALI's threads, without resizing, and discard them."""
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(enable_conditionals=False)
    def decode():
        encoded, _ = fn.readers.file(files=[path for path, _ in setting.files()])
        device = "mixed" if setting.device.type == "cuda" else "cpu"
        return fn.decoders.image_random_crop(encoded, device=device, random_area=[0.08, 1.0])

    on_gpu = setting.device.type == "cuda"
    pipeline = decode(batch_size=setting.batch_size, num_threads=setting.workers, device_id=0 if on_gpu else None)
    for _ in range(setting.batches):
        pipeline.run()
        yield torch.zeros(setting.batch_size)


LOADERS: dict[str, Callable[[Setting], Batches]] = {
    "ours, dali": lambda setting: ours("dali", setting),
    "ours, torch": lambda setting: ours("torch", setting),
    "timm": timm_loader,
    "torchvision v2": torchvision_loader,
}
FLOORS = {"decode, Pillow, whole image": pillow_decode, "decode, DALI, the crop": dali_decode}
