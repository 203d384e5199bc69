"""One zip file for a split: with class folders or a map, stored or compressed, and refused in one line."""

import re
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data import DataConfig
from data.sets.dataset import open_split
from data.sources.zip_file import ZipSource
from tests.archives import images_in, tiny_image, write_zips
from tests.indexing import refused, touch_later
from tests.opening import open_at, source_of


@pytest.fixture
def root(photographs: Path, tmp_path: Path) -> Path:
    return write_zips(photographs, tmp_path / "set")


def with_map(images: Path, to: Path, before: str = "") -> Path:
    """Flat zip files with a map for each, as the authors of Swin describe them."""
    to.mkdir()
    for split in ("train", "val"):
        classes = sorted({path.parent.name for path in images_in(images / split)})
        lines = []
        with zipfile.ZipFile(to / f"{split}.zip", "w") as archive:
            for path in reversed(images_in(images / split)):
                archive.write(path, path.name)
                lines.append(f"{before}{path.name}\t{classes.index(path.parent.name)}\n")
        (to / f"{split}_map.txt").write_text("".join(lines))
    return to


# --- what is read ---------------------------------------------------------------------------------------------------


def test_it_is_the_folder_s_index(photographs: Path, root: Path) -> None:
    source, folder = source_of(root), source_of(photographs)
    assert isinstance(source, ZipSource)
    assert source.layout == "a zip file"
    assert source.index.fingerprint() == folder.index.fingerprint()
    assert source.name(0) == f"{root}/train.zip: {source.index.paths[0]}"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_folder_of_the_split_s_name_in_it_is_no_class(photographs: Path, tmp_path: Path, method: int) -> None:
    write_zips(photographs, tmp_path / "set", method, "train/")
    source, folder = source_of(tmp_path / "set"), source_of(photographs)
    assert source.index.fingerprint() == folder.index.fingerprint()
    assert [source.read(i) for i in range(len(source))] == [folder.read(i) for i in range(len(folder))]


