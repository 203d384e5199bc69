"""Every backend makes Pillow's pixels, the same ones each time, and names the file that cannot be read.

With ``TEST_IMAGES=/path/to/images`` the pixels of up to 200 images found below it are compared too.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data.backends import Backend, build_backend, resolve_backend
from data.config import DataConfig
from data.crops import TRIES, Crops, centre_crops, random_resized_boxes
from data.errors import DataError
from data.index import ImageIndex, load_index
from data.index.headers import EXTENSIONS
from tests.packing import pack
from tests.runs import PROJECT

BOUND, GPU_BOUND = 0.5, 2.0  # mean absolute difference of one image, in steps of 1/255
CPU, GPU = torch.device("cpu"), torch.device("cuda")
MODES = ("train", "eval")
BACKENDS = ("torch", "dali")
PICTURES = (("bicubic", 224), ("bicubic", 64), ("bilinear", 64), ("random", 64))  # interpolation and crop

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def options(interpolation: str, crop: int) -> DataConfig:
    return DataConfig(name="photographs", crop=crop, resize=crop * 8 // 7, interpolation=interpolation)


def index_of(root: Path) -> ImageIndex:
    index = load_index(root, "train", on_bad_image="skip")
    assert index is not None
    return index


@pytest.fixture(scope="module", params=["photographs", *(["TEST_IMAGES"] if "TEST_IMAGES" in os.environ else [])])
def index(request: pytest.FixtureRequest, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    if request.param == "photographs":
        return index_of(photographs)
    found = sorted(p.resolve() for p in Path(os.environ["TEST_IMAGES"]).rglob("*") if p.suffix.lower() in EXTENSIONS)
    root = tmp_path_factory.mktemp("images")
    (root / "train" / "all").mkdir(parents=True)
    for i, path in enumerate(found[:: max(1, -(-len(found) // 200))]):
        (root / "train" / "all" / f"{i:03}-{path.name}").symlink_to(path)
    return index_of(root)


def make_crops(index: ImageIndex, cfg: DataConfig, mode: str, seed: int = 0) -> Crops:
    """One crop of each image, as the plans make them."""
    rows = np.arange(len(index))
    if mode == "eval":
        return centre_crops(rows, index.heights, index.widths, cfg.resize, cfg.crop, cfg.interpolation != "bilinear")
    rng = np.random.default_rng(seed)
    u = rng.random((len(rows), 4 * TRIES))
    return Crops(
        index=rows,
        box=random_resized_boxes(u, index.heights, index.widths, (0.08, 1.0), (3 / 4, 4 / 3)),
        size=np.full((len(rows), 2), cfg.crop, dtype=np.int32),
        window=np.zeros((len(rows), 2), dtype=np.int32),
        flip=rng.random(len(rows)) < 0.5,
        cubic=rng.random(len(rows)) < {"bicubic": 1.0, "bilinear": 0.0, "random": 0.5}[cfg.interpolation],
    )


def take(crops: Crops, rows: slice) -> Crops:
    return Crops(*(getattr(crops, field.name)[rows] for field in fields(Crops)))


def by_pillow(index: ImageIndex, cfg: DataConfig, crops: Crops) -> NDArray[np.uint8]:
    """What :class:`Crops` describes, in Pillow's own words."""
    images = []
    for i, n in enumerate(crops.index):
        (top, left, height, width), (y, x) = crops.box[i].tolist(), crops.window[i].tolist()
        with Image.open(BytesIO(index.read(int(n)))) as file:
            image = file.convert("RGB").crop((left, top, left + width, top + height))
        resample = Image.Resampling.BICUBIC if crops.cubic[i] else Image.Resampling.BILINEAR
        image = image.resize(crops.size[i, ::-1].tolist(), resample)
        image = image.crop((x, y, x + cfg.crop, y + cfg.crop))
        images.append(np.asarray(image)[:, ::-1] if crops.flip[i] else np.asarray(image))
    return np.stack(images).transpose(0, 3, 1, 2)


