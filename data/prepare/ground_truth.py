"""The classes of ImageNet's validation images; the official tar file does not contain them."""

import csv
import io
import lzma
import re
import tarfile
from pathlib import Path

from data.errors import DataError, in_one_line

SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "imagenet_val.txt.xz"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
DEVKIT_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
WNID = re.compile(r"n\d{8}")
IMAGE = re.compile(r"ILSVRC2012_val_\d{8}")


def image_name(number: int) -> str:
    """Name of a validation image, without extension; ``number`` counts from 1."""
    return f"ILSVRC2012_val_{number:08}"


def validation_classes(given: Path | None, devkit_folder: Path) -> dict[str, str]:
    """The WordNet id of each validation image, by its name without extension.

    Args:
        given: the user's list: one WordNet id a line in the order of the images, or Kaggle's
            ``LOC_val_solution.csv``; ``None``: the list that comes with the project.
        devkit_folder: if the official devkit is in this folder, the project's list is compared with it.

    Raises:
        DataError: if the list cannot be read, or contradicts the devkit.
    """
    if given is not None:
        return _read_list(given)
    wnids = lzma.decompress(SHIPPED.read_bytes()).decode("ascii").split()
    if (devkit_folder / DEVKIT).is_file():
        _compare(wnids, devkit_folder / DEVKIT)
    return {image_name(i + 1): wnid for i, wnid in enumerate(wnids)}


def _read_list(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--val-labels {path} cannot be read ({in_one_line(error)})") from error
    if lines and "," in lines[0]:
        rows = [row for row in csv.reader(lines) if len(row) == 2 and IMAGE.fullmatch(row[0])]
        pairs = [(name, (prediction.split() or [""])[0]) for name, prediction in rows]
    else:
        pairs = [(image_name(i + 1), line.strip()) for i, line in enumerate(lines)]
    wrong = next((wnid for _, wnid in pairs if not WNID.fullmatch(wnid)), None if pairs else "nothing")
    if wrong is not None:
        raise DataError(
            f"--val-labels {path} holds '{wrong}' where a WordNet id such as n01440764 is expected: write one on each "
            "line, in the order of the images, or give LOC_val_solution.csv"
        )
    return dict(pairs)


def _compare(wnids: list[str], devkit: Path) -> None:
    """Raise if the devkit's class numbers and our WordNet ids do not correspond one to one."""
    try:
        with tarfile.open(devkit) as tar:
            name = next(name for name in tar.getnames() if name.endswith(f"/data/{DEVKIT_TRUTH}"))
            content = tar.extractfile(name)
            assert content is not None
            numbers = io.TextIOWrapper(content, "ascii").read().split()
    except (OSError, EOFError, tarfile.TarError, UnicodeDecodeError, StopIteration) as error:
        raise DataError(f"{devkit} is damaged: download it again, or delete it (it is not needed)") from error
    pairs = set(zip(wnids, numbers, strict=False))
    if len(numbers) != len(wnids) or not len(pairs) == len(set(wnids)) == len(set(numbers)):
        raise DataError(
            f"the ground truth in {devkit} differs from that of ILSVRC 2012 in {SHIPPED.name}: "
            "give the classes of your images with --val-labels FILE"
        )
