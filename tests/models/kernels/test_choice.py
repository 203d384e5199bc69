"""When layers use the Triton kernel."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import models  # noqa: F401
from models.errors import ModelError
from models.kernels import choice, set_kernels, wants_triton
from models.layers import WeightedResidual

MAP = torch.zeros(1, 2, 2, 4)
SMALL = {"img_size": 56, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "num_classes": 3}


def test_training_on_a_cpu_uses_plain_operations():
    assert not wants_triton("auto", MAP)


def test_a_wanted_kernel_serves_training_in_three_precisions():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert wants_triton("triton", MAP.to(dtype))
    assert not wants_triton("triton", MAP.double())
    assert not wants_triton("torch", MAP)
    with torch.no_grad():
        assert not wants_triton("triton", MAP)


def test_traced_and_exported_programs_keep_plain_operations():
    layer = WeightedResidual(nn.Identity(), 4, 0.5)
    layer.kernels = "triton"
    inputs = (MAP, torch.ones(4), torch.zeros(4))
    graphs = [torch.fx.symbolic_trace(layer).graph, torch.export.export(layer, inputs).graph]
    assert not any("coldstart" in str(node.target) for graph in graphs for node in graph.nodes)


def test_a_machine_on_which_triton_fails_uses_plain_operations(monkeypatch: pytest.MonkeyPatch):
    def fail(*_):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(choice, "suits_triton", lambda device: True)
    monkeypatch.setattr(choice, "_milliseconds", fail)
    with pytest.warns(UserWarning, match="plain operations are used: Failed to find C compiler"):
        assert not wants_triton("auto", torch.zeros(1, 2, 2, 5))


def test_all_layers_of_a_model_get_the_choice():
    model = timm.create_model("lipsformer_swin_tiny", **SMALL)
    set_kernels(model, "torch")
    chosen = [module.kernels for module in model.modules() if hasattr(module, "kernels")]
    assert chosen and set(chosen) == {"torch"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_triton_without_a_gpu_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ModelError, match=r"model\.kernels=triton needs the package triton and an NVIDIA GPU"):
        set_kernels(nn.Identity(), "triton")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lipsformer_swin_tiny", "lipsformer_cswin_tiny"])
def test_a_model_trains_with_kernels_as_with_plain_operations(name: str, triton_device: torch.device):
    """The same losses and gradients, with stochastic depth."""
    torch.manual_seed(0)
    options = SMALL | ({"stripes": (1, 7), "num_heads": (2, 4)} if "cswin" in name else {})
    model = timm.create_model(name, drop_path_rate=0.5, **options).to(triton_device).train()
    images, found = torch.randn(2, 3, 56, 56, device=triton_device), []
    for kernels in ("torch", "triton"):
        set_kernels(model, kernels)
        torch.manual_seed(1)
        loss = model(images).square().sum()
        model.zero_grad()
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(plain, fused, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from models.kernels import triton_norm

FLOATS = {"weight", "bias", "scale", "drop", "sums"}
MAPS = {"x", "grad", "grad_x", "branch", "grad_branch", "out"}


def build(kernel, maps, capability, **constants):
    kinds = {name: "i32" for name in kernel.arg_names} | {"gain": "fp32"}
    kinds |= {name: "*fp32" for name in FLOATS} | {name: "*" + maps for name in MAPS}
    kinds |= {name: "constexpr" for name in constants}
    source = ASTSource(kernel, {name: kinds[name] for name in kernel.arg_names}, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]


for capability in (80, 90):
    for maps in ("bf16", "fp16", "fp32"):
        for kernel in (triton_norm._forward, triton_norm._backward):
            build(kernel, maps, capability, T=32, C=128)
"""


@pytest.mark.slow
def test_the_kernels_compile_for_ampere_and_hopper(monkeypatch: pytest.MonkeyPatch):
    """Triton compiles to machine code without a GPU."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", COMPILE], cwd=root, check=True)