def build(
    kind: str, index: ImageIndex, cfg: DataConfig, workers: int = 0, max_batch: int = 8, device: torch.device = CPU
) -> Backend:
    return build_backend(kind, index, cfg, device, workers, max_batch)


def run(backend: Backend, requests: list[Crops]) -> list[Tensor]:
    batches = list(backend.batches(iter(requests)))
    assert [len(images) for images in batches] == [len(crops) for crops in requests]
    return batches


def refusal(backend: Backend, requests: list[Crops]) -> str:
    """The message, one line, with which a backend stops."""
    with pytest.raises(DataError) as refused:
        run(backend, requests)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def in_batches(crops: Crops, size: int) -> list[Crops]:
    return [take(crops, slice(start, start + size)) for start in range(0, len(crops), size)]


def compare(kind: str, index: ImageIndex, cfg: DataConfig, mode: str, device: torch.device, bound: float) -> None:
    crops = make_crops(index, cfg, mode)
    images = torch.cat(run(build(kind, index, cfg, device=device), in_batches(crops, 8)))
    assert (images.dtype, images.device.type) == (torch.uint8, device.type)
    off = np.abs(images.cpu().numpy().astype(np.int16) - by_pillow(index, cfg, crops)).mean((1, 2, 3))
    worst = int(off.argmax())
    print(f"{kind} {device.type} {mode} {cfg.interpolation} {cfg.crop}: at most {off[worst]:.3f}/255")
    assert off[worst] <= bound, f"{index.paths[worst]} is {off[worst]:.2f}/255 off, box {crops.box[worst]}"


# --- pixels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("interpolation", "crop"), PICTURES)
def test_pixels_are_pillows(index: ImageIndex, kind: str, mode: str, interpolation: str, crop: int) -> None:
    compare(kind, index, options(interpolation, crop), mode, CPU, BOUND)


@needs_gpu
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("interpolation", "crop"), PICTURES)
def test_pixels_of_dali_on_a_gpu_are_pillows(index: ImageIndex, mode: str, interpolation: str, crop: int) -> None:
    compare("dali", index, options(interpolation, crop), mode, GPU, GPU_BOUND)


@needs_gpu
def test_a_batch_stays_until_a_slow_gpu_has_read_it(photographs: Path) -> None:
    index = index_of(photographs)
    cfg = options("bicubic", 224)
    requests = in_batches(make_crops(index, cfg, "train"), 4) * 4
    expected = [images.clone() for images in run(build("dali", index, cfg, device=GPU), requests)]
    late = []
    for images in build("dali", index, cfg, device=GPU).batches(iter(requests)):
        torch.cuda._sleep(10**8)  # some hundredths of a second, in which the host goes on
        late.append(images.clone())
    assert all(torch.equal(a, b) for a, b in zip(late, expected, strict=True))


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize(("resize", "crop"), [(56, 64), (61, 64)])
def test_a_crop_larger_than_the_image_is_padded_with_black(
    photographs: Path, kind: str, resize: int, crop: int
) -> None:
    cfg = DataConfig(name="photographs", crop=crop, resize=resize)
    compare(kind, index_of(photographs), cfg, "eval", CPU, BOUND)


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_flip_mirrors_left_and_right(photographs: Path, kind: str) -> None:
    index, cfg = index_of(photographs), options("bicubic", 64)
    plain = take(make_crops(index, cfg, "eval"), slice(0, 4))
    flipped = replace(plain, flip=np.array([True, False, True, False]))
    (before,), (after,) = (run(build(kind, index, cfg), [crops]) for crops in (plain, flipped))
    for row, flip in enumerate(flipped.flip):
        assert torch.equal(after[row], before[row].flip(-1) if flip else before[row])
        assert not torch.equal(before[row], before[row].flip(-1))