def test_one_zip_file_may_hold_all_splits(photographs: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in images_in(photographs):
            archive.write(path, path.relative_to(photographs))
    for split in ("train", "val"):
        assert (
            source_of(tmp_path / "all.zip", split).index.fingerprint()
            == source_of(photographs, split).index.fingerprint()
        )


@pytest.mark.parametrize("before", ["", "./", "/"])
def test_a_map_gives_class_numbers_in_the_folder_s_order(before: str, numbered: Path, tmp_path: Path) -> None:
    cfg = DataConfig(name="any", root=str(with_map(numbered, tmp_path / "set", before)))
    mapped, folder = open_split(cfg, "train"), open_split(DataConfig(name="any", root=str(numbered)), "train")
    assert np.array_equal(mapped.labels, folder.labels)
    assert np.array_equal(mapped.index.lengths, folder.index.lengths)
    assert len(open_split(cfg, "val")) == len(source_of(numbered, "val"))


def test_a_changed_zip_file_or_map_is_indexed_again(numbered: Path, tmp_path: Path) -> None:
    root = with_map(numbered, tmp_path / "set")
    for name in ("train.zip", "train_map.txt"):
        source_of(root)
        assert open_at(root, build=False) is not None
        touch_later(root / name)
        assert open_at(root, build=False) is None
    (root / "train_map.txt").write_text((root / "train_map.txt").read_text().split("\n", 1)[0])
    assert len(source_of(root)) == 1


# --- what is refused ------------------------------------------------------------------------------------------------


def add(root: Path, name: str, content: bytes = b"no image", method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(root / "train.zip", "a", method) as archive:
        archive.writestr(name, content)


def cut_short(root: Path) -> None:
    (root / "train.zip").write_bytes((root / "train.zip").read_bytes()[:-100])


def damaged_inside(root: Path) -> None:
    content = bytearray((root / "train.zip").read_bytes())
    content[:4] = b"none"
    (root / "train.zip").write_bytes(content)


def no_class_folder(root: Path) -> None:
    add(root, "alone.jpg")


def no_image(root: Path) -> None:
    add(root, "a/odd.jpg")


def other_method(root: Path) -> None:
    add(root, "a/odd.jpg", method=zipfile.ZIP_BZIP2)


def larger_than_any_image(root: Path) -> None:
    """A gigabyte of zeros after an image has a megabyte in a zip file."""
    with (
        zipfile.ZipFile(root / "train.zip", "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a/odd.jpg", "w", force_zip64=True) as file,
    ):
        file.write(tiny_image())
        for _ in range(2**10 + 1):
            file.write(bytes(2**20))


def larger_than_it_says(root: Path) -> None:
    add(root, "a/odd.jpg", tiny_image() + bytes(2**20), zipfile.ZIP_DEFLATED)
    content = (root / "train.zip").read_bytes()
    size = struct.pack("<I", len(tiny_image()) + 2**20)
    (root / "train.zip").write_bytes(content.replace(size, struct.pack("<I", len(tiny_image()))))


def _with_stored_size(root: Path, size: int, method: int) -> None:
    """Add an image whose entry in the zip file's directory has another size of what is stored."""
    add(root, "a/odd.jpg", tiny_image(), method)
    content = bytearray((root / "train.zip").read_bytes())
    entry = content.rindex(b"PK\1\2")
    content[entry + 20 : entry + 24] = struct.pack("<I", size)
    (root / "train.zip").write_bytes(content)


def stored_beyond_the_end(root: Path) -> None:
    _with_stored_size(root, 2**32 - 2, zipfile.ZIP_STORED)


def deflated_beyond_the_end(root: Path) -> None:
    _with_stored_size(root, 2**32 - 2, zipfile.ZIP_DEFLATED)


def stored_in_part(root: Path) -> None:
    _with_stored_size(root, 300, zipfile.ZIP_STORED)


def at_no_place(root: Path) -> None:
    """The directory's entry says in the form of large files that the image begins at the last byte of 2**64."""
    add(root, "a/odd.jpg", tiny_image())
    content = bytearray((root / "train.zip").read_bytes())
    entry, end = content.rindex(b"PK\1\2"), content.rindex(b"PK\5\6")
    content[entry + 30 : entry + 32] = struct.pack("<H", 12)
    content[entry + 42 : entry + 46] = struct.pack("<I", 2**32 - 1)
    content[end:end] = struct.pack("<HHQ", 1, 8, 2**64 - 1)
    content[end + 24 : end + 28] = struct.pack("<I", end + 12 - struct.unpack_from("<I", content, end + 28)[0])
    (root / "train.zip").write_bytes(content)


def map_names_another(root: Path) -> None:
    (root / "train_map.txt").write_text("gone.jpg\t3\n")


def map_of_nothing(root: Path) -> None:
    (root / "train_map.txt").write_text("\n")


def map_with_an_endless_number(root: Path) -> None:
    (root / "train_map.txt").write_text(f"gone.jpg\t{'9' * 5000}\n")


def map_without_number(root: Path) -> None:
    (root / "train_map.txt").write_text("gone.jpg cat\n")


def tars_beside(root: Path) -> None:
    (root / "train-0000.tar").touch()


def a_damaged_map(root: Path) -> None:
    (root / "train_map.txt").write_bytes(b"\xff\xfe")


REFUSALS = {
    map_of_nothing: r"train_map\.txt lists no image: copy it again, or delete it if the zip file has class folders",
    cut_short: r"train\.zip is damaged or cut short \(.*\): copy or download it again$",
    damaged_inside: r"train\.zip is damaged at .*: copy or download it again$",
    no_class_folder: r"train\.zip: alone\.jpg is in no class folder: put train_map\.txt, with lines",
    no_image: r"train\.zip/a/odd\.jpg is not a JPEG or PNG image: repair it where the zip file is made, or leave",
    larger_than_any_image: r"train\.zip/a/odd\.jpg has 1 GiB, too many for an image: repair it where the zip file is",
    larger_than_it_says: r"train\.zip/a/odd\.jpg cannot be read \(the zip file is damaged: the image has another",
    **dict.fromkeys(
        (stored_beyond_the_end, deflated_beyond_the_end, stored_in_part),
        r"train\.zip/a/odd\.jpg cannot be read \(the zip file is damaged: the image cannot have the size that it says",
    ),
    at_no_place: r"train\.zip/a/odd\.jpg cannot be read \(",
    other_method: r"train\.zip: a/odd\.jpg is encrypted or compressed in another way than deflate: write it again with",
    map_names_another: r"train_map\.txt, line 1: the zip file beside it does not hold gone\.jpg: copy both again$",
    map_with_an_endless_number: r"train_map\.txt, line 1: 'gone\.jpg\s9+' is not 'path<tab>class number': repair it$",
    map_without_number: r"train_map\.txt, line 1: 'gone\.jpg cat' is not 'path<tab>class number': repair it$",
    a_damaged_map: r"train_map\.txt cannot be read \(.*\): copy it again$",
    tars_beside: r"holds the train images in two forms, WebDataset tar files and a zip file: keep one of them",
}


@pytest.mark.parametrize(("damage", "message"), REFUSALS.items(), ids=[damage.__name__ for damage in REFUSALS])
def test_it_is_refused_in_one_line(root: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(root)
    assert re.search(message, found := refused(root)), found


def test_a_zip_file_without_the_split_is_refused(photographs: Path, tmp_path: Path) -> None:
    write_zips(photographs, tmp_path)
    assert "train.zip holds no images in val/" in refused(tmp_path / "train.zip", "val")


def test_a_class_may_have_the_split_s_name_and_hidden_files_do_not_count(tmp_path: Path, photographs: Path) -> None:
    images = images_in(photographs / "train")
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.write(images[0], "train/a.jpg")
        archive.write(images[1], "ship/b.jpg")
        archive.writestr("__MACOSX/ship/._b.jpg", b"any")
    assert source_of(tmp_path).index.classes == ["ship", "train"]


def test_a_map_lies_beside_the_zip_file_wherever_that_is(numbered: Path, tmp_path: Path) -> None:
    """As for ``sets.imagenet=DIR/val.zip``."""
    root = with_map(numbered, tmp_path / "set")
    assert source_of(root / "val.zip", "val").index.fingerprint() == source_of(root, "val").index.fingerprint()


def test_an_image_that_grows_a_thousandfold_takes_no_memory(root: Path) -> None:
    """64 MB of zeros after an image: the first start reads all of them, and keeps only the beginning."""
    add(root, "a/odd.jpg", tiny_image() + bytes(2**26), zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    assert source_of(root).index.lengths is not None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**26
