"""WebDataset tar files that are incomplete, damaged or mixed with others: one line each."""

import gzip
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data import DataConfig, DataError
from data.backends import build_backend
from data.planning.plan import EvalPlan
from data.sets.dataset import open_split
from tests.archives import sample, tiny_image, write_tar
from tests.indexing import refused
from tests.opening import source_of

CPU = torch.device("cpu")


@pytest.fixture
def root(timm_tars: Path) -> Path:
    return timm_tars


def without_one(root: Path) -> None:
    (root / "imagenet1k-train-0001.tar").unlink()


def without_the_last_of_a_list(root: Path) -> None:
    names = [f"imagenet1k-train-{number:04}.tar" for number in range(4)]
    (root / "_info.json").write_text(json.dumps({"splits": {"train": {"filenames": names}}}))


def with_a_broken_list(root: Path) -> None:
    (root / "_info.json").write_text("{")


def with_a_nested_list(root: Path) -> None:
    (root / "_info.json").write_text("[" * 100_000)


def half_downloaded(root: Path) -> None:
    (root / "imagenet1k-train-0003.tar.incomplete").touch()


def two_sets(root: Path) -> None:
    write_tar(root / "mine-train-0000.tar", x=sample(1))


def one_without_number(root: Path) -> None:
    write_tar(root / "train.tar", x=sample(1))


def a_number_twice(root: Path) -> None:
    write_tar(root / "imagenet1k-train-1.tar", x=sample(1))


def a_number_with_a_count(root: Path) -> None:
    tar = root / "imagenet1k-train-0001.tar"
    tar.with_name("imagenet1k-train-0001-of-0003.tar").write_bytes(tar.read_bytes())


def cut_short(root: Path) -> None:
    tar = root / "imagenet1k-train-0002.tar"
    tar.write_bytes(tar.read_bytes()[:1000])