def write_cmyk(folder: Path, image: Image.Image) -> None:
    """Write each kind of CMYK JPEG: Adobe's, of inverted colours, as CMYK and YCCK; and one that is not Adobe's."""
    colours = np.array(image.convert("CMYK"))
    colours[..., 3] = 255 - np.asarray(image.convert("L"))
    Image.frombytes("CMYK", image.size, colours.tobytes()).save(folder / "adobe.jpg", quality=90)
    content = (folder / "adobe.jpg").read_bytes()
    segment = content.index(b"Adobe") - 4  # two bytes of marker, two of length
    transform = segment + 15
    assert content[segment : segment + 4] == b"\xff\xee\0\x0e"
    (folder / "ycck.jpg").write_bytes(content[:transform] + b"\2" + content[transform + 1 :])
    (folder / "plain.jpg").write_bytes(content[:segment] + content[segment + 16 :])


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kinds of files that ImageNet holds a few of, and the least and largest images."""
    root = tmp_path_factory.mktemp("odd")
    folder = root / "train" / "a"
    folder.mkdir(parents=True)
    image = Image.fromarray(skimage.data.chelsea())
    write_cmyk(folder, image)
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
    index = index_of(odd if layout == "folder" else pack(odd, tmp_path))
    assert {index.paths[row] for row in index.cmyk} == {"a/adobe.jpg", "a/ycck.jpg", "a/plain.jpg"}
    compare(kind, index, options("bicubic", 64), mode, CPU, BOUND)


@needs_gpu
@pytest.mark.parametrize("layout", ["folder", "shards"])
@pytest.mark.parametrize("mode", MODES)
def test_odd_files_are_pillows_on_a_gpu(odd: Path, tmp_path: Path, mode: str, layout: str) -> None:
    index = index_of(odd if layout == "folder" else pack(odd, tmp_path))
    compare("dali", index, options("bicubic", 64), mode, GPU, GPU_BOUND)


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_damaged_cmyk_file_is_named(odd: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(odd, tmp_path / "odd")
    index, cfg = index_of(tmp_path / "odd"), options("bicubic", 64)
    cut_short(tmp_path / "odd" / "train" / "a" / "ycck.jpg")
    assert "a/ycck.jpg cannot be decoded" in refusal(
        build(kind, index, cfg, max_batch=16), [make_crops(index, cfg, "eval")]
    )


# --- the same each time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_torch_workers_change_no_pixel(photographs: Path, mode: str) -> None:
    index, cfg = index_of(photographs), options("bicubic", 64)
    requests = in_batches(make_crops(index, cfg, mode), 5)
    alone, beside = (run(build("torch", index, cfg, workers), requests) for workers in (0, 2))
    assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True))


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_stream_repeats_bit_by_bit(photographs: Path, kind: str) -> None:
    index, cfg = index_of(photographs), options("bicubic", 64)
    requests = in_batches(make_crops(index, cfg, "train"), 7)
    assert len(requests[-1]) < 7
    backend = build(kind, index, cfg, workers=2)
    first, again = run(backend, requests), run(backend, requests)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("kind", BACKENDS)
def test_batch_sizes_change_no_pixel(photographs: Path, kind: str) -> None:
    index, cfg = index_of(photographs), options("bicubic", 64)
    crops = make_crops(index, cfg, "train")
    uneven = [take(crops, slice(*ends)) for ends in ((0, 1), (1, 8), (8, 10), (10, 16))]
    parts = torch.cat(run(build(kind, index, cfg), uneven))
    assert torch.equal(parts, torch.cat(run(build(kind, index, cfg), in_batches(take(crops, slice(0, 16)), 8))))


@pytest.mark.parametrize("kind", BACKENDS)
def test_neither_a_mode_nor_threads_of_the_caller_matter_or_change(photographs: Path, kind: str) -> None:
    index, cfg = index_of(photographs), options("bicubic", 64)
    requests = in_batches(make_crops(index, cfg, "train"), 5)
    expected, before = run(build(kind, index, cfg, workers=2), requests), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with torch.inference_mode():
            made = run(build(kind, index, cfg, workers=2), requests)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


@pytest.mark.parametrize("kind", BACKENDS)
def test_no_requests_give_no_batches(photographs: Path, kind: str) -> None:
    assert run(build(kind, index_of(photographs), options("bicubic", 64)), []) == []


@pytest.mark.parametrize("name", ["two words.jpg", "müller 猫.jpg", os.fsdecode(b"caf\xe9.jpg")])
@pytest.mark.parametrize("kind", BACKENDS)
def test_any_file_name_can_be_read(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.new("RGB", (70, 70), (90, 90, 90)).save(tmp_path / "train" / "a" / name, format="JPEG")
    index, cfg = index_of(tmp_path), options("bicubic", 64)
    (images,) = run(build(kind, index, cfg), [make_crops(index, cfg, "eval")])
    assert (images == 90).all()


# --- files that cannot be read --------------------------------------------------------------------------------------


def cut_short(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def larger(path: Path) -> None:
    Image.open(path).resize((500, 400)).save(path)


def turned(path: Path) -> None:
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)


def smaller(path: Path) -> None:
    Image.open(path).resize((300, 200)).save(path)


def gone(path: Path) -> None:
    path.unlink()


def text(path: Path) -> None:
    path.write_text("this is text")


def bad_chunk(path: Path) -> None:
    """A damage inside a PNG at which Pillow raises something else than elsewhere."""
    content = bytearray(path.read_bytes())
    start = content.index(b"IDAT", len(content) // 2)
    content[start : start + 4] = b"\0\1\2\3"
    path.write_bytes(content)


def without_end(path: Path) -> None:
    """All pixels are there, the last chunk of the PNG is not; Pillow does not mind."""
    path.write_bytes(path.read_bytes()[:-12])


DAMAGES = [
    *((damage, ".jpg") for damage in (cut_short, larger, turned, smaller, gone, text)),
    *((damage, ".png") for damage in (cut_short, larger, bad_chunk)),
]


def damaged(tmp_path: Path, damage: Callable[[Path], None], suffix: str) -> tuple[ImageIndex, Path]:
    """Six images of which the fourth is damaged after it was indexed."""
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    for i in range(6):
        Image.fromarray(skimage.data.chelsea()).save(folder / f"{i}{suffix}")
    index = index_of(tmp_path)
    damage(folder / f"3{suffix}")
    return index, folder / f"3{suffix}"


def corner_crops(index: ImageIndex, cfg: DataConfig, top: int, left: int) -> Crops:
    """Training crops of 100 x 100 pixels."""
    crops = make_crops(index, cfg, "train")
    crops.box[:] = (top, left, 100, 100)
    return crops


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("damage", "suffix"), DAMAGES)
def test_a_damaged_file_is_named(
    tmp_path: Path, kind: str, mode: str, damage: Callable[[Path], None], suffix: str
) -> None:
    index, file = damaged(tmp_path, damage, suffix)
    cfg = options("bicubic", 64)
    # The lower left corner: cut off in the short file, there in files that are larger than before or turned.
    crops = make_crops(index, cfg, mode) if mode == "eval" else corner_crops(index, cfg, 200, 0)
    assert str(file) in refusal(build(kind, index, cfg, max_batch=2), in_batches(crops, 2))


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("damage", [larger, turned])
def test_a_file_of_another_size_is_named_also_where_the_box_fits(
    tmp_path: Path, kind: str, damage: Callable[[Path], None]
) -> None:
    index, file = damaged(tmp_path, damage, ".jpg")
    cfg = options("bicubic", 64)
    message = refusal(build(kind, index, cfg), [corner_crops(index, cfg, 0, 0)])
    assert f"{file} has changed since the index was written" in message


def test_dali_names_a_file_that_only_it_cannot_read(tmp_path: Path) -> None:
    index, file = damaged(tmp_path, without_end, ".png")
    cfg = options("bicubic", 64)
    assert str(file) in refusal(build("dali", index, cfg), [make_crops(index, cfg, "eval")])


def test_dali_hands_out_no_rows_that_are_missing(tmp_path: Path) -> None:
    """It stops decoding below the box, so of a file cut short it may well hand out what is there, and only that."""
    index, file = damaged(tmp_path, cut_short, ".jpg")
    backend = build("dali", index, options("bicubic", 64))
    refused = 0
    for top in range(0, 201, 20):
        crops = take(corner_crops(index, options("bicubic", 64), top, 0), slice(3, 5))
        crops.flip[:] = False
        try:
            (images,) = run(backend, [crops])
        except DataError as error:
            assert str(file) in str(error)
            refused += 1
        else:
            assert torch.equal(images[0], images[1])
    assert refused > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_before_a_damaged_file_arrive(tmp_path: Path, workers: int) -> None:
    index, _ = damaged(tmp_path, gone, ".jpg")
    cfg = options("bicubic", 64)
    stream = build("torch", index, cfg, workers).batches(iter(in_batches(make_crops(index, cfg, "eval"), 2)))
    assert len(next(stream)) == 2
    with pytest.raises(DataError, match=r"3\.jpg"):
        next(stream)


def test_workers_are_no_copies_of_this_process(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy would hold whatever lock a thread of this process held, and wait for it for ever."""
    index, cfg = index_of(photographs), options("bicubic", 64)
    requests = in_batches(make_crops(index, cfg, "train"), 8)
    expected = run(build("torch", index, cfg, workers=0), requests)
    monkeypatch.setattr("torchvision.transforms.v2.functional.resize", None)
    made = run(build("torch", index, cfg, workers=2), requests)
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


