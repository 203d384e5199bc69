"""torch.compile: which runs use it, how often it compiles, and what happens if the compiler fails."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter

from data import Batch, DataError, DeviceAugment
from engine.checkpoints.saved_model import open_trained
from engine.compiling import Compiler, training_mode
from engine.errors import UserError
from engine.evaluation.evaluate import evaluate_checkpoint
from engine.evaluation.scoring import score
from engine.log import log_to
from engine.options.settings import eval_settings
from engine.processes.distributed import World
from engine.runtime import Runtime
from tests.runs import NO_LOCAL_NOISE, SMALL, cached_settings, composed, losses, metrics, settings, train_here

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)  # choosing needs no real GPU
RESNET = ("model=timm", "model.name=resnet18", "recipe=plain")


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Graphs of other tests do not count here."""
    torch._dynamo.reset()


@pytest.fixture
def use(monkeypatch):
    """Make ``torch.compile`` use another backend, such as a counter."""
    real = torch.compile

    def use(backend: Callable[..., Any]) -> None:
        monkeypatch.setattr(
            torch, "compile", lambda network, options, dynamic: real(network, backend=backend, dynamic=dynamic)
        )

    return use


def compiler(*options: str, compile: str = "auto", device: torch.device = GPU) -> Compiler:
    return Compiler(replace(cached_settings("data=synthetic", *options), compile=compile), device)


