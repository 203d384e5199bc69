"""Every backend names a file that it cannot read, whatever is wrong with it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import skimage.data
import torch
from PIL import Image

from data.config import DataConfig
from data.errors import DataError
from data.planning.crops import Crops
from data.sources import EncodedSource
from tests.crop_requests import (
    BACKENDS,
    GPU,
    MODES,
    build,
    images_of,
    in_batches,
    make_crops,
    options,
    refusal,
    run,
    take,
    write_cmyk,
)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.sources.source.PAUSES", ())


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
    """Damage inside a PNG for which Pillow raises another exception than usual."""
    content = bytearray(path.read_bytes())
    start = content.index(b"IDAT", len(content) // 2)
    content[start : start + 4] = b"\0\1\2\3"
    path.write_bytes(content)


def without_end(path: Path) -> None:
    """All pixels are there, but the last chunk of the PNG is missing; Pillow accepts this."""
    path.write_bytes(path.read_bytes()[:-12])


DAMAGES = [
    *((damage, ".jpg") for damage in (cut_short, larger, turned, smaller, gone, text)),
    *((damage, ".png") for damage in (cut_short, larger, bad_chunk)),
]


def damaged(tmp_path: Path, damage: Callable[[Path], None], suffix: str) -> tuple[EncodedSource, Path]:
    """Six images; the fourth is damaged after indexing."""
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    for i in range(6):
        Image.fromarray(skimage.data.chelsea()).save(folder / f"{i}{suffix}")
    source = images_of(tmp_path)
    damage(folder / f"3{suffix}")
    return source, folder / f"3{suffix}"


def corner_crops(source: EncodedSource, cfg: DataConfig, top: int, left: int) -> Crops:
    """Training crops of 100 x 100 pixels."""
    crops = make_crops(source, cfg, "train")
    crops.box[:] = (top, left, 100, 100)
    return crops


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("damage", "suffix"), DAMAGES)
def test_a_damaged_file_is_named(
    tmp_path: Path, kind: str, mode: str, damage: Callable[[Path], None], suffix: str
) -> None:
    source, file = damaged(tmp_path, damage, suffix)
    cfg = options("bicubic", 64)
    # The lower left corner: missing in the file cut short, but present in a larger or a turned file.
    crops = make_crops(source, cfg, mode) if mode == "eval" else corner_crops(source, cfg, 200, 0)
    assert str(file) in refusal(build(kind, source, cfg, max_batch=2), in_batches(crops, 2))


@pytest.mark.gpu
@pytest.mark.parametrize(("damage", "suffix"), DAMAGES)
def test_a_damaged_file_is_named_by_a_gpu_too(tmp_path: Path, damage: Callable[[Path], None], suffix: str) -> None:
    source, file = damaged(tmp_path, damage, suffix)
    cfg = options("bicubic", 64)
    requests = in_batches(corner_crops(source, cfg, 200, 0), 2)
    assert str(file) in refusal(build("dali", source, cfg, max_batch=2, device=GPU), requests)


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("damage", [larger, turned])
def test_a_file_of_another_size_is_named_also_where_the_box_fits(
    tmp_path: Path, kind: str, damage: Callable[[Path], None]
) -> None:
    source, file = damaged(tmp_path, damage, ".jpg")
    cfg = options("bicubic", 64)
    message = refusal(build(kind, source, cfg), [corner_crops(source, cfg, 0, 0)])
    assert f"{file} has changed since the index was written" in message


def test_dali_names_a_file_that_only_it_cannot_read(tmp_path: Path) -> None:
    source, file = damaged(tmp_path, without_end, ".png")
    cfg = options("bicubic", 64)
    assert str(file) in refusal(build("dali", source, cfg), [make_crops(source, cfg, "eval")])


def test_dali_hands_out_no_rows_that_are_missing(tmp_path: Path) -> None:
    """DALI decodes only down to the box. It may return rows of a file cut short, but only rows that are in the file."""
    source, file = damaged(tmp_path, cut_short, ".jpg")
    backend = build("dali", source, options("bicubic", 64))
    refused = 0
    for top in range(0, 201, 20):
        crops = take(corner_crops(source, options("bicubic", 64), top, 0), slice(3, 5))
        crops.flip[:] = False
        try:
            (images,) = run(backend, [crops])
        except DataError as error:
            assert str(file) in str(error)
            refused += 1
        else:
            assert torch.equal(images[0], images[1])
    assert refused > 0


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_before_a_damaged_file_arrive(tmp_path: Path, workers: int) -> None:
    source, _ = damaged(tmp_path, gone, ".jpg")
    cfg = options("bicubic", 64)
    stream = build("torch", source, cfg, workers).batches(iter(in_batches(make_crops(source, cfg, "eval"), 2)))
    assert len(next(stream)) == 2
    with pytest.raises(DataError, match=r"3\.jpg"):
        next(stream)


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_damaged_cmyk_file_is_named(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    write_cmyk(folder, Image.fromarray(skimage.data.chelsea()))
    source, cfg = images_of(tmp_path), options("bicubic", 64)
    cut_short(folder / "ycck.jpg")
    assert "a/ycck.jpg cannot be decoded" in refusal(build(kind, source, cfg), [make_crops(source, cfg, "eval")])