def test_a_process_ends_with_its_workers_still_at_work(photographs: Path) -> None:
    """They outlive a SIGTERM, with which Python would end them, and then wait for ever."""
    code = """
import sys
from pathlib import Path
from tests.test_backends import build, in_batches, index_of, make_crops, options
index, cfg = index_of(Path(sys.argv[1])), options("bicubic", 64)
sys.kept = build("torch", index, cfg, workers=2).batches(iter(in_batches(make_crops(index, cfg, "train"), 2)))
next(sys.kept)
"""
    subprocess.run([sys.executable, "-c", code, photographs], cwd=PROJECT, check=True, timeout=100)


# --- which one ------------------------------------------------------------------------------------------------------


def test_auto_is_dali() -> None:
    assert resolve_backend(DataConfig(name="any")) == "dali"


def test_without_dali_auto_is_torch_and_dali_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name.startswith("nvidia") else find(name))
    assert resolve_backend(DataConfig(name="any")) == "torch"
    with pytest.raises(DataError, match=r"set data\.backend=torch"):
        resolve_backend(DataConfig(name="any", backend="dali"))


def test_the_backend_asked_for_is_taken() -> None:
    assert resolve_backend(DataConfig(name="any", backend="torch")) == "torch"
    assert resolve_backend(DataConfig(name="any", backend="dali")) == "dali"
    assert resolve_backend(DataConfig(name="synthetic", backend="dali")) == "synthetic"


def test_an_unknown_backend_is_refused(photographs: Path) -> None:
    cfg = DataConfig(name="any", backend="ffcv")
    with pytest.raises(DataError, match=r"data\.backend=ffcv is unknown"):
        build(resolve_backend(cfg), index_of(photographs), cfg)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_the_process_that_starts_workers_outlives_signals():
    """In a process that has started no other before."""
    code = """
import re, signal
from multiprocessing import forkserver
from data.backends.torch_backend import OUTLIVED, _clean_start
_clean_start()
status = open(f"/proc/{forkserver._forkserver._forkserver_pid}/status").read()
blocked = int(re.search(r"SigBlk:\\s*(\\w+)", status).group(1), 16)
assert all(blocked >> (number - 1) & 1 for number in OUTLIVED), hex(blocked)
assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()), "signals still blocked here"
"""
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
