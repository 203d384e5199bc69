"""Files of a run, or its images, that are deleted or replaced between two starts or while it trains."""

import shutil

from PIL import Image

from engine.checkpoints.checkpoint import Checkpoints
from engine.loop import TrainLoop
from tests.indexing import touch_later
from tests.runs import NEVER_SAVED, SMALL, checkpoint, metrics, train_here


def test_a_run_directory_removed_during_the_run_is_made_anew(small_images, here, monkeypatch):
    real = TrainLoop._after_step

    def after_step(self):
        if self.done == 3:
            shutil.rmtree(self.run.directory.path)
        real(self)

    monkeypatch.setattr(TrainLoop, "_after_step", after_step)
    train_here(*SMALL, *NEVER_SAVED, f"data.root={small_images}", "name=a", "max_steps=5")
    assert checkpoint(here / "outputs/a")["step"] == 5
    assert [line["step"] for line in metrics(here / "outputs/a", "train")] == [3, 4, 5]


def test_a_folder_of_checkpoints_removed_while_one_is_written_is_made_anew(small_images, here, monkeypatch):
    write = Checkpoints._write
    removed = []

    def removing(self, content):
        write(self, content)
        if content.get("step") == 2 and not removed:
            removed.append(shutil.rmtree(self.folder))

    monkeypatch.setattr(Checkpoints, "_write", removing)
    train_here(*SMALL, f"data.root={small_images}", "name=a", "max_steps=3", "checkpoint.every_steps=1")
    assert removed and checkpoint(here / "outputs/a")["step"] == 3


def test_a_run_goes_on_after_an_image_was_repaired(small_images, here):
    """As the message about a damaged image says: replace it, and run the same command again."""
    root = here / "images"
    shutil.copytree(small_images, root)
    image = sorted((root / "train/bag").iterdir())[3]
    common = (*SMALL, f"data.root={root}", "name=a")
    train_here(*common, "max_steps=2")
    size = image.stat().st_size
    Image.open(image).save(image, compress_level=9)
    assert image.stat().st_size != size
    touch_later(image.parent)
    train_here(*common, "max_steps=4")
    assert [line["step"] for line in metrics(here / "outputs/a", "train")] == [1, 2, 3, 4]
    assert "a few training images have other file sizes" in (here / "outputs/a/train.log").read_text()


def test_a_run_without_its_checkpoints_says_that_it_starts_again(small_images, here, capsys):
    common = (*SMALL, f"data.root={small_images}", "name=a", "max_steps=1")
    train_here(*common)
    for file in (here / "outputs/a/checkpoints").iterdir():
        file.unlink()
    train_here(*common)
    assert (
        "no checkpoint is left: starting from step 0; metrics.before.jsonl has the earlier" in capsys.readouterr().out
    )
