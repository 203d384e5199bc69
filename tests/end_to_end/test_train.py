"""The real training command: it learns, and gives the same numbers with any number of processes."""

import math
import re
import weakref

import pytest
from torch.utils.cpp_extension import CUDA_HOME

from engine.device import half_precision
from engine.step import TrainStep
from tests.devices import in_two_processes, on_devices, run_on, tolerance
from tests.runs import (
    ALL_AUGMENTATION,
    NO_LOCAL_NOISE,
    SMALL,
    checkpoint,
    losses,
    metrics,
    run,
    run_here,
    same_tensors,
    train_here,
)


@on_devices
def test_a_run_leaves_what_it_promises_and_eval_agrees(device, small_images, here):
    out = run("train.py", *SMALL, *run_on(device), "name=a", f"data.root={small_images}", "epochs=3", cwd=here)
    assert out.returncode == 0, out.stderr
    folder = here / "outputs" / "a"
    for name in ("config.yaml", "metrics.jsonl", "train.log", "checkpoints/last.pt", "checkpoints/best.pt"):
        assert (folder / name).is_file(), name
    for picture in ("curves.png", "batch.png"):
        assert (folder / "plots" / picture).read_bytes()[:4] == b"\x89PNG"
    train, val = metrics(folder, "train"), metrics(folder, "val")
    assert [line["step"] for line in train] == list(range(1, 31))
    keys = {"epoch", "loss", "lr", "grad_norm", "images_per_second", "data_wait", "memory_gb"}
    assert keys <= train[0].keys()
    assert [line["epoch"] for line in val] == [1, 2, 3]
    assert {"top1", "top5", "loss", "images"} <= val[0].keys()
    assert train[-1]["loss"] < train[0]["loss"]
    low, peak = 5e-6 * 32 / 512, train[0]["lr"]
    cosine = [low + (peak - low) * (1 + math.cos(math.pi * step / 30)) / 2 for step in range(30)]
    assert [line["lr"] for line in train] == pytest.approx(cosine), "full learning rate from the first step"

    said = re.search(r"python (eval\.py) (checkpoint=\S+)", out.stdout)
    scored = run_here(said[1], said[2], *run_on(device), "max_workers=0", cwd=here)
    assert scored.returncode == 0, scored.stderr
    top1 = re.compile(r"top-1 (\S+) %, top-5")
    assert top1.search(scored.stdout)[1] == top1.search(out.stdout)[1]
    result = __import__("json").loads((here / "eval.json").read_text())
    assert (result["top1"], result["images"]) == (val[-1]["top1"], val[-1]["images"])
    # On a GPU the kernels of the two processes may differ: they are chosen by timing them.
    assert result["loss"] == pytest.approx(val[-1]["loss"], abs=1e-6 if device == "cpu" else 1e-4)


@in_two_processes
def test_two_processes_follow_one(device, small_images, here):
    """With the same global batch, the losses of 50 steps agree to 1e-4, on GPUs those of 10 steps to rounding.

    The two runs have micro-batches of different sizes, for which a GPU uses different kernels.
    """
    common = (*SMALL, *run_on(device), *NO_LOCAL_NOISE, f"data.root={small_images}")
    common = (*common, "epochs=5", "eval_every=5", "monitor.every=40")
    train_here(*common, "name=one")
    two = run("train.py", *common, "name=two", cwd=here, processes=2)
    assert two.returncode == 0, two.stderr
    a, b = losses(here / "outputs/one"), losses(here / "outputs/two")
    assert len(a) == 50 and a.keys() == b.keys()
    steps, limit = (a, 1e-4) if device == "cpu" else (range(1, 11), tolerance(device))
    assert max(abs(a[step] - b[step]) for step in steps) < limit
    final_one, final_two = metrics(here / "outputs/one", "val")[-1], metrics(here / "outputs/two", "val")[-1]
    assert final_one["images"] == final_two["images"] == 80


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "options"),
    [
        ("cpu", ("ddp_bucket_mb=0", "compile=false")),
        pytest.param("cuda", ("ddp_bucket_mb=0", "compile=false"), marks=pytest.mark.gpu(2)),
        pytest.param(
            "cuda",
            ("compile=true", "compile_mode=reduce-overhead"),
            marks=[pytest.mark.gpu(2), pytest.mark.timeout(1200)],
        ),
    ],
)
def test_one_exchange_after_the_backward_pass_gives_the_same_losses(device, options, small_images, here):
    """On a CPU bit for bit: two numbers have one sum."""
    common = (*SMALL, f"device={device}", *NO_LOCAL_NOISE, f"data.root={small_images}", "max_steps=12", "ema=0.9")
    common = (*common, *(() if "compile=true" in options else ("micro_batch_size=8",)))
    for name, chosen in (("usual", ("compile=false",)), ("whole", options)):
        done = run("train.py", *common, *chosen, f"name={name}", cwd=here, processes=2, timeout=550)
        assert done.returncode == 0, done.stderr
    usual, whole = losses(here / "outputs/usual"), losses(here / "outputs/whole")
    assert len(usual) == 12
    assert max(abs(usual[step] - whole[step]) for step in usual) <= tolerance(device)
    if device == "cpu":
        states = [checkpoint(here / "outputs" / name) for name in ("usual", "whole")]
        assert all(same_tensors(states[0][part], states[1][part]) for part in ("model", "ema"))


