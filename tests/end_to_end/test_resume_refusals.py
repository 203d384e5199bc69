"""What a run does not go on with: another recipe, other images, or a directory that another process uses."""

import re
import shutil
import subprocess
import time

import pytest

from engine.errors import UserError
from tests.runs import SMALL, TORCHRUN, checkpoint, command, environment, train_here


def test_a_checkpoint_of_another_optimizer_is_refused(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "max_steps=2")
    train_here(*common, "name=a")
    with pytest.raises(UserError, match=r"optim\.name adamw → adamw2"):
        train_here(*common, "name=a", "optim=adamw2")
    with pytest.raises(UserError, match=r"optim\.name adamw → lion"):
        train_here(*common, "name=b", "optim=lion", "resume=outputs/a/checkpoints/last.pt")


def test_another_recipe_in_the_same_directory_is_refused(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "name=a", "max_steps=2")
    train_here(*common)
    before = (here / "outputs/a/config.yaml").read_text()
    with pytest.raises(UserError, match=r"optim\.lr 0\.004 → 0\.5, seed 0 → 3; set another name"):
        train_here(*common, "optim.lr=0.5", "seed=3")
    with pytest.raises(UserError, match="resume=never"):
        train_here(*common, "resume=never")
    assert (here / "outputs/a/config.yaml").read_text() == before
    logger = "+callbacks.tensorboard=engine.callbacks.tensorboard_logger.TensorBoardLogger"
    train_here(*common, "max_steps=3", "log_every=2", "checkpoint.keep=0", "micro_batch_size=16", logger, draws=True)
    assert checkpoint(here / "outputs/a")["step"] == 3
    train_here(*common, "max_steps=4")
    assert checkpoint(here / "outputs/a")["step"] == 4


def test_other_images_are_refused(small_images, here):
    images = shutil.copytree(small_images, here / "images")
    common = (*SMALL, f"data.root={images}", "name=a")
    train_here(*common, "max_steps=2")
    next((images / "train").glob("*/*.png")).unlink()
    with pytest.raises(UserError, match="training images have changed since the run began"):
        train_here(*common, "max_steps=3")


@pytest.mark.slow
def test_two_runs_do_not_share_a_directory(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "name=a")
    process = subprocess.Popen(
        command("train.py", *common, "epochs=500"), cwd=here, env=environment(), stdout=subprocess.DEVNULL
    )
    try:
        while process.poll() is None and not (here / "outputs/a/metrics.jsonl").is_file():
            time.sleep(0.1)
        with pytest.raises(UserError, match="another process trains in outputs/a"):
            train_here(*common, "epochs=500")
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_checkpoints_of_different_steps_are_refused(small_images, here):
    """Without shared storage, one process may find a checkpoint and the other none."""
    common = (*SMALL, f"data.root={small_images}", "name=a")
    train_here(*common, "max_steps=2")
    shutil.copytree(here / "outputs", here / "one" / "outputs")
    (here / "other").mkdir()
    script = here / "start.sh"
    script.write_text('cd "$([ "$RANK" = 0 ] && echo one || echo other)" && exec "$@"\n')
    out = subprocess.run(
        [*TORCHRUN, "--nproc-per-node=2", "--no-python", "bash", str(script), *command("train.py", *common)],
        cwd=here,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert out.returncode != 0
    assert re.search("error: the processes would continue from different steps", out.stderr), out.stderr
