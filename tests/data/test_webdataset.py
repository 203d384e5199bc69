"""WebDataset tar files: found by their names, read where they lie, and refused in one line."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from data import DataConfig
from data.backends import build_backend
from data.config import AugmentConfig
from data.index.headers import read_header_at
from data.loader import Loader
from data.planning.geometry import BatchGeometry
from data.planning.plan import TrainPlan
from data.sets.dataset import open_split
from data.sources import webdataset
from data.sources.folder import FolderSource
from data.sources.webdataset import WebDatasetSource
from tests.archives import sample, tiny_image, write_tar, write_tars
from tests.indexing import refused, touch_later
from tests.opening import open_at, source_of

CPU = torch.device("cpu")


@pytest.fixture
def root(timm_tars: Path) -> Path:
    return timm_tars


# --- what is read ---------------------------------------------------------------------------------------------------


def test_timm_s_names_are_found(root: Path) -> None:
    train, val = source_of(root), source_of(root, "val")
    assert isinstance(train, WebDatasetSource) and isinstance(val, WebDatasetSource)
    assert (train.layout, len(train), len(val)) == ("3 WebDataset tar files", 6, 1)
    assert train.name(0) == f"{root}/imagenet1k-train-0000.tar: 0/s00.jpg"
    assert train.index.widths.tolist() == [1, 12, 2, 21, 11, 22]


@pytest.mark.parametrize("numbers", [(0, 1), (1, 2)])
def test_sets_are_counted_from_zero_or_one(tmp_path: Path, numbers: tuple[int, int]) -> None:
    for number in numbers:
        write_tar(tmp_path / f"x-train-{number:05}-of-00002.tar", **{f"s{number}": sample(number)})
    assert list(source_of(tmp_path).index.paths) == [f"{number}/s{number}.jpg" for number in numbers]


def test_images_come_in_the_order_of_classes_and_keys_whatever_the_tars(numbered: Path, tmp_path: Path) -> None:
    few, many = (source_of(write_tars(numbered, tmp_path / str(n), each=n)) for n in (7, 30))
    assert few.layout != many.layout
    assert few.index.fingerprint() == many.index.fingerprint() == source_of(numbered).index.fingerprint()


def test_images_are_read_from_their_own_tars_whatever_the_order(tmp_path: Path) -> None:
    cmyk = io.BytesIO()
    Image.new("CMYK", (13, 6)).save(cmyk, "JPEG")
    write_tar(tmp_path / "train" / "a-0.tar", x=sample(1, 11), y=sample(0, 12))
    write_tar(tmp_path / "train" / "a-1.tar", z={"jpg": cmyk.getvalue(), "cls": "0"}, w=sample(1, 14))
    source = source_of(tmp_path)
    images = [Image.open(io.BytesIO(source.read(i))) for i in range(4)]
    assert list(source.index.paths) == ["0/y.jpg", "0/z.jpg", "1/w.jpg", "1/x.jpg"]
    assert [image.width for image in images] == source.index.widths.tolist() == [12, 13, 14, 11]
    assert [image.mode for image in images] == ["RGB", "CMYK", "RGB", "RGB"]
    assert source.index.odd_colours == {1}


def test_class_numbers_are_sorted_by_value_and_are_the_labels(tmp_path: Path) -> None:
    write_tar(tmp_path / "train" / "a-0.tar", x=sample(10), y=sample(2), z=sample("003"))
    images = open_split(DataConfig(name="any", root=str(tmp_path)), "train", 11)
    assert images.index.classes == ["2", "3", "10"]
    assert images.labels.tolist() == [2, 3, 10]


def test_other_extensions_are_options(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "train" / "a.tar", x={"input.png": tiny_image(kind="PNG"), "name.txt": "cat\n", "jpg": tiny_image(5)}
    )
    source = source_of(tmp_path, image_ext="input.png,jpg", label_ext="name.txt")
    assert (list(source.index.paths), source.index.classes) == (["cat/x.input.png"], ["cat"])
    for preferred in ("jpg", "jpg,input.png"):
        assert list(source_of(tmp_path, image_ext=preferred, label_ext="name.txt").index.paths) == ["cat/x.jpg"]


def test_extensions_may_be_in_capitals(tmp_path: Path) -> None:
    write_tar(tmp_path / "train" / "a.tar", x={"JPG": tiny_image(), "CLS": "7"}, y={"jpg": tiny_image(), "cls": "7"})
    assert list(source_of(tmp_path, image_ext="JPG").index.paths) == ["7/x.jpg", "7/y.jpg"]


def test_a_long_header_is_read_whole(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (31, 7)).save(content, "JPEG", icc_profile=bytes(200_000))
    file = tmp_path / "two.bin"
    file.write_bytes(b"before" + content.getvalue() + b"after")
    with open(file, "rb") as opened:
        header = read_header_at(opened.fileno(), 6, len(content.getvalue()))
    assert header == (7, 31, False, len(content.getvalue()), 6)


@pytest.mark.parametrize("kind", ["torch", "dali"])
def test_a_batch_in_the_middle_of_an_epoch_is_the_folder_s(numbered: Path, tmp_path: Path, kind: str) -> None:
    def batch(root: Path) -> torch.Tensor:
        cfg = DataConfig(name="any", root=str(root), crop=48, resize=54)
        images = open_split(cfg, "train")
        plan = TrainPlan(images.index, 5, cfg, AugmentConfig(mix_group=4), BatchGeometry(8, 4))
        backend = build_backend(kind, images.source, cfg, CPU, 0, 8)
        (made,) = Loader(backend, images.labels, CPU).train(plan, 5, 6)
        return made.images

    assert torch.equal(batch(write_tars(numbered, tmp_path / "set")), batch(numbered))


# --- the index ------------------------------------------------------------------------------------------------------


def test_a_changed_tar_file_is_indexed_again(root: Path) -> None:
    source_of(root)
    assert open_at(root, build=False) is not None
    touch_later(root / "imagenet1k-train-0001.tar")
    assert open_at(root, build=False) is None
    write_tar(root / "imagenet1k-train-0003.tar", more=sample(0))
    assert len(source_of(root)) == 7


def test_other_extensions_need_another_index(root: Path) -> None:
    source_of(root)
    assert open_at(root, build=False, label_ext="json") is None


def test_an_interrupted_index_goes_on_where_it_stopped(
    numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.index.pieces.LEAST", 1)
    root, read = write_tars(numbered, tmp_path / "set"), []
    whole = source_of(write_tars(numbered, tmp_path / "other")).index.fingerprint()
    rows = webdataset._rows

    def reading(tar: Path, wanted: webdataset.Extensions) -> webdataset.Rows:
        if tar.name == "train-0003.tar" and not read[3:]:
            raise KeyboardInterrupt
        read.append(tar.name)
        return rows(tar, wanted)

    monkeypatch.setattr(webdataset, "_rows", reading)
    monkeypatch.setattr(webdataset, "THREADS", 1)
    with pytest.raises(KeyboardInterrupt):
        source_of(root)
    assert read[:3] == [f"train-000{number}.tar" for number in range(3)] and "train-0003.tar" not in read
    assert source_of(root).index.fingerprint() == whole
    assert "train-0003.tar" in read and len(set(read)) == len(read)
    assert not list(root.glob(".*.pieces"))


# --- archives that are not looked at --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["val.tar", "imagenet-val.tar", "val.zip", "val-0000.tar", "val/n01440764.tar"])
def test_archives_beside_class_folders_change_nothing(tmp_path: Path, name: str) -> None:
    """The archives from which they were unpacked often stay there."""
    (tmp_path / "val" / "cat").mkdir(parents=True)
    (tmp_path / "val" / "cat" / "1.jpg").write_bytes(tiny_image())
    (tmp_path / name).write_bytes(b"any")
    assert isinstance(source_of(tmp_path, "val"), FolderSource)


def test_class_tars_alone_must_be_prepared(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "n01440764.tar").touch()
    assert "train has no class folders: it must hold <class>/<image>" in refused(tmp_path)


def test_a_class_whose_images_are_all_bad_is_not_forgotten(root: Path) -> None:
    write_tar(root / "imagenet1k-train-0003.tar", x={"jpg": b"no image", "cls": "7"})
    assert "7 holds no images" in refused(root, on_bad_image="skip")
