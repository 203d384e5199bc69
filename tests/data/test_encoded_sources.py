"""What every source of files does: folder, shards and a new kind give the same images and errors."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import skimage.data
import torch
from PIL import Image

from data import DataConfig, DataError
from data.backends import build_backend
from data.index.headers import decoded
from data.planning.plan import EvalPlan
from data.prepare.check import check_images, check_rows
from data.sources import EncodedSource, open_source
from tests import source_kinds
from tests.crop_requests import images_of
from tests.runs import ALL_AUGMENTATION, SMALL, checkpoint, same_tensors, train_here
from tests.source_kinds import CLASSES, EACH, ENCODED, Kind, encoded, opened

folder, config = source_kinds.folder, source_kinds.config

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.sources.source.PAUSES", (0.0, 0.0))


@pytest.mark.parametrize("config", ENCODED, indirect=True)
def test_images_are_the_files_that_went_in(config: DataConfig, folder: Path) -> None:
    source = encoded(config)
    index = source.index
    assert len(source) == len(CLASSES) * EACH + 1
    assert index.lengths is not None
    assert [index.paths[i] for i in index.odd_colours] == ["2/print.jpg"]
    for i, path in enumerate(index.paths):
        content = source.read(i)
        assert content == (folder / "train" / path).read_bytes()
        assert len(content) == index.lengths[i]
        image = decoded(content)
        assert (image.height, image.width) == (index.heights[i], index.widths[i])
        assert path.split("/")[0] == index.classes[index.targets[i]]
        assert path in source.name(i)


@pytest.mark.parametrize("config", ENCODED, indirect=True)
def test_all_images_have_paths_or_none(config: DataConfig) -> None:
    source = encoded(config)
    paths = [source.path(i) for i in range(len(source))]
    if paths[0] is None:
        assert set(paths) == {None}
    else:
        assert [Path(str(path)).read_bytes() for path in paths] == [source.read(i) for i in range(len(source))]


@pytest.mark.parametrize("config", ENCODED, indirect=True)
def test_the_fingerprint_is_that_of_the_folder(config: DataConfig, folder: Path) -> None:
    plain = opened(DataConfig(name="any", root=str(folder)))
    assert opened(config).index.fingerprint() == plain.index.fingerprint()


@pytest.mark.parametrize("kind", ["torch", "dali"])
@pytest.mark.parametrize("config", ENCODED, indirect=True)
def test_batches_are_those_of_the_folder(config: DataConfig, folder: Path, kind: str) -> None:
    made = []
    for cfg in (config, replace(config, root=str(folder))):
        source = encoded(cfg)
        backend = build_backend(kind, source, cfg, CPU, 0, 20)
        (images,) = backend.batches(iter([EvalPlan(source.index, cfg).crops(range(len(source)))]))
        made.append(images)
    assert torch.equal(*made)


@pytest.mark.parametrize("name", [name for name in ENCODED if name not in ("folder", "joined")])
def test_half_a_set_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    images = Path(shutil.copytree(folder, tmp_path / "images"))
    root = ENCODED[name].make(images, tmp_path / "set")
    for path in list(root.rglob("val*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"holds the train images in .*, but no val images: add them in this form"):
        opened(DataConfig(name="any", root=str(root)), "val")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ENCODED if name not in ("folder", "joined")])
def test_a_run_that_is_resumed_ends_as_one_from_the_folder(name: str, small_images: Path, here: Path) -> None:
    root = ENCODED[name].make(small_images, here / "set")
    common = (*SMALL, *ALL_AUGMENTATION)
    train_here(*common, f"data.root={small_images}", "name=folder")
    train_here(*common, f"data.root={root}", "name=other", "max_steps=13")
    assert checkpoint(here / "outputs/other")["step_in_epoch"] == 3
    train_here(*common, f"data.root={root}", "name=other")
    folder, other = (checkpoint(here / "outputs" / name) for name in ("folder", "other"))
    assert folder["step"] == other["step"] == 20
    assert same_tensors(folder["model"], other["model"])


@pytest.mark.parametrize("config", ENCODED, indirect=True)
def test_a_read_is_tried_again(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    source = encoded(config)
    expected, content, failures = source.read(0), type(source).content, [OSError("away"), OSError("still away")]

    def failing(self: EncodedSource, i: int) -> bytes:
        if failures:
            raise failures.pop()
        return content(self, i)

    monkeypatch.setattr(type(source), "content", failing)
    assert source.read(0) == expected
    failures += [OSError("gone")] * 3
    with pytest.raises(OSError, match="gone"):
        source.read(0)


@pytest.mark.parametrize("kind", ["torch", "dali"])
@pytest.mark.parametrize("config", ENCODED, indirect=True)
def test_a_bad_image_is_named_with_the_advice_of_its_source(
    config: DataConfig, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = encoded(config)
    gone = "its place is empty"

    def failing(self: EncodedSource, i: int) -> bytes:
        raise OSError(gone)

    monkeypatch.setattr(type(source), "content", failing)
    if (path := source.path(3)) is not None:
        os.unlink(path)  # DALI reads the file itself, not through ``content``
    backend = build_backend(kind, source, config, CPU, 0, 4)
    with pytest.raises(DataError) as caught:
        list(backend.batches(iter([EvalPlan(source.index, config).crops(range(3, 4))])))
    assert str(caught.value).startswith(f"{source.name(3)} cannot be decoded ({gone}): {source.advice.in_run}, then")


# Shards hold no such file: the script that packs them refuses it.
UNPACKED = {name: kind for name, kind in ENCODED.items() if name != "shards"}


@pytest.mark.parametrize(("config", "kind"), UNPACKED.items(), ids=UNPACKED, indirect=["config"])
def test_files_that_are_no_images_are_named_at_the_start(config: DataConfig, kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "set" / "train" / "1" / "bad.png").write_text("no image")
    config.root = str(kind.make(tmp_path / "set", tmp_path / "with_bad"))
    advice = kind.source.advice
    with pytest.raises(DataError, match=rf"1/bad\.png is not a JPEG or PNG image: {advice.at_start}, or leave"):
        open_source(config, "train")
    config.on_bad_image = "skip"
    assert len(opened(config)) == len(CLASSES) * EACH + 1
    assert open_source(config, "train", build=False) is not None


@pytest.mark.parametrize("config", ENCODED, indirect=True)
def test_the_check_decodes_every_image(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.prepare.check.run_jobs", lambda jobs, workers: ((n, job()) for n, job in enumerate(jobs)))
    found = check_images(encoded(config), 1)
    assert (found.images, found.bad, len(found.odd_colours)) == (len(CLASSES) * EACH + 1, [], 1)


def test_a_file_with_several_pictures_is_checked_as_a_jpeg(tmp_path: Path) -> None:
    """As some cameras write them; Pillow names the format MPO."""
    (tmp_path / "train" / "a").mkdir(parents=True)
    image = Image.fromarray(skimage.data.chelsea())
    image.save(tmp_path / "train" / "a" / "several.jpg", "MPO", save_all=True, append_images=[image])
    found = check_rows(images_of(tmp_path), range(1))
    assert (found.images, found.bad, found.misnamed, found.odd_colours) == (1, [], [], [])