def test_a_run_of_a_sweep_leaves_nothing_to_the_next_one(small_images, here, monkeypatch):
    """The runs of a sweep share one process. Cycles of references would keep the model of the first."""
    models, alive, begin = [], [], TrainStep.__init__

    def watched(self, cfg, runtime, model, *rest):
        alive.extend(ref() is not None for ref in models)
        models.append(weakref.ref(model))
        begin(self, cfg, runtime, model, *rest)

    monkeypatch.setattr(TrainStep, "__init__", watched)
    for name in "ab":
        train_here(*SMALL, f"data.root={small_images}", f"name={name}", "max_steps=1")
    assert alive == [False]


def test_accumulation_changes_nothing(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "augment.mixup=0.8", "augment.cutmix=1.0", "max_steps=8")
    train_here(*common, "name=whole")
    train_here(*common, "name=parts", "micro_batch_size=8")
    a, b = losses(here / "outputs/whole"), losses(here / "outputs/parts")
    assert len(a) == 8
    assert max(abs(a[step] - b[step]) for step in a) < 1e-4


def test_without_mixing_a_micro_batch_may_be_smaller_than_a_mix_group(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "augment.mix_group=32", "max_steps=2")
    train_here(*common, "name=whole")
    train_here(*common, "name=parts", "micro_batch_size=4")
    assert "1 processes × 8 micro-batches" in (here / "outputs/parts/train.log").read_text()
    a, b = losses(here / "outputs/whole"), losses(here / "outputs/parts")
    assert max(abs(a[step] - b[step]) for step in a) < 1e-4


@pytest.mark.parametrize(
    "chosen",
    [
        ("amp=bf16",),
        *(
            pytest.param(chosen, marks=pytest.mark.slow)
            for chosen in (("amp=fp16", "ema=0.9"), ("channels_last=true",), ("model.grad_checkpointing=true",))
        ),
    ],
    ids=lambda chosen: chosen[0],
)
@on_devices
def test_each_precision_and_layout_trains_and_resumes(device, chosen, small_images, here):
    common = (*SMALL, *ALL_AUGMENTATION, *run_on(device), *chosen, f"data.root={small_images}", "name=a")
    train_here(*common, "output_dir=whole", "max_steps=8")
    train_here(*common, "output_dir=part", "max_steps=5")
    train_here(*common, "output_dir=part", "max_steps=8")
    a, b = checkpoint(here / "whole"), checkpoint(here / "part")
    assert a["stepper"]["scaler"] == b["stepper"]["scaler"]
    assert losses(here / "whole") == pytest.approx(losses(here / "part"), rel=tolerance(device), abs=0)
    assert same_tensors(a["model"], b["model"]) or device == "cuda"


def test_gradient_checkpointing_changes_no_loss(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "max_steps=4")
    train_here(*common, "name=plain")
    train_here(*common, "name=checkpointed", "model.grad_checkpointing=true")
    a, b = losses(here / "outputs/plain"), losses(here / "outputs/checkpointed")
    assert max(abs(a[step] - b[step]) for step in a) < 1e-6


