"""What every test gets: the same random numbers, and real images in the formats that image folders contain."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import skimage.data
import torch
from hypothesis import settings
from omegaconf import OmegaConf
from PIL import Image

if not Path("/dev/nvidiactl").exists():
    # Without a GPU, Triton's kernels run in its interpreter. It reads this when it is imported, as torch.compile does.
    os.environ["TRITON_INTERPRET"] = "1"

from data.storage.archive import unpacked
from tests import devices
from tests.happened import table as happened_table

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
ORIENTATION = 0x0112  # EXIF tag; 6 = rotate by 90 degrees to view

# The same examples in every run, and no time limit for each, because machines are shared.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    devices.skip_without_gpus(items)


# By the marker that a target of the Makefile selects: a title, and what makes the lines.
TABLES = {
    "gpu": ("on the GPU", devices.table),
    "cluster": ("on the clusters", happened_table),
    "image": ("in the image", happened_table),
}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """After ``make test-gpu``, ``test-cluster`` and ``test-image``, list what ran."""
    if config.getoption("markexpr") in TABLES:
        title, table = TABLES[config.getoption("markexpr")]
        terminalreporter.section(title)
        for line in table(terminalreporter.stats):
            terminalreporter.write_line(line)


@pytest.fixture
def happened(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Records what happened in a test, for the table."""
    return lambda what: record_property("happened", what)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The weights and inputs that a test draws do not depend on the tests that ran before it in the same process."""
    torch.manual_seed(0)


def write_jpegs(folder: Path, image: Image.Image) -> None:
    """Write an RGB image as each kind of JPEG that decoders handle differently."""
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    image.save(folder / "420.jpg", quality=90, subsampling="4:2:0")
    image.save(folder / "444.jpg", quality=90, subsampling="4:4:4")
    image.save(folder / "rgb.jpg", quality=90, keep_rgb=True)
    image.save(folder / "progressive.JPG", quality=80, progressive=True)
    image.save(folder / "rotated.jpeg", quality=90, exif=turned)
    image.convert("L").save(folder / "grey.jpg", quality=90)
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=90)


def write_pngs(folder: Path, image: Image.Image) -> None:
    """Write an RGB image as each kind of PNG, one with a wrong name and one smaller than any crop."""
    half_clear = image.copy()
    half_clear.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(folder / "rgb.png")
    image.convert("L").save(folder / "grey.png")
    image.convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(folder / "palette.png")
    half_clear.save(folder / "rgba.png")
    image.save(folder / "png.JPEG", format="PNG")
    image.resize((37, 25)).save(folder / "tiny.png")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of four classes; each holds one photograph in many formats. Tests must not change it."""
    root = tmp_path_factory.mktemp("photographs")
    for name in PHOTOGRAPHS:
        image = Image.fromarray(getattr(skimage.data, name)())
        for split in ("train", "val"):
            (root / split / name).mkdir(parents=True)
        write_jpegs(root / "train" / name, image)
        image.save(root / "val" / name / "420.jpg", quality=90)
        image.convert("L").save(root / "val" / name / "grey.jpg", quality=90)
    write_pngs(root / "train" / "chelsea", Image.fromarray(skimage.data.chelsea()))
    return root


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """The image folder of the embedded set, two folders below its ``XDG_CACHE_HOME``. Tests must not change it.

    The processes of pytest-xdist share it: the first one unpacks it, and the others wait.
    """
    config = OmegaConf.load("conf/data/fashion_mnist.yaml")
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if hasattr(pytestconfig, "workerinput") else own
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared / "cache"))
        return unpacked(Path(config.archive), config.archive_sha256)


@pytest.fixture(scope="session")
def small_images(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image folder cut from the embedded set: 32 training and 8 validation images for each class."""
    root = tmp_path_factory.mktemp("small")
    for split, count in (("train", 32), ("val", 8)):
        for folder in sorted((embedded / split).iterdir()):
            (root / split / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:count]:
                shutil.copy(image, root / split / folder.name)
    return root


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is also the current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch uses in this process, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
