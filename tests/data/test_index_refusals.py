"""Folders that are no split of images: each is refused by name, before any image is read."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.indexing import index_of, paint, paths, refused


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with one image each, not indexed yet."""
    for name in ("a/1.png", "b/2.png"):
        paint(tmp_path / "set" / "train" / name)
    return tmp_path / "set"


@pytest.mark.parametrize("name", ["c", "a/deep", "a/b.c"])
def test_a_link_to_nothing_that_may_be_a_folder_is_named(root: Path, name: str) -> None:
    link = root / "train" / name
    link.symlink_to("nowhere")
    assert refused(root) == f"{link} cannot be read (a broken link): repair or delete it"
    assert f"{link} cannot be read" in refused(root, on_bad_image="skip")
    link.unlink()
    link.symlink_to(root / "train" / "b")
    assert len(index_of(root)) == 3


def test_a_class_folder_whose_link_breaks_later_is_named(root: Path, tmp_path: Path) -> None:
    paint(tmp_path / "elsewhere" / "3.png")
    (root / "train" / "c").symlink_to(tmp_path / "elsewhere")
    assert index_of(root).classes == ["a", "b", "c"]
    (tmp_path / "elsewhere").rename(tmp_path / "moved")
    assert f"{root / 'train' / 'c'} cannot be read (a broken link)" in refused(root)


def test_a_link_that_leads_to_itself_is_named(root: Path) -> None:
    loop = root / "train" / "c"
    loop.symlink_to(loop)
    assert f"{loop} cannot be read (Too many levels of symbolic links)" in refused(root)


def test_hidden_links_and_files_beside_classes_are_not_looked_at(root: Path) -> None:
    (root / "train" / ".c").symlink_to("nowhere")
    (root / "train" / "labels.txt").write_text("a b")
    (root / "train" / "a" / "1.TXT").write_text("no image")
    paint(root / "train" / "a" / "2.PNG")
    assert paths(index_of(root)) == ["a/1.png", "a/2.PNG", "b/2.png"]


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Run as user nobody instead of root, who may read everything."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


@pytest.mark.parametrize("name", ["train", "train/a", "train/a/deep"])
def test_a_folder_that_may_not_be_read_is_named(
    root: Path, tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    paint(root / "train" / "a" / "deep" / "3.png")
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        if os.stat(folder).st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | 0o055)
    (root / name).chmod(0)
    request.getfixturevalue("unprivileged")
    assert "cannot be read (Permission denied): ask its owner for" in refused(root, index_dir=str(tmp_path / "index"))


def test_a_missing_split_is_refused(tmp_path: Path) -> None:
    assert f"{tmp_path / 'train'} is not a folder" in (message := refused(tmp_path))
    assert message.endswith(f", and {tmp_path} is empty")


def test_a_missing_split_is_told_what_is_there(root: Path) -> None:
    missing = f"{root / 'val'} is not a folder: data.root must hold val/<class>/<image>"
    assert refused(root, split="val") == f"{missing}, and it holds train/; data.split=NAME takes another of its folders"
    for name in ("test", "b", "c", "d"):
        (root / name).mkdir()
    (root / "val.tar.gz").write_text("")
    assert "it holds b/, c/, d/, test/, train/ and 1 more; data.split=NAME" in refused(root, split="val")
    (root / "train").rename(root / "training")
    assert "data.train_split=NAME takes another of its folders" in refused(root)


def test_a_missing_split_beside_files_only_is_told_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "train.tar.gz").write_text("")
    assert refused(tmp_path).endswith("and it holds train.tar.gz")


def test_a_split_without_class_folders_is_refused(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "1.png")
    assert f"{tmp_path / 'train'} has no class folders" in refused(tmp_path)


def test_validation_images_side_by_side_are_told_of_what_sorts_them(root: Path) -> None:
    paint(root / "val" / "ILSVRC2012_val_00000001.JPEG")
    message = refused(root, split="val")
    assert f"{root / 'val'} has no class folders: it must hold <class>/<image>" in message
    assert f"python scripts/prepare_imagenet.py --folder {root} --to NEW_FOLDER" in message
    assert "data.root=NEW_FOLDER" in message


def test_images_without_class_folders_are_not_opened(root: Path) -> None:
    (root / "val").mkdir()
    for i in range(3):
        (root / "val" / f"{i}.jpg").write_text("no image")
    assert refused(root, split="val") == f"{root / 'val'} has no class folders: it must hold <class>/<image>"
    assert not list(root.glob(".*"))
