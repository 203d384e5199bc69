"""Download CIFAR-10 and write it as class folders of JPEG files, for data=cifar10.

python scripts/get_cifar10.py /path/to/cifar10
CIFAR10_DIR=/path/to/cifar10 python scripts/lab.py replacements

The archive is that of the University of Toronto (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images",
2009). torchvision downloads it and checks its hash. The images are encoded with quality 95 and full colour resolution.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import URLError

from torchvision.datasets import CIFAR10
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.errors import UserError
from scripts.common.command_line import command, parser_of

ENCODER = {"quality": 95, "subsampling": 0}
SPLITS = {"train": True, "val": False}


@command
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path, help="new or empty folder")
    folder = parser.parse_args().folder
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name a new folder")
    try:
        write(folder)
    except (OSError, RuntimeError) as error:  # no network, a full disk; another hash
        if isinstance(error, URLError):
            said = f"downloaded from {CIFAR10.url} ({error.reason}): run this where that address can be reached"
        else:
            said = f"written to {folder}: {error}"
        raise UserError(f"CIFAR-10 cannot be {said}") from error
    print(f"written: {folder}; train with CIFAR10_DIR={folder} and data=cifar10")


def write(folder: Path) -> None:
    """Download the archive, and write ``train/<class>/00000.jpg`` and ``val/``, numbered as in the archive."""
    with TemporaryDirectory() as downloads:
        for split, is_train in SPLITS.items():
            images = CIFAR10(downloads, train=is_train, download=True)
            for name in images.classes:
                (folder / split / name).mkdir(parents=True)
            for number, (image, label) in enumerate(tqdm(images, desc=split, unit="image", disable=None)):
                image.save(folder / split / images.classes[label] / f"{number:05d}.jpg", **ENCODER)


if __name__ == "__main__":
    sys.exit(main())
