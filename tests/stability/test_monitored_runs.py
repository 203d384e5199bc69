"""A run with the stability monitor has the same weights and losses as one without."""

import pytest
import torch

from tests.runs import (
    ALL_AUGMENTATION,
    NO_LOCAL_NOISE,
    SMALL,
    checkpoint,
    losses,
    metrics,
    run,
    same_tensors,
    train_here,
)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_run_is_the_same_with_and_without_the_monitor(small_images, here, precision):
    """Including drop path, random erasing, mixup and cutmix, the moving average and AdamW²'s vectors."""
    common = (*SMALL, *ALL_AUGMENTATION, f"data.root={small_images}", "optim=adamw2", f"amp={precision}", "epochs=1")
    train_here(*common, "name=off", "monitor.every=0", "monitor.history=0")
    train_here(*common, "name=on", "monitor.every=1")
    off, on = checkpoint(here / "outputs/off"), checkpoint(here / "outputs/on")
    assert same_tensors(off["model"], on["model"]) and same_tensors(off["ema"], on["ema"])
    for number, state in off["stepper"]["optimizer"]["state"].items():
        other = on["stepper"]["optimizer"]["state"][number]
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(other[k])) for k, v in state.items())
    assert losses(here / "outputs/off") == losses(here / "outputs/on")
    assert [line["step"] for line in metrics(here / "outputs/on", "stability")] == list(range(1, 11))
    assert not (here / "outputs/off/stability.jsonl").read_text()


@pytest.mark.slow
def test_the_losses_of_two_processes_do_not_depend_on_the_monitor(small_images, here):
    common = (*SMALL, *NO_LOCAL_NOISE, f"data.root={small_images}", "max_steps=4")
    for name, every in (("off", 0), ("on", 2)):
        out = run("train.py", *common, f"name={name}", f"monitor.every={every}", cwd=here, processes=2)
        assert out.returncode == 0, out.stderr
    assert losses(here / "outputs/off") == losses(here / "outputs/on")
    assert [line["step"] for line in metrics(here / "outputs/on", "stability")] == [2, 4]
