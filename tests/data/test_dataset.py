"""From the data options to a split: where its folder is, and the message if there is none."""

from pathlib import Path

import pytest
from PIL import Image

from data.config import DataConfig
from data.errors import DataError
from data.sets.dataset import is_prepared, open_split
from data.sources.root import with_root


@pytest.fixture
def cfg(tmp_path: Path) -> DataConfig:
    """Three classes in ``train``; one of them is missing in ``val``."""
    for name in ("train/cat", "train/dog", "train/otter", "val/cat", "val/otter"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (8, 6)).save(tmp_path / "set" / name / "1.png")
    return DataConfig(name="folder", root=str(tmp_path / "set"))


@pytest.mark.parametrize(("name", "variable"), [("imagenet", True), ("folder", False)])
def test_no_root_is_refused_with_what_to_set(name: str, variable: bool) -> None:
    with pytest.raises(DataError, match=r"set data\.root=") as caught:
        open_split(DataConfig(name=name), "train")
    assert ("IMAGENET_DIR" in str(caught.value)) == variable
    assert "\n" not in str(caught.value)


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"data\.root={tmp_path / 'nowhere'} is not a folder"):
        open_split(DataConfig(name="folder", root=str(tmp_path / "nowhere")), "train")


def test_a_tilde_is_the_home_folder(cfg: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert with_root(DataConfig(name="folder", root="~/set")).root == str(tmp_path / "set")


def test_a_part_of_the_classes_keeps_the_labels_of_the_model(cfg: DataConfig) -> None:
    train = open_split(cfg, "train")
    val = open_split(cfg, "val", num_classes=3, trained_on=train.index.classes)
    assert (train.labels.tolist(), train.num_classes) == ([0, 1, 2], 3)
    assert val.labels.tolist() == [0, 2]
    assert val.names == {0: "cat", 2: "otter"}
    assert (len(val), val.num_classes) == (2, 3)


def test_a_set_is_prepared_once_all_its_splits_are_indexed(cfg: DataConfig) -> None:
    assert not is_prepared(cfg, ["train", "val"])
    open_split(cfg, "train")
    assert not is_prepared(cfg, ["train", "val"])
    open_split(cfg, "val")
    assert is_prepared(cfg, ["train", "val"])
    assert is_prepared(DataConfig(name="synthetic"), ["train", "val"])
