"""One optimizer step: nothing makes the host wait, and nothing is sent or launched in vain."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.distributed as dist
from timm.optim import Lamb, Muon
from torch import Tensor, nn

from data import Batch, BatchGeometry, DeviceAugment, TrainPlan
from engine.errors import RunStopped
from engine.measuring.meter import Meter
from engine.processes.distributed import World
from engine.runtime import Runtime
from engine.step import LEAST_LOSS_SCALE, TrainStep
from engine.training_batches import prepare
from models import build_model
from optim import build_optimizer, build_schedule
from tests.devices import on_devices
from tests.dispatches import Dispatches, NoHostCopies
from tests.plans import image_index
from tests.runs import ALL_AUGMENTATION, SMALL, cached_settings

CLASSES, SIDE = 10, 28
ALONE, CPU = World(0, 1, 0, 1), torch.device("cpu")
PLAIN_VIT = (
    *("model=vit_preln_small", "model.patch_size=7", "model.embed_dim=12", "model.depth=1", "model.num_heads=2"),
    *("data=folder", "data.crop=28", "data.resize=28", "batch_size=32", "augment.mix_group=8"),
)
OPTIMIZERS = ("adamw", "adamw2", "sgd", "radam", "lion", "lamb", "muon", "adamuon", "nadamuon")


def new_step(*options: str, world: World = ALONE, device: torch.device = CPU) -> TrainStep:
    """A new run's step."""
    cfg = deepcopy(cached_settings(*options, "data.root=unused", f"device={device.type}"))
    model = build_model(cfg.model, CLASSES, cfg.data.crop).to(device)
    optimizer = build_optimizer(cfg.optim, model, cfg.batch_size)
    schedule = build_schedule(cfg.schedule, cfg.optim, optimizer, cfg.batch_size, 100, 10)
    return TrainStep(cfg, Runtime(world, device, cfg.amp), model, optimizer, schedule, micro_steps=1)


def batches(step: TrainStep, number: int) -> list[Batch]:
    """Random images with the draws of a step, counted from 1."""
    cfg = step.cfg
    plan = TrainPlan(
        image_index(), cfg.seed, cfg.data, cfg.augment, BatchGeometry(cfg.batch_size, cfg.augment.mix_group, 1, 0, None)
    )
    found = []
    for epoch, positions in plan.positions(number - 1):
        images = torch.randint(256, (len(positions), 3, SIDE, SIDE), dtype=torch.uint8)
        labels = torch.randint(CLASSES, (len(positions),))
        draws = plan.device_draws(epoch, positions)
        assert draws.auto is not None and draws.erase is not None and draws.mix
        device = step.runtime.device
        found.append(Batch(images.to(device), labels.to(device), np.arange(len(positions)), draws))
    return found


def augment_of(step: TrainStep) -> DeviceAugment:
    data = step.cfg.data
    return DeviceAugment(data.mean, data.std, CLASSES).to(step.runtime.device)


def counted_on_host(step: TrainStep) -> list[Tensor]:
    """The step numbers that timm's LAMB and Muon hold on the host, also if the parameters are on a GPU."""
    if not isinstance(step.optimizer, Lamb | Muon):
        return []
    holders = [*step.optimizer.param_groups, *step.optimizer.state.values()]
    return [holder["step"] for holder in holders if "step" in holder]


def test_the_moving_average_begins_with_the_weights_of_the_first_step(set_threads):
    """Random initial weights would stay in it for tens of thousands of steps."""
    set_threads(1)
    step = new_step(*SMALL, *ALL_AUGMENTATION, "ema=0.9998", "batch_size=16")
    assert step.ema is not None
    for number in (1, 2):
        step.take(number, (prepare(batch, augment_of(step), step.runtime) for batch in batches(step, number)))
        pairs = zip(step.model.parameters(), step.ema.module.parameters(), strict=True)
        assert all(map(torch.equal, *zip(*pairs, strict=True))) == (number == 1)


def test_fp16_that_overflows_at_any_scale_ends_the_run():
    step = new_step(*PLAIN_VIT, "amp=fp16")
    step.scaler = torch.amp.GradScaler("cpu", init_scale=LEAST_LOSS_SCALE)
    step.scaler.scale(torch.ones(()))
    assert step.metrics()["loss_scale"] == LEAST_LOSS_SCALE
    step.scaler = torch.amp.GradScaler("cpu", init_scale=LEAST_LOSS_SCALE / 2)
    step.scaler.scale(torch.ones(()))
    with pytest.raises(RunStopped, match="gradients overflow in fp16 at any scale: set amp=bf16"):
        step.metrics()


def test_the_learning_rate_that_is_told_is_that_of_the_last_layer():
    step = new_step(*SMALL, "optim.layer_decay=0.5", "optim.lr=0.01")
    step.schedule.step_update(0)
    assert step.lr == step.metrics()["lr"] == 0.01 and step.optimizer.param_groups[0]["lr"] < 0.01


