"""Models with BatchNorm on several processes: all use the same running statistics, whichever process evaluates."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import timm
import torch
import torch.multiprocessing as mp
from torch import nn

from data import BatchGeometry
from engine.batch_norm import refuse_lone_images, wants_sync_bn
from engine.errors import UserError
from engine.options.config import TrainConfig
from engine.processes.distributed import World
from engine.runtime import Runtime
from engine.step import TrainStep
from tests.devices import in_two_processes, run_on
from tests.runs import NO_LOCAL_NOISE, PLAIN_IMAGES, checkpoint, metrics, run, run_here

SIZES = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "stem_width": 8}
RUN = (
    *("model=deit_small_convstem", *(f"model.{name}={size}" for name, size in SIZES.items())),
    *("data=folder", "data.crop=28", "data.resize=28", "data.backend=torch", "max_workers=0", "device=cpu", "amp=fp32"),
    *("batch_size=32", "micro_batch_size=null", "augment.mix_group=8", "optim.lr=5e-3", "log_every=1", "logger=none"),
    *(*NO_LOCAL_NOISE, *PLAIN_IMAGES),
)


def tiny(**changes) -> nn.Module:
    return timm.create_model("deit_small_convstem", **(SIZES | {"img_size": 28, "num_classes": 5} | changes))


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen",
    [(), ("model.stem=patchify", "model.stabilizer=sigma_reparam")],
    ids=["batch_norm", "sigma_reparam"],
)
@in_two_processes
def test_two_processes_score_the_model_that_is_saved(device, chosen, small_images, here):
    """DDP finds no unused parameter, the loss falls, and one process gets the same scores as two."""
    common = (*RUN, *run_on(device), *chosen, f"data.root={small_images}")
    common = (*common, "name=a", "epochs=3", "ema=0.8", "eval_every=3")
    out = run("train.py", *common, cwd=here, processes=2)
    assert out.returncode == 0, out.stderr
    steps, val = metrics(here / "outputs/a", "train"), metrics(here / "outputs/a", "val")[-1]
    assert len(steps) == 30
    assert sum(line["loss"] for line in steps[-5:]) < sum(line["loss"] for line in steps[:5])
    for name in ("model", "ema"):
        assert all(torch.isfinite(value).all() for value in checkpoint(here / "outputs/a")[name].values())
    options = ("checkpoint=outputs/a/checkpoints/last.pt", "max_workers=0", *run_on(device))
    scored = run_here("eval.py", *options, cwd=here)
    assert scored.returncode == 0, scored.stderr
    result = json.loads((here / "eval.json").read_text())
    # GPUs may compute batches of other sizes with other kernels, and round products to TF32.
    exact = device == "cpu"
    assert result["loss"] == pytest.approx(val["loss"], abs=1e-6 if exact else 1e-3)
    assert result["top1"] == pytest.approx(val["top1"], abs=0 if exact else 2.5)  # two of 80 images


def scramble_and_share(rank: int, folder: Path) -> None:
    world = World(rank, 2, rank, 2)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = tiny()
    cfg = TrainConfig(ema=0.9, amp="fp32")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    runtime = Runtime(world, torch.device("cpu"))
    step = TrainStep(cfg, runtime, model, optimizer, None, 1)  # type: ignore[arg-type]
    torch.manual_seed(rank)
    for module in (model, step.ema.module):
        for buffer in module.buffers():
            buffer.copy_(torch.rand(buffer.shape) * 100)
    kept = step.state_dict()
    torch.save({name: {k: v.clone() for k, v in kept[name].items()} for name in ("model", "ema")}, folder / f"{rank}a")
    step.broadcast_buffers()
    torch.save({name: step.state_dict()[name] for name in ("model", "ema")}, folder / f"{rank}b")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_the_first_process_gives_its_buffers_to_all(tmp_path):
    mp.spawn(scramble_and_share, (tmp_path,), nprocs=2)
    first, other, *after = (torch.load(tmp_path / name) for name in ("0a", "1a", "0b", "1b"))
    for name in ("model", "ema"):
        statistics = [key for key in first[name] if "running" in key or "tracked" in key]
        assert len(statistics) == 9
        assert all((first[name][key] != other[name][key]).any() for key in statistics)
        assert all(torch.equal(first[name][key], shared[name][key]) for key in first[name] for shared in after)


@pytest.mark.parametrize(
    ("chosen", "stem", "size", "device", "expected"),
    [
        (None, "scaled_relu", 2, "cuda", True),
        (None, "scaled_relu", 1, "cuda", False),
        (None, "scaled_relu", 2, "cpu", False),
        (None, "conv_relu", 2, "cuda", False),
        (False, "scaled_relu", 2, "cuda", False),
        (True, "scaled_relu", 2, "cuda", True),
        (True, "scaled_relu", 1, "cpu", False),
        (True, "patchify", 2, "cpu", False),
    ],
)
def test_when_statistics_are_shared(chosen, stem, size, device, expected):
    assert wants_sync_bn(chosen, tiny(stem=stem), World(0, size, 0, size), torch.device(device)) is expected


def test_asking_for_the_impossible_is_one_line():
    with pytest.raises(UserError, match=r"^sync_bn=true needs GPUs: leave it null.*$"):
        wants_sync_bn(True, tiny(), World(0, 2, 0, 2), torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "side", "refused"),
    [
        ("resnet10t", 32, True),  # the last stage has one position for each image
        ("resnet10t", 64, False),  # four positions for each image
        ("test_vit", 160, False),  # no BatchNorm
    ],
)
def test_a_micro_batch_of_one_image_is_refused_where_batch_norm_cannot_take_it(name, side, refused):
    model = timm.create_model(name, num_classes=3)
    refuse_lone_images(model, BatchGeometry(10, mix_group=4, micro_batch_size=4), side)  # 4 + 4 + 2
    with (
        pytest.raises(UserError, match=r"split into 4 \+ 4 \+ 1 images, .* multiple of augment.mix_group=4, 4 or more")
        if refused
        else nullcontext()
    ):
        refuse_lone_images(model, BatchGeometry(9, mix_group=4, micro_batch_size=4), side)
    unmixed = BatchGeometry(6, mix_group=1, world_size=2, micro_batch_size=2)  # 1 + 2 on each
    with pytest.raises(UserError, match=r"=4 or more, and micro_batch_size=4 or more") if refused else nullcontext():
        refuse_lone_images(model, unmixed, side)
    refuse_lone_images(model, BatchGeometry(4, mix_group=1, world_size=2, micro_batch_size=4), side)
    of_one_process = BatchGeometry(5, mix_group=4, world_size=2, rank=0)  # rank 1 has the single image
    with pytest.raises(UserError, match=r"split into 4 \+ 1 images, .*=4, 8 or more") if refused else nullcontext():
        refuse_lone_images(model, of_one_process, side)