def header_with_size(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The header of a member that says any size; GNU's form for sizes that need more than eleven octal digits."""
    info = tarfile.TarInfo("y.jpg")
    info.type = kind
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (size % 2**96 | 2**95).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def with_a_long_name_of_a_terabyte(root: Path) -> None:
    tar = root / "imagenet1k-train-0002.tar"
    tar.write_bytes(header_with_size(2**40, tarfile.GNUTYPE_LONGNAME) + tar.read_bytes())


def with_attributes_of_all_bytes(root: Path) -> None:
    tar = root / "imagenet1k-train-0002.tar"
    tar.write_bytes(header_with_size(2**70, tarfile.XHDTYPE) + tar.read_bytes())


def with_headers_of_headers(root: Path) -> None:
    tar = root / "imagenet1k-train-0002.tar"
    tar.write_bytes((header_with_size(2, tarfile.GNUTYPE_LONGNAME) + b"y".ljust(512, b"\0")) * 2000 + tar.read_bytes())


def with_a_member_of_negative_size(root: Path) -> None:
    """The next member would be the same one again, and tarfile of Python 3.11.7 reads it for ever (CVE-2025-8194)."""
    tar = write_tar(root / "imagenet1k-train-0002.tar", x=sample(1))
    header = header_with_size(-512)
    with tarfile.open(tar) as file:
        end = file.getmembers()[-1].offset_data + tarfile.BLOCKSIZE
    tar.write_bytes(tar.read_bytes()[:end] + header + bytes(10_240))


def compressed(root: Path) -> None:
    file = root / "imagenet1k-train-0002.tar"
    file.write_bytes(gzip.compress(file.read_bytes()))


def no_tar(root: Path) -> None:
    (root / "imagenet1k-train-0002.tar").write_text("<html>not found</html>")


def without_labels(root: Path) -> None:
    write_tar(root / "imagenet1k-train-0002.tar", x={"jpg": tiny_image()})


def without_a_label(root: Path) -> None:
    write_tar(root / "imagenet1k-train-0002.tar", x={"jpg": tiny_image()}, y=sample(1))


def with_a_negative_label(root: Path) -> None:
    write_tar(root / "imagenet1k-train-0002.tar", x=sample(-1))


def with_a_fraction_as_label(root: Path) -> None:
    write_tar(root / "imagenet1k-train-0002.tar", x={"jpg": tiny_image(), "cls": "2.0"})


def without_an_image(root: Path) -> None:
    write_tar(root / "imagenet1k-train-0002.tar", x={"cls": "1"}, y=sample(1))


def with_a_file_that_is_no_image(root: Path) -> None:
    write_tar(root / "imagenet1k-train-0002.tar", x={"jpg": b"no image", "cls": "1"})


def with_a_sparse_image(root: Path) -> None:
    """A file with a hole at its end, as GNU tar stores it with ``--sparse``: its bytes are not all in the archive."""
    tar, content = write_tar(root / "imagenet1k-train-0002.tar", y=sample(1), x={"cls": "1"}), tiny_image()
    with tarfile.open(tar, "a") as file:
        info = tarfile.TarInfo("x.jpg")
        info.size = len(content)
        info.pax_headers = {"GNU.sparse.map": f"0,{len(content)}", "GNU.sparse.size": f"{len(content) + 9}"}
        file.addfile(info, io.BytesIO(content))


def a_key_twice_in_one(root: Path) -> None:
    with tarfile.open(root / "imagenet1k-train-0002.tar", "a") as file:
        file.addfile(tarfile.TarInfo("s20.jpg"), io.BytesIO())


def a_copy(root: Path) -> None:
    (root / "imagenet1k-train-0003.tar").write_bytes((root / "imagenet1k-train-0002.tar").read_bytes())


def with_class_folders(root: Path) -> None:
    image = {"jpg": tiny_image()}
    write_tar(root / "imagenet1k-train-0002.tar", **{"train/cat/1": image, "train/dog/b.2": image})


def class_folders_beside(root: Path) -> None:
    (root / "train" / "cat").mkdir(parents=True)
    for tar in root.glob("imagenet1k-train-*"):
        tar.rename(root / "train" / tar.name)


REFUSALS = {
    without_one: r"set: number 1 of the 3 \.tar files of train is missing: get it$",
    without_the_last_of_a_list: r"1 of the 4 files of .*set are missing, such as imagenet1k-train-0003\.tar: get them$",
    with_a_broken_list: r"_info\.json is no list of tar files \(.*\): get it again, or remove it$",
    with_a_nested_list: r"_info\.json is no list of tar files \(.*\): get it again, or remove it$",
    half_downloaded: r"imagenet1k-train-0003\.tar\.incomplete is half downloaded: finish the download",
    two_sets: r"set holds two sets of \.tar files, imagenet1k-train-\* and mine-train-\*: keep one of them there$",
    one_without_number: r"train\.tar has no number, but there are other \.tar files of train: keep one set$",
    a_number_twice: r"train-0001\.tar and imagenet1k-train-1\.tar have the same number: keep one of them$",
    a_number_with_a_count: r"train-0001\.tar and imagenet1k-train-0001-of-0003\.tar have the same number: keep one",
    cut_short: r"train-0002\.tar is damaged or cut short \(.*\): copy or download it again$",
    with_a_long_name_of_a_terabyte: r"train-0002\.tar is damaged or cut short \(a header has more than \d+ bytes\)",
    with_attributes_of_all_bytes: r"train-0002\.tar is damaged or cut short \(a header has more than \d+ bytes\): copy",
    with_headers_of_headers: r"train-0002\.tar is damaged or cut short \(maximum recursion depth exceeded.*\): copy",
    with_a_member_of_negative_size: r"train-0002\.tar is damaged or cut short \(a member has a negative size\): copy",
    compressed: r"train-0002\.tar is compressed: unpack it with gzip, and name the result \.tar$",
    no_tar: r"train-0002\.tar is damaged or cut short \(.*\): copy or download it again$",
    without_labels: r"train-0002\.tar holds no KEY\.cls: set data\.label_ext to the extension of its labels$",
    with_class_folders: r"train-0002\.tar holds folders of images and no labels \(KEY\.cls\): unpack it",
    without_a_label: r"train-0002\.tar: x has no label that can be read \(\.cls: a number or a name as text\)",
    with_a_negative_label: r"train-0002\.tar: x has no label that can be read \(\.cls: a number or a name as text\)",
    with_a_fraction_as_label: r"train-0002\.tar: x has no label that can be read \(\.cls: a number or a name as text\)",
    without_an_image: r"train-0002\.tar: x has no image \(\.jpg, .*; data\.image_ext may name others\): repair it",
    with_a_sparse_image: r"train-0002\.tar: x has no image \(\.jpg, .*; data\.image_ext may name others\): repair it",
    with_a_file_that_is_no_image: r"train-0002\.tar: x\.jpg is not a JPEG or PNG image: repair it",
    a_key_twice_in_one: r"train-0002\.tar holds s20\.jpg twice: write it again, each sample with a key of its own$",
    a_copy: r"two samples of .*set are named 1/s20\.jpg, in .*-0002\.tar and .*-0003\.tar: remove one copy$",
    class_folders_beside: r"set holds the train images in two forms, WebDataset tar files and class folders: keep one",
}


@pytest.mark.parametrize(("damage", "message"), REFUSALS.items(), ids=[damage.__name__ for damage in REFUSALS])
def test_it_is_refused_in_one_line(root: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(root)
    assert re.search(message, found := refused(root)), found


def test_a_list_may_name_the_split_as_the_files_do(root: Path) -> None:
    names = [f"imagenet1k-validation-{number:02}.tar" for number in range(2)]
    (root / "_info.json").write_text(json.dumps({"splits": {"validation": {"filenames": names}}}))
    assert refused(root, "val").endswith(f"1 of the 2 files of {root} are missing, such as {names[1]}: get them")


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
