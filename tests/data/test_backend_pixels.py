"""Every backend makes Pillow's pixels.

With ``TEST_IMAGES=/path/to/images``, the pixels of up to 200 images in that folder are compared too.
"""

import os
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image

from data.backends import dali_pipelines
from data.backends.encoded import Encoded, encoded_images, has_paths
from data.config import DataConfig
from data.index.headers import EXTENSIONS
from data.planning.crops import Crops
from data.sources import EncodedSource
from tests.crop_requests import (
    BACKENDS,
    CPU,
    GPU,
    MODES,
    build,
    images_of,
    in_batches,
    make_crops,
    options,
    run,
    take,
    write_cmyk,
    write_rgb,
)
from tests.packing import pack

BOUND, GPU_BOUND = 0.5, 2.0  # mean absolute difference of one image, in steps of 1/255
PICTURES = (("bicubic", 224), ("bicubic", 64), ("bilinear", 64), ("random", 64))  # interpolation and crop


@pytest.fixture(scope="module", params=["photographs", *(["TEST_IMAGES"] if "TEST_IMAGES" in os.environ else [])])
def source(
    request: pytest.FixtureRequest, photographs: Path, tmp_path_factory: pytest.TempPathFactory
) -> EncodedSource:
    if request.param == "photographs":
        return images_of(photographs)
    found = sorted(p.resolve() for p in Path(os.environ["TEST_IMAGES"]).rglob("*") if p.suffix.lower() in EXTENSIONS)
    root = tmp_path_factory.mktemp("images")
    (root / "train" / "all").mkdir(parents=True)
    for i, path in enumerate(found[:: max(1, -(-len(found) // 200))]):
        (root / "train" / "all" / f"{i:03}-{path.name}").symlink_to(path)
    return images_of(root)


def by_pillow(source: EncodedSource, cfg: DataConfig, crops: Crops) -> NDArray[np.uint8]:
    """The batch that :class:`Crops` describes, made with Pillow's own functions."""
    images = []
    for i, n in enumerate(crops.index):
        (top, left, height, width), (y, x) = crops.box[i].tolist(), crops.window[i].tolist()
        with Image.open(BytesIO(source.read(int(n)))) as file:
            image = file.convert("RGB").crop((left, top, left + width, top + height))
        resample = Image.Resampling.BICUBIC if crops.cubic[i] else Image.Resampling.BILINEAR
        image = image.resize(crops.size[i, ::-1].tolist(), resample)
        image = image.crop((x, y, x + cfg.crop, y + cfg.crop))
        images.append(np.asarray(image)[:, ::-1] if crops.flip[i] else np.asarray(image))
    return np.stack(images).transpose(0, 3, 1, 2)


def compare(kind: str, source: EncodedSource, cfg: DataConfig, mode: str, device: torch.device, bound: float) -> None:
    crops = make_crops(source, cfg, mode)
    images = torch.cat(run(build(kind, source, cfg, device=device), in_batches(crops, 8)))
    assert (images.dtype, images.device.type) == (torch.uint8, device.type)
    print(f"{kind} {device.type} {mode} {cfg.interpolation} {cfg.crop}")
    check_pixels(images.cpu().numpy(), source, cfg, crops, bound)


def check_pixels(images: NDArray[np.uint8], source: EncodedSource, cfg: DataConfig, crops: Crops, bound: float) -> None:
    off = np.abs(images.astype(np.int16) - by_pillow(source, cfg, crops)).mean((1, 2, 3))
    worst = int(off.argmax())
    print(f"at most {off[worst]:.3f}/255")
    assert off[worst] <= bound, f"{source.index.paths[worst]} is {off[worst]:.2f}/255 off, box {crops.box[worst]}"


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("interpolation", "crop"), PICTURES)
def test_pixels_are_pillows(source: EncodedSource, kind: str, mode: str, interpolation: str, crop: int) -> None:
    compare(kind, source, options(interpolation, crop), mode, CPU, BOUND)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("interpolation", "crop"), PICTURES)
def test_pixels_of_dali_on_a_gpu_are_pillows(source: EncodedSource, mode: str, interpolation: str, crop: int) -> None:
    compare("dali", source, options(interpolation, crop), mode, GPU, GPU_BOUND)


@pytest.mark.parametrize(("mode", "resize"), [("train", 73), ("eval", 73), ("eval", 61)])
def test_the_pipeline_for_a_gpu_makes_these_pixels_on_a_cpu_too(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, resize: int
) -> None:
    """Its crops, sizes, windows and flips are right; only the device differs."""
    decode = dali_pipelines._decoded

    def on_a_cpu(image, from_paths: bool, _: str, start, extent, **__: float):
        return decode(image, from_paths, "cpu", start, extent)

    monkeypatch.setattr(dali_pipelines, "_decoded", on_a_cpu)
    source = images_of(photographs)
    cfg = DataConfig(name="photographs", crop=64, resize=resize, interpolation="random")
    crops = make_crops(source, cfg, mode)
    images = encoded_images(source, iter([crops]), tmp_path)

    def feed() -> tuple[Encoded, Crops]:
        return next(images)[1], crops

    sizes = {"batch_size": len(crops), "num_threads": 1, "device_id": None, "prefetch_queue_depth": 1}
    made, shapes = dali_pipelines.gpu_pipeline(feed, has_paths(source), cfg.crop, 0.0, exec_dynamic=True, **sizes).run()
    assert np.array_equal(shapes.as_array()[:, 0], source.index.heights)
    check_pixels(made.as_array(), source, cfg, crops, GPU_BOUND)


@pytest.mark.gpu
def test_a_batch_stays_until_a_slow_gpu_has_read_it(photographs: Path) -> None:
    source = images_of(photographs)
    cfg = options("bicubic", 224)
    requests = in_batches(make_crops(source, cfg, "train"), 4) * 4
    expected = [images.clone() for images in run(build("dali", source, cfg, device=GPU), requests)]
    late = []
    for images in build("dali", source, cfg, device=GPU).batches(iter(requests)):
        torch.cuda._sleep(10**8)  # the GPU is busy for some hundredths of a second, and the host goes on
        late.append(images.clone())
    assert all(torch.equal(a, b) for a, b in zip(late, expected, strict=True))


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize(("resize", "crop"), [(56, 64), (61, 64)])
def test_a_crop_larger_than_the_image_is_padded_with_black(
    photographs: Path, kind: str, resize: int, crop: int
) -> None:
    cfg = DataConfig(name="photographs", crop=crop, resize=resize)
    compare(kind, images_of(photographs), cfg, "eval", CPU, BOUND)


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_flip_mirrors_left_and_right(photographs: Path, kind: str) -> None:
    source, cfg = images_of(photographs), options("bicubic", 64)
    plain = take(make_crops(source, cfg, "eval"), slice(0, 4))
    flipped = replace(plain, flip=np.array([True, False, True, False]))
    (before,), (after,) = (run(build(kind, source, cfg), [crops]) for crops in (plain, flipped))
    for row, flip in enumerate(flipped.flip):
        assert torch.equal(after[row], before[row].flip(-1) if flip else before[row])
        assert not torch.equal(before[row], before[row].flip(-1))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kinds of files that are rare in ImageNet, and very small and very large images."""
    root = tmp_path_factory.mktemp("odd")
    folder = root / "train" / "a"
    folder.mkdir(parents=True)
    image = Image.fromarray(skimage.data.chelsea())
    write_cmyk(folder, image)
    write_rgb(folder, image)
    image.save(folder / "png.JPEG", format="PNG")
    image.convert("L").save(folder / "grey.JPEG")
    image.convert("LA").save(folder / "grey-alpha.png")
    turned = Image.Exif()
    turned[0x0112] = 8
    image.save(folder / "turned.JPEG", exif=turned)
    for name in ("one.JPEG", "one.png"):
        Image.new("RGB", (1, 1), (200, 10, 30)).save(folder / name)
    image.resize((6000, 4000)).save(folder / "huge.JPEG")
    return root


@pytest.mark.parametrize("layout", ["folder", "shards"])
@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_odd_files_are_pillows_in_either_layout(odd: Path, tmp_path: Path, kind: str, mode: str, layout: str) -> None:
    source = images_of(odd if layout == "folder" else pack(odd, tmp_path))
    odd_colours = {source.index.paths[row].removeprefix("a/") for row in source.index.odd_colours}
    assert odd_colours == {"adobe.jpg", "ycck.jpg", "plain.jpg", "rgb.jpg", "ids.jpg"}
    compare(kind, source, options("bicubic", 64), mode, CPU, BOUND)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["folder", "shards"])
@pytest.mark.parametrize("mode", MODES)
def test_odd_files_are_pillows_on_a_gpu(odd: Path, tmp_path: Path, mode: str, layout: str) -> None:
    source = images_of(odd if layout == "folder" else pack(odd, tmp_path))
    compare("dali", source, options("bicubic", 64), mode, GPU, GPU_BOUND)