def small_network() -> nn.Sequential:
    """A network with BatchNorm, for images of 8 pixels."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(144, 5))


@pytest.mark.parametrize("model", ["lipsformer_swin_tiny", "deit_tiny", "swin_tiny"])
def test_by_default_our_models_are_compiled_on_gpus_only(model):
    assert compiler(f"model={model}").is_on
    assert not compiler(f"model={model}", device=CPU).is_on
    assert not compiler(f"model={model}", "amp=fp32").is_on
    assert not compiler(f"model={model}", compile="false").is_on


def test_another_model_is_compiled_only_on_request(capsys):
    log_to(None, speaks=True)
    assert not compiler(*RESNET).is_on
    assert (
        "resnet18 runs without torch.compile, as it may not compile well: compile=true tries it"
        in capsys.readouterr().out
    )
    assert compiler(*RESNET, compile="true").is_on and compiler(*RESNET, compile="true", device=CPU).is_on
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224"]
)
def test_models_of_timm_that_are_compiled_by_default_are_one_graph(name):
    model = timm.create_model(name, drop_path_rate=0.1, num_classes=5)
    torch.compile(model, backend="eager", fullgraph=True)(torch.randn(2, 3, 224, 224)).sum().backward()


@pytest.mark.parametrize(("typed", "value"), [("true", "true"), ("True", "true"), ("FALSE", "false"), ("auto", "auto")])
def test_booleans_are_choices_too(typed, value):
    assert settings("data=synthetic", f"compile={typed}").compile == value


def test_a_boolean_in_a_file_is_a_choice_too():
    assert OmegaConf.to_object(OmegaConf.merge(composed("model=deit_tiny"), {"compile": False})).compile == "false"


@pytest.mark.slow
def test_a_run_compiles_once_to_train_and_once_to_evaluate(use, small_images, here, capsys):
    """Four steps, validated in batches of 64 and 16 images after every second one. The numbers are the eager ones."""
    common = (*SMALL, *NO_LOCAL_NOISE, f"data.root={small_images}", "batch_size=160", "ema=0.9")
    train_here(*common, "name=eager")
    use(counter := CompileCounter())
    train_here(*common, "name=compiled", "compile=true")
    assert counter.frame_count == 2
    said = capsys.readouterr().out
    assert said.count("compiled in ") == 2
    for size in (160, 64):
        assert said.count(f"compiling the model for {size} images at once: this takes a minute or two") == 1
    eager, compiled = here / "outputs/eager", here / "outputs/compiled"
    assert len(losses(eager)) == 4 and losses(compiled) == losses(eager)
    assert metrics(compiled, "val") == metrics(eager, "val")
    assert [line["images"] for line in metrics(compiled, "val")] == [80, 80]

    torch._dynamo.reset()
    typed = [
        f"checkpoint={compiled}/checkpoints/last.pt",
        "device=cpu",
        "max_workers=0",
        "compile=true",
        "eval.batch_size=64",
    ]
    trained = open_trained(typed[0].partition("=")[2])
    (scores,) = evaluate_checkpoint(eval_settings(composed(*typed), trained, typed), trained).values()
    assert counter.frame_count == 3 and scores.top1 == metrics(compiled, "val")[-1]["top1"] and scores.images == 80


def test_turns_of_training_and_evaluation_compile_nothing_new(use):
    """The same weights are trained and evaluated, so both graphs belong to one network."""
    use(counter := CompileCounter())
    network, wraps = small_network(), compiler(compile="true")
    trained, evaluated = wraps.wrap(network), wraps.wrap(network, pad_to=6)
    for _ in range(3):
        trained.train()(torch.randn(4, 3, 8, 8)).sum().backward()
        with torch.inference_mode():
            evaluated.eval()
            assert [len(evaluated(torch.randn(n, 3, 8, 8))) for n in (6, 2)] == [6, 2]
    assert counter.frame_count == 2


def test_every_size_of_a_training_batch_gets_its_own_graph(use):
    """Micro-batches may differ by a mix group. Padding would change BatchNorm; kernels for any size are slower."""
    use(counter := CompileCounter())
    network = compiler(compile="true").wrap(small_network())
    for count in (8, 6, 4, 8, 6, 4):
        network(torch.randn(count, 3, 8, 8)).sum().backward()
    assert counter.frame_count == 3


@pytest.mark.parametrize("sizes", [(6, 6, 2), (1,), (4,)])
def test_padding_changes_no_score(use, sizes):
    use(CompileCounter())
    network = small_network()
    network(torch.randn(32, 3, 8, 8))  # running statistics
    batches = [
        Batch(torch.randint(256, (n, 3, 8, 8), dtype=torch.uint8), torch.randint(5, (n,)), None, None) for n in sizes
    ]
    runtime, augment = Runtime(World(0, 1, 0, 1), CPU), DeviceAugment([0.5] * 3, [0.5] * 3, 5)
    shapes: list[Any] = []
    padded = score(
        compiler(compile="true").wrap(network, 6),
        batches,
        augment,
        runtime,
        None,
        lambda logits: shapes.append(len(logits)),
    )
    assert padded == score(network, batches, augment, runtime) and padded.images == sum(sizes)
    assert shapes == list(sizes)


def test_nothing_is_padded_without_a_compiler(use):
    """Padding costs time on a CPU."""
    network, images = small_network(), torch.randn(2, 3, 8, 8)
    assert compiler(compile="false").wrap(network, 64) is network
    use(fail)
    wrapped = compiler().wrap(network, 64)
    wrapped(images)  # the compiler fails here
    seen: list[int] = []
    network.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    assert len(wrapped(images)) == 2 and seen == [2]


def fail(*_: Any) -> Any:
    raise ValueError("no kernel\nand more lines")


FAILURES = {"forward": fail, "backward": aot_autograd(fw_compiler=lambda graph, _: graph, bw_compiler=fail)}


@pytest.mark.parametrize("backend", FAILURES.values(), ids=FAILURES)
def test_auto_runs_without_the_compiler_if_it_fails(backend, use, capsys):
    """Also if it fails in the backward pass: no gradient is counted twice. One warning, however many networks."""
    log_to(None, speaks=True)
    use(backend)
    network, wraps = small_network(), compiler()
    images = torch.randn(4, 3, 8, 8)
    gradients = []
    for form in (wraps.wrap(network), wraps.wrap(network), network):
        form(images).sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
        network.zero_grad()
    assert all(torch.equal(a, b) for found in gradients for a, b in zip(found, gradients[-1], strict=True))
    said = [line for line in capsys.readouterr().out.splitlines() if "cannot be compiled" in line]
    assert said == ["the model cannot be compiled (no kernel): it runs without torch.compile, as with compile=false"]


def test_a_machine_without_a_compiler_is_told_in_one_line():
    network = compiler(compile="true").wrap(small_network())
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(UserError) as refused:
        network(torch.randn(4, 3, 8, 8))
    assert str(refused.value).startswith("the model cannot be compiled (No working C++ compiler found")
    assert str(refused.value).endswith("): set compile=false") and "\n" not in str(refused.value)


def test_a_failure_after_the_first_success_does_not_end_a_run(use):
    use(CompileCounter())
    wraps = compiler(compile="true")
    network = small_network()
    wraps.wrap(network)(images := torch.randn(4, 3, 8, 8))
    use(fail)
    torch._dynamo.reset()
    assert wraps.wrap(network.eval())(images).equal(network(images)) and not wraps.is_on


def test_an_error_of_the_network_is_not_blamed_on_the_compiler(use):
    use(CompileCounter())

    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        compiler().wrap(Broken())(torch.randn(2, 3, 8, 8))


def on(device: torch.device, processes: int = 1) -> Runtime:
    return Runtime(World(0, processes, 0, processes), device, "bf16")


def test_cuda_graphs_add_no_gradients():
    cfg = settings("data=synthetic", "compile_mode=reduce-overhead")
    for device, micro_steps in ((GPU, 1), (CPU, 2)):
        assert training_mode(cfg, on(device), micro_steps) == "reduce-overhead"
    assert training_mode(replace(cfg, compile="false"), on(GPU), 2) == "reduce-overhead"  # it compiles nothing
    with pytest.raises(
        UserError, match="the gradients of 2 micro-batches: set compile_mode=max-autotune-no-cudagraphs"
    ):
        training_mode(cfg, on(GPU), 2)


def test_by_default_one_gpu_trains_with_cuda_graphs_where_they_work():
    cfg = cached_settings("data=synthetic")
    assert training_mode(cfg, on(GPU), 1) == "reduce-overhead"
    others = [training_mode(cfg, on(GPU), 2), training_mode(cfg, on(GPU, 2), 1), training_mode(cfg, on(CPU), 1)]
    assert others == ["default"] * 3 and compiler().mode == "default"


def test_options_of_the_compiler_are_added_to_those_of_the_mode(monkeypatch):
    given: list[dict[str, Any]] = []
    chosen = compiler("+compile_options.combo_kernels=true", "+compile_options.triton.max_tiles=2", compile="true")
    monkeypatch.setattr(torch, "compile", lambda network, options, dynamic: given.append(options))
    chosen.wrap(small_network(), mode="reduce-overhead")
    chosen.wrap(small_network())
    ours = {"combo_kernels": True, "triton.max_tiles": 2}
    assert given == [{"triton.cudagraphs": True} | ours, ours]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("combo_kernel=true", "torch's compiler has no option 'combo_kernel': did you mean combo_kernels"),
        ("qqqq=true", "torch's compiler has no option 'qqqq': print(torch._inductor.list_options()) lists all"),
        ("combo_kernels=3", "compile_options.combo_kernels=3 does not suit torch's compiler: Unexpected type"),
        ("triton.cudagraphs=true", "compile_options.triton.cudagraphs belongs to the mode: set compile_mode=reduce"),
    ],
)
def test_an_option_that_the_compiler_does_not_have_is_refused(option, message):
    with pytest.raises(UserError) as refused:
        compiler(f"+compile_options.{option}", compile="true")
    assert str(refused.value).startswith(message)
    assert not compiler(f"+compile_options.{option}", compile="false").is_on


def test_compiled_kernels_of_another_user_are_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert compiler(compile="true").is_on
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(DataError, match=f"{tmp_path} belongs to another user, number 12345, .* TORCHINDUCTOR_CACHE"):
        compiler(compile="true")
    assert not compiler(compile="false").is_on


def test_a_network_with_shared_statistics_trains_without_the_compiler_unless_asked(capsys):
    log_to(None, speaks=True)
    network = nn.SyncBatchNorm.convert_sync_batchnorm(small_network())
    assert compiler().wrap(network) is network
    assert "trains without torch.compile, because of SyncBatchNorm: compile=true tries it" in capsys.readouterr().out
    assert compiler().wrap(network, pad_to=8) is not network, "to evaluate, it is an ordinary BatchNorm"
    assert compiler(compile="true").wrap(network) is not network