@on_devices
def test_dali_trains_like_torch(device, small_images, here):
    common = (*SMALL, *run_on(device), f"data.root={small_images}", "max_steps=6")
    train_here(*common, "name=torch")
    train_here(*common, "name=dali", "data.backend=dali")
    a, b = losses(here / "outputs/torch"), losses(here / "outputs/dali")
    assert max(abs(a[step] - b[step]) for step in a) < 0.02


def test_any_model_of_timm_trains(small_images, here):
    small = [o for o in SMALL if not o.startswith("model.")]
    resnet = ("model=timm", "model.name=test_resnet", "recipe=plain")
    train_here(*small, f"data.root={small_images}", *resnet, "name=r", "max_steps=2")
    assert metrics(here / "outputs/r", "val")[-1]["images"] == 80


@on_devices
def test_profile_leaves_a_trace(device, small_images, here):
    train_here(*SMALL, *run_on(device), f"data.root={small_images}", "name=a", "max_steps=12", "profile=true")
    assert (here / "outputs/a/profile/trace.json").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.timeout(1200)
@on_devices
def test_compiled_follows_eager(device, small_images, here):
    common = (*SMALL, *run_on(device), *NO_LOCAL_NOISE, f"data.root={small_images}", "max_steps=5")
    common = (*common, *((f"amp={half_precision()}",) if device == "cuda" else ()))
    train_here(*common, "name=eager")
    train_here(*common, "name=compiled", "compile=true", "monitor.every=2")  # its hooks must not break the graph
    a, b = losses(here / "outputs/eager"), losses(here / "outputs/compiled")
    assert max(abs(a[step] - b[step]) for step in a) < (1e-4 if device == "cpu" else 0.05)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@on_devices
def test_a_run_goes_on_with_other_options_of_the_compiler(device, small_images, here):
    """``combo_kernels`` joins kernels on GPUs only; ``cpp_wrapper`` needs CUDA's toolkit there."""
    common = (*SMALL, *run_on(device), *NO_LOCAL_NOISE, f"data.root={small_images}")
    common = (*common, *((f"amp={half_precision()}",) if device == "cuda" else ()))
    train_here(*common, "name=eager", "max_steps=4")
    train_here(*common, "name=a", "max_steps=2")
    options = ["+compile_options.combo_kernels=true", "compile_mode=default"]
    if device == "cpu" or CUDA_HOME is not None:
        options.append("+compile_options.cpp_wrapper=true")
    train_here(*common, "name=a", "max_steps=4", "compile=true", *options)
    a, b = losses(here / "outputs/eager"), losses(here / "outputs/a")
    assert len(b) == 4 and max(abs(a[step] - b[step]) for step in a) < (1e-4 if device == "cpu" else 0.05)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quickstart_learns(here):
    """The accuracy that the README states. The time depends on the machine and is not tested."""
    out = run("train.py", "experiment=quickstart", cwd=here, timeout=1500)
    assert out.returncode == 0, out.stderr
    assert metrics(here / "outputs/quickstart", "val")[-1]["top1"] >= 86.0


@pytest.mark.slow
@pytest.mark.timeout(1000)
@on_devices
def test_a_full_size_model_takes_real_steps(device, here):
    """On a GPU with the defaults: compiled, with kernels, in bf16."""
    arguments = ("model=lipsformer_swin_tiny", "data=synthetic", "max_steps=3", f"device={device}", "batch_size=8")
    # Many CPUs compute in bf16 so slowly that three steps take minutes.
    precision = ("amp=fp32" if device == "cpu" else f"amp={half_precision()}",)
    out = run("train.py", *arguments, *precision, "log_every=1", cwd=here, timeout=900)
    assert out.returncode == 0, out.stderr
    assert ("compiled in" in out.stdout) == (device == "cuda"), out.stdout
    steps = losses(here / "outputs/lipsformer_swin_tiny")
    assert len(steps) == 3 and all(6.5 < loss < 7.3 for loss in steps.values())
