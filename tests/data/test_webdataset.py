"""WebDataset tar files: found by their names, read where they lie, and refused in one line."""

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from data import DataConfig, DataError
from data.backends import build_backend
from data.config import AugmentConfig
from data.dataset import open_split
from data.geometry import BatchGeometry
from data.index.headers import read_header_at
from data.loader import Loader
from data.plan import EvalPlan, TrainPlan
from data.sources import webdataset
from data.sources.folder import FolderSource
from data.sources.webdataset import WebDatasetSource
from tests.archives import write_tars
from tests.indexing import refused, touch_later
from tests.opening import open_at, source_of
from tests.runs import ALL_AUGMENTATION, SMALL, checkpoint, same_tensors, train_here

CPU = torch.device("cpu")
Sample = dict[str, bytes | str]


def image(width: int = 8, height: int = 6, kind: str = "JPEG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 60)).save(content, kind)
    return content.getvalue()


def write(tar: Path, **samples: Sample) -> Path:
    """A tar file with the members of each sample, in their order."""
    tar.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(tar, "w") as file:
        for key, members in samples.items():
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                encoded = content.encode() if isinstance(content, str) else content
                info.size = len(encoded)
                file.addfile(info, io.BytesIO(encoded))
    return tar


def sample(label: int | str, width: int = 8) -> Sample:
    return {"jpg": image(width), "cls": str(label), "json": "{}"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three tar files with two images each, in timm's form."""
    for number in range(3):
        samples = {f"s{number}{i}": sample((2 * number + i) % 3, width=10 * number + i + 1) for i in range(2)}
        write(tmp_path / "set" / f"imagenet1k-train-{number:04}.tar", **samples)
    write(tmp_path / "set" / "imagenet1k-validation-00.tar", v=sample(1))
    return tmp_path / "set"


# --- what is read ---------------------------------------------------------------------------------------------------


def test_timm_s_names_are_found(root: Path) -> None:
    train, val = source_of(root), source_of(root, "val")
    assert isinstance(train, WebDatasetSource) and isinstance(val, WebDatasetSource)
    assert (train.layout, len(train), len(val)) == ("3 WebDataset tar files", 6, 1)
    assert train.name(0) == f"{root}/imagenet1k-train-0000.tar: 0/s00.jpg"
    assert train.index.widths.tolist() == [1, 12, 2, 21, 11, 22]


def test_images_come_in_the_order_of_classes_and_keys_whatever_the_tars(numbered: Path, tmp_path: Path) -> None:
    few, many = (source_of(write_tars(numbered, tmp_path / str(n), each=n)) for n in (7, 30))
    assert few.layout != many.layout
    assert few.index.fingerprint() == many.index.fingerprint() == source_of(numbered).index.fingerprint()


def test_class_numbers_are_sorted_by_value_and_are_the_labels(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a-0.tar", x=sample(10), y=sample(2), z=sample("003"))
    images = open_split(DataConfig(name="any", root=str(tmp_path)), "train", 11)
    assert images.index.classes == ["2", "3", "10"]
    assert images.labels.tolist() == [2, 3, 10]


def test_other_extensions_are_options(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a.tar", x={"input.png": image(kind="PNG"), "name.txt": "cat\n", "jpg": image(5)})
    source = source_of(tmp_path, image_ext="input.png,jpg", label_ext="name.txt")
    assert (list(source.index.paths), source.index.classes) == (["cat/x.input.png"], ["cat"])
    assert list(source_of(tmp_path, image_ext="jpg", label_ext="name.txt").index.paths) == ["cat/x.jpg"]


def test_a_long_header_is_read_whole(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (31, 7)).save(content, "JPEG", icc_profile=bytes(200_000))
    file = tmp_path / "two.bin"
    file.write_bytes(b"before" + content.getvalue() + b"after")
    with open(file, "rb") as opened:
        header = read_header_at(opened.fileno(), 6, len(content.getvalue()))
    assert header == (7, 31, False, len(content.getvalue()), 6)


@pytest.mark.slow
def test_a_run_from_tars_that_is_resumed_ends_as_one_from_the_folder(small_images: Path, here: Path) -> None:
    write_tars(small_images, here / "tars", each=50)
    common = (*SMALL, *ALL_AUGMENTATION)
    train_here(*common, f"data.root={small_images}", "name=folder")
    train_here(*common, "data.root=tars", "name=tars", "max_steps=13")
    assert checkpoint(here / "outputs/tars")["step_in_epoch"] == 3
    train_here(*common, "data.root=tars", "name=tars")
    folder, tars = (checkpoint(here / "outputs" / name) for name in ("folder", "tars"))
    assert folder["step"] == tars["step"] == 20
    assert same_tensors(folder["model"], tars["model"])


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
    write(root / "imagenet1k-train-0003.tar", more=sample(0))
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

    def reading(tar: Path, wanted: webdataset.Members) -> webdataset.Rows:
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


# --- what is refused ------------------------------------------------------------------------------------------------


def without_one(root: Path) -> None:
    (root / "imagenet1k-train-0001.tar").unlink()


def without_the_last_of_a_list(root: Path) -> None:
    names = [f"imagenet1k-train-{number:04}.tar" for number in range(4)]
    (root / "_info.json").write_text(json.dumps({"splits": {"train": {"filenames": names}}}))


def with_a_broken_list(root: Path) -> None:
    (root / "_info.json").write_text("{")


def half_downloaded(root: Path) -> None:
    (root / "imagenet1k-train-0003.tar.incomplete").touch()


def two_sets(root: Path) -> None:
    write(root / "mine-train-0000.tar", x=sample(1))


def one_without_number(root: Path) -> None:
    write(root / "train.tar", x=sample(1))


def a_number_twice(root: Path) -> None:
    write(root / "imagenet1k-train-1.tar", x=sample(1))


def cut_short(root: Path) -> None:
    tar = root / "imagenet1k-train-0002.tar"
    tar.write_bytes(tar.read_bytes()[:1000])


def no_tar(root: Path) -> None:
    (root / "imagenet1k-train-0002.tar").write_text("<html>not found</html>")


def without_labels(root: Path) -> None:
    write(root / "imagenet1k-train-0002.tar", x={"jpg": image()})


def without_a_label(root: Path) -> None:
    write(root / "imagenet1k-train-0002.tar", x={"jpg": image()}, y=sample(1))


def with_a_negative_label(root: Path) -> None:
    write(root / "imagenet1k-train-0002.tar", x=sample(-1))


def without_an_image(root: Path) -> None:
    write(root / "imagenet1k-train-0002.tar", x={"cls": "1"}, y=sample(1))


def with_a_file_that_is_no_image(root: Path) -> None:
    write(root / "imagenet1k-train-0002.tar", x={"jpg": b"no image", "cls": "1"})


def a_key_twice_in_one(root: Path) -> None:
    with tarfile.open(root / "imagenet1k-train-0002.tar", "a") as file:
        file.addfile(tarfile.TarInfo("s20.jpg"), io.BytesIO())


def a_copy(root: Path) -> None:
    (root / "imagenet1k-train-0003.tar").write_bytes((root / "imagenet1k-train-0002.tar").read_bytes())


def class_folders_beside(root: Path) -> None:
    (root / "train" / "cat").mkdir(parents=True)
    for tar in root.glob("imagenet1k-train-*"):
        tar.rename(root / "train" / tar.name)


REFUSALS = {
    without_one: r"set: number 1 of the 3 \.tar files of train is missing: get it$",
    without_the_last_of_a_list: r"1 of the 4 files of .*set are missing, such as imagenet1k-train-0003\.tar: get them$",
    with_a_broken_list: r"_info\.json is no list of tar files \(.*\): get it again, or remove it$",
    half_downloaded: r"imagenet1k-train-0003\.tar\.incomplete is half downloaded: finish the download",
    two_sets: r"set holds two sets of \.tar files, imagenet1k-train-\* and mine-train-\*: keep one of them there$",
    one_without_number: r"train\.tar has no number, but there are other \.tar files of train: keep one set$",
    a_number_twice: r"train-0001\.tar and imagenet1k-train-1\.tar have the same number: keep one of them$",
    cut_short: r"train-0002\.tar is damaged or cut short \(.*\): copy or download it again$",
    no_tar: r"train-0002\.tar is damaged or cut short \(.*\): copy or download it again$",
    without_labels: r"train-0002\.tar holds no KEY\.cls: set data\.label_ext to the extension of its labels$",
    without_a_label: r"train-0002\.tar: x has no label that can be read \(\.cls\): repair it",
    with_a_negative_label: r"train-0002\.tar: x has no label that can be read \(\.cls\): repair it",
    without_an_image: r"train-0002\.tar: x has no image \(\.jpg, .*; data\.image_ext may name others\): repair it",
    with_a_file_that_is_no_image: r"train-0002\.tar: x\.jpg is not a JPEG or PNG image: repair it",
    a_key_twice_in_one: r"train-0002\.tar holds s20\.jpg twice: write it again, each sample with a key of its own$",
    a_copy: r"two samples of .*set are named 1/s20\.jpg, in .*-0002\.tar and .*-0003\.tar: remove one copy$",
    class_folders_beside: r"set holds the train images in two forms, WebDataset tar files and class folders: keep one",
}


@pytest.mark.parametrize(("damage", "message"), REFUSALS.items(), ids=[damage.__name__ for damage in REFUSALS])
def test_it_is_refused_in_one_line(root: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(root)
    assert re.search(message, found := refused(root)), found


def test_a_label_outside_the_classes_is_named(root: Path) -> None:
    with pytest.raises(DataError, match="class '2' has label 2, but the model has 2 classes"):
        open_split(DataConfig(name="any", root=str(root)), "train", 2)


def test_a_tar_that_disappears_is_named_with_its_image(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.sources.source.PAUSES", ())
    source = source_of(root)
    (root / "imagenet1k-train-0000.tar").unlink()
    cfg = DataConfig(name="any", root=str(root), crop=8, resize=8)
    backend = build_backend("torch", source, cfg, CPU, 0, 4)
    with pytest.raises(
        DataError, match=r"train-0000\.tar: 0/s00\.jpg cannot be decoded \(.*\): copy the tar file again"
    ):
        list(backend.batches(iter([EvalPlan(source.index, cfg).crops(range(2))])))


@pytest.mark.parametrize(
    ("file", "command"),
    [("ILSVRC2012_img_train.tar", "--tars"), ("data/train-00000-of-00002.parquet", "--parquet")],
)
def test_what_must_be_prepared_first_is_said(tmp_path: Path, file: str, command: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    assert f"run python scripts/prepare_imagenet.py {command} {tmp_path} --to NEW, then" in refused(tmp_path)


# --- archives that are not looked at --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["val.tar", "imagenet-val.tar", "val.zip", "val-0000.tar", "val/n01440764.tar"])
def test_archives_beside_class_folders_change_nothing(tmp_path: Path, name: str) -> None:
    """The archives from which they were unpacked often stay there."""
    (tmp_path / "val" / "cat").mkdir(parents=True)
    (tmp_path / "val" / "cat" / "1.jpg").write_bytes(image())
    (tmp_path / name).write_bytes(b"any")
    assert isinstance(source_of(tmp_path, "val"), FolderSource)


def test_class_tars_alone_must_be_prepared(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "n01440764.tar").touch()
    assert "train has no class folders: it must hold <class>/<image>" in refused(tmp_path)


def test_a_class_whose_images_are_all_bad_is_not_forgotten(root: Path) -> None:
    write(root / "imagenet1k-train-0003.tar", x={"jpg": b"no image", "cls": "7"})
    assert "7 holds no images" in refused(root, on_bad_image="skip")
