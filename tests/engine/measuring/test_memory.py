"""``micro_batch_size=auto``: the measured memory of a step, and the number of images that fits."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from engine.device import half_precision
from engine.losses import soft_cross_entropy
from engine.measuring.memory import FEW, MORE, StepMemory, fitting_micro_batch, most_images, step_memory
from engine.options.config import TrainConfig
from engine.processes.distributed import World
from engine.runtime import Runtime
from engine.training_data import TrainingData
from models import build_model
from tests.runs import SMALL, checkpoint, same_tensors, settings, train_here

GIB, MIB = 2**30, 2**20
ALONE = World(0, 1, 0, 1)
HIDDEN, SIDE = 64, 28
SWIN_TINY = StepMemory(GIB // 2, 67 * MIB)
SWIN_BASE = StepMemory(3 * GIB // 2, 177 * MIB)


class PixelMlp(nn.Module):
    """Two layers for each pixel, then the mean over the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.rise, self.relu, self.fall = nn.Linear(3, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(n, 2)``."""
        return self.fall(self.relu(self.rise(images.permute(0, 2, 3, 1)))).mean((1, 2))


def config(*overrides: str) -> TrainConfig:
    return settings("experiment=quickstart", f"data.crop={SIDE}", f"data.resize={SIDE}", *overrides)


def measured(model: nn.Module, *overrides: str) -> StepMemory:
    return step_memory(config(*overrides), Runtime(ALONE, torch.device("cpu")), model)


def test_a_two_layer_mlp_needs_what_one_counts_by_hand():
    """Most is held in the backward pass of the ReLU: its result, and the gradients of its result and of its input."""
    model = PixelMlp()
    image = 3 * SIDE**2
    hidden = HIDDEN * SIDE**2
    memory = measured(model)
    # Beside these numbers, the image and the copy of it that the first layer keeps, its channels last.
    assert memory.per_image == pytest.approx(4 * (3 * hidden + 2 * image), rel=1e-3)
    weights = 4 * (3 * HIDDEN + HIDDEN + 2 * HIDDEN + 2)
    assert 4 * weights <= memory.fixed < 6 * weights
    assert measured(model, "ema=0.9").fixed == memory.fixed + weights


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_memory_of_a_real_model_is_a_line_in_the_number_of_images(checkpointing, monkeypatch):
    sizes = ("model.depths=[2,2]", "model.embed_dim=12", "model.num_heads=[1,2]")
    cfg = config(*sizes, f"model.grad_checkpointing={checkpointing}")
    model = build_model(cfg.model, 10, SIDE)
    memory = measured(model)
    monkeypatch.setattr("engine.measuring.memory.FEW", 4 * FEW)
    monkeypatch.setattr("engine.measuring.memory.MORE", 4 * MORE)
    assert measured(model).of(64) == pytest.approx(memory.of(64), rel=0.03)


def test_gradient_checkpointing_saves_memory_but_not_that_of_the_part_computed_again():
    sizes = ("model.depths=[6]", "model.embed_dim=12", "model.num_heads=[1]")
    plain, checkpointed = (
        measured(build_model(config(*sizes, f"model.grad_checkpointing={on}").model, 10, SIDE)).per_image
        for on in (False, True)
    )
    assert plain / 6 < checkpointed < plain / 2


def test_measuring_leaves_the_model_and_the_random_numbers_as_they_were():
    cfg = config("model.drop_path_rate=0.3")
    model = build_model(cfg.model, 10, SIDE).eval()
    before, generator = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    measured(model)
    assert same_tensors(before, model.state_dict()) and torch.equal(generator, torch.get_rng_state())
    assert not model.training and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("memory", "free", "group", "images"),
    [
        (SWIN_TINY, 14.6, 32, 128),  # a 16 GB GPU
        (SWIN_TINY, 23.3, 32, 128),
        (SWIN_TINY, 79, 32, 256),  # more would fit, but gain little
        (SWIN_TINY, 140, 32, 256),
        (SWIN_BASE, 14.6, 32, 32),
        (SWIN_BASE, 23.3, 32, 64),
        (SWIN_BASE, 39, 32, 128),
        (SWIN_BASE, 79, 32, 256),
        (SWIN_TINY, 14.6, 24, 120),  # whole groups
        (SWIN_TINY, 14.6, 1, 128),
        (SWIN_BASE, 7.5, 64, 64),  # not even one group fits
        (SWIN_BASE, 1, 1, 1),
        (SWIN_TINY, 79, 512, 512),
    ],
)
def test_the_most_images_that_fit_are_taken(memory, free, group, images):
    assert most_images(memory, int(free * GIB), group) == images


def _ask(rank: int, folder: Path) -> None:
    """Two processes whose GPUs have room for 64 and for 256 images."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    cfg, model = config("augment.mix_group=8"), PixelMlp()
    runtime = Runtime(World(rank, 2, rank, 2), torch.device("cpu"))
    room = step_memory(cfg, runtime, model).of((65, 300)[rank])
    torch.cuda.mem_get_info = lambda device: (int((room + 2 * GIB) / 0.8), 80 * GIB)
    (folder / f"{rank}").write_text(str(fitting_micro_batch(cfg, runtime, model)))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_processes_take_the_number_of_the_fullest_gpu(tmp_path):
    mp.spawn(_ask, (tmp_path,), nprocs=2)
    assert [(tmp_path / name).read_text() for name in "01"] == ["64", "64"]


def test_a_mix_group_that_may_not_fit_is_said_in_one_line(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * GIB, 2 * GIB))
    for mixes, images in ((("augment.mixup=0.8",), 32), ((), 1)):
        assert fitting_micro_batch(config(*mixes), Runtime(ALONE, torch.device("cpu")), PixelMlp()) == images
        assert [record.levelname for record in caplog.records][-1] == "WARNING"
        needs = f"{images} images at once need about 0.0 of 2.0 GiB on the GPU, which may be too"
        assert caplog.messages[-1].startswith(needs)
        assert ("or a smaller augment.mix_group" in caplog.messages[-1]) == bool(mixes)


