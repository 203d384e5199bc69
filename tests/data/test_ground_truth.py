"""The classes of the validation images: the list that comes with the project, and the lists that a user may give."""

import io
import json
import tarfile
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
from timm.data import ImageNetInfo

from data.errors import DataError
from data.prepare.ground_truth import DEVKIT, DEVKIT_TRUTH, image_name, validation_classes

NAMES = [image_name(n) for n in range(1, 50_001)]


@pytest.fixture(scope="module")
def shipped() -> list[str]:
    known = validation_classes(None, Path("nowhere"))
    assert list(known) == NAMES
    return list(known.values())


def test_the_list_has_fifty_images_of_each_class(shipped: list[str]) -> None:
    assert Counter(shipped) == dict.fromkeys(ImageNetInfo().label_names(), 50)


def test_the_list_agrees_with_the_reassessed_labels(shipped: list[str]) -> None:
    """Beyer et al. (2020) labelled the same images again: 90.02 % of the original labels are among theirs."""
    real = json.loads((files("timm.data") / "_info" / "imagenet_real_labels.json").read_text())
    position = {wnid: label for label, wnid in enumerate(ImageNetInfo().label_names())}
    judged = [(position[wnid], labels) for wnid, labels in zip(shipped, real, strict=True) if labels]
    assert len(judged) == 46_837
    assert sum(label in labels for label, labels in judged) / len(judged) == pytest.approx(0.9002, abs=1e-4)


def devkit(folder: Path, wnids: list[str]) -> None:
    """A devkit that numbers the classes in another order."""
    number = {wnid: str(n) for n, wnid in enumerate(sorted(set(wnids), key=lambda wnid: wnid[::-1]), 1)}
    content = "".join(f"{number[wnid]}\n" for wnid in wnids).encode()
    with tarfile.open(folder / DEVKIT, "w:gz") as tar:
        info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{DEVKIT_TRUTH}")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))


def test_a_devkit_that_agrees_is_accepted(shipped: list[str], tmp_path: Path) -> None:
    devkit(tmp_path, shipped)
    assert list(validation_classes(None, tmp_path).values()) == shipped


@pytest.mark.parametrize("change", ["swapped", "short", "merged"])
def test_a_devkit_that_disagrees_is_refused(shipped: list[str], tmp_path: Path, change: str) -> None:
    other = list(shipped)
    if change == "swapped":
        other[0], other[1] = other[1], other[0]
    elif change == "short":
        other.pop()
    else:
        other = [shipped[0] if wnid == shipped[1] else wnid for wnid in other]
    devkit(tmp_path, other)
    with pytest.raises(DataError, match=r"differs from that of ILSVRC 2012 .*--val-labels"):
        validation_classes(None, tmp_path)


def test_a_damaged_devkit_is_refused(shipped: list[str], tmp_path: Path) -> None:
    devkit(tmp_path, shipped)
    content = (tmp_path / DEVKIT).read_bytes()
    (tmp_path / DEVKIT).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="is damaged"):
        validation_classes(None, tmp_path)


def test_a_list_of_the_users_counts_instead(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("n01440764\nn01443537\n")
    expected = {"ILSVRC2012_val_00000001": "n01440764", "ILSVRC2012_val_00000002": "n01443537"}
    assert validation_classes(tmp_path / "list.txt", tmp_path) == expected


def test_kaggles_list_is_read(tmp_path: Path) -> None:
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\n"
        "ILSVRC2012_val_00048981,n03995372 85 1 499 272 \n"
        "ILSVRC2012_val_00037956,n03481172 131 0 499 254 n03481172 5 5 9 9 \n"
    )
    expected = {"ILSVRC2012_val_00048981": "n03995372", "ILSVRC2012_val_00037956": "n03481172"}
    assert validation_classes(tmp_path / "LOC_val_solution.csv", tmp_path) == expected


@pytest.mark.parametrize(
    "content", ["490\n361\n", "", "n01440764\ntench\n", "ImageId,PredictionString\n", "a,b\nc,d\n"]
)
def test_a_list_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(DataError, match="where a WordNet id such as n01440764 is expected"):
        validation_classes(tmp_path / "list.txt", tmp_path)


def test_a_missing_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"list\.txt cannot be read \(No such file"):
        validation_classes(tmp_path / "list.txt", tmp_path)