@pytest.mark.parametrize("kind", [Lamb, Muon])
def test_lamb_and_muon_count_their_steps_on_the_host(kind):
    weights = [nn.Parameter(torch.ones(shape, device="meta")) for shape in ((4, 4), (4,))]
    optimizer = kind(weights, lr=0.1, **({"max_grad_norm": None} if kind is Lamb else {}))
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    holders = [*optimizer.param_groups, *optimizer.state.values()]
    assert {holder["step"].device.type for holder in holders if "step" in holder} == {"cpu"}


@contextmanager
def refusing_to_wait(step: TrainStep) -> Iterator[None]:
    """Raise an error where the host waits for the device. On a CPU, refuse the operations that would wait for a GPU."""
    if step.runtime.device.type == "cpu":
        with NoHostCopies(), Dispatches(lambda: counted_on_host(step)) as mode:
            yield
        print(f"{mode.count} operations")
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_devices
@pytest.mark.parametrize(
    ("optimizer", "amp"),
    [(name, "bf16") for name in OPTIMIZERS] + [(name, "fp16") for name in ("adamw", "adamw2", "sgd")],
)
def test_a_whole_step_reads_nothing_from_the_device(optimizer, amp, device, set_threads):
    """Augmentation, forward, backward, clipping, the update, the moving average and the sums for the metrics.

    So it is after a resume. On a GPU the first step may wait, because kernels are chosen by timing them.
    """
    if (optimizer, device) == ("radam", "cpu"):
        pytest.skip("torch's RAdam reads its step number, which is on the CPU on any device: only a GPU shows a wait")
    set_threads(1)  # so that the images are augmented in this thread: the modes see nothing of others
    options = (*SMALL, f"optim={optimizer}", f"amp={amp}", *ALL_AUGMENTATION, "optim.clip=1", "batch_size=16")
    step, resumed = (new_step(*options, "compile=false", device=torch.device(device)) for _ in range(2))
    if optimizer in ("lion", "lamb"):  # as timm chooses on a GPU
        for group in (*step.optimizer.param_groups, *resumed.optimizer.param_groups):
            group["foreach"] = True
    if amp == "fp16":
        step.scaler, resumed.scaler = (torch.amp.GradScaler(device, init_scale=1.0) for _ in range(2))
    data, smoothing = step.cfg.data, step.cfg.augment.label_smoothing
    augment = DeviceAugment(data.mean, data.std, CLASSES, smoothing).to(device)
    meter = Meter(step.runtime, step.cfg.batch_size)
    before = [p.detach().clone() for p in step.parameters]

    def take(taken: TrainStep, number: int, may_wait: bool = False) -> None:
        made = batches(taken, number)
        with nullcontext() if may_wait else refusing_to_wait(taken):
            prepared = [prepare(batch, augment, taken.runtime) for batch in made]
            meter.add(taken.take(number, prepared), waited=0.0)

    take(step, 1, may_wait=device == "cuda" or (optimizer, amp) == ("adamw2", "fp16"))
    take(step, 2)
    resumed.load_state_dict(step.state_dict(), "test")
    take(resumed, 3)
    assert meter.is_sound() and not any(torch.equal(p, q) for p, q in zip(before, step.parameters, strict=True))


def test_without_clipping_no_gradient_is_multiplied():
    """The norm is the same as with a limit that is never reached, and also says if a gradient is not finite."""
    step, counts, norms = new_step(*SMALL, "optim.clip=null"), [], []
    for parameter in step.parameters:
        parameter.grad = torch.randn_like(parameter)
    gradients = [p.grad.clone() for p in step.parameters]
    for limit in (None, 1e9):
        step.cfg.optim.clip = limit
        with Dispatches() as mode:
            norms.append(step._clip())
        counts.append(mode.count)
    assert torch.equal(*norms) and counts[0] < counts[1]
    assert all(torch.equal(p.grad, before) for p, before in zip(step.parameters, gradients, strict=True))
    step.cfg.optim.clip = None
    for bad in (torch.inf, torch.nan):
        step.parameters[0].grad.view(-1)[0] = bad
        assert not step._clip().isfinite()


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(("stabilizer", "is_shared"), [("none", False), ("sigma_reparam", True)])
def test_processes_share_buffers_before_a_forward_pass_only_if_it_changes_them(stabilizer, is_shared, group):
    step = new_step(*PLAIN_VIT, f"model.stabilizer={stabilizer}", "ddp_bucket_mb=3", world=World(0, 2, 0, 2))
    assert step.ddp.will_sync_module_buffers() is is_shared
    assert step.ddp.bucket_bytes_cap == 3 * 2**20