def test_steps_and_plan_cut_a_batch_alike(small_images):
    cfg = config("data=folder", f"data.root={small_images}", "data.backend=torch", "batch_size=64", "augment.mixup=0.8")
    data = TrainingData(cfg, Runtime(ALONE, torch.device("cpu")))
    for images, parts in ((32, 2), (64, 1)):
        data.set_micro_batch_size(images)
        assert [len(positions) for _, positions in data.plan.positions(0)] == [images] * parts
        assert data.geometry.micro_steps == parts


def test_auto_on_a_cpu_is_128_to_the_last_bit(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "batch_size=256", "max_steps=1")
    for name, micro in (("auto", "auto"), ("128", "128"), ("whole", "null")):
        train_here(*common, f"name={name}", f"micro_batch_size={micro}")
    auto, usual = (checkpoint(here / f"outputs/{name}")["model"] for name in ("auto", "128"))
    assert same_tensors(auto, usual)
    assert "1 processes × 2 micro-batches" in (here / "outputs/auto/train.log").read_text()
    assert "1 processes × 1 micro-batches" in (here / "outputs/whole/train.log").read_text()
    assert "micro_batch_size: auto" in (here / "outputs/auto/config.yaml").read_text()


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_of_a_real_step_on_a_gpu_is_within_the_estimate(checkpointing):
    device = torch.device("cuda", 0)
    cfg = settings("model=lipsformer_swin_tiny", f"model.grad_checkpointing={checkpointing}", "model.kernels=torch")
    runtime, model = Runtime(ALONE, device, half_precision()), build_model(cfg.model, 1000, 224)
    memory = step_memory(cfg, runtime, model)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images, targets = torch.randn(64, 3, 224, 224, device=device), torch.full((64, 1000), 1e-3, device=device)
    for _ in range(2):
        with runtime.autocast():
            logits = model(images)
        soft_cross_entropy(logits, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    peak = torch.cuda.max_memory_allocated(device) - before
    assert 0.8 * memory.of(64) < peak < 1.1 * memory.of(64)
