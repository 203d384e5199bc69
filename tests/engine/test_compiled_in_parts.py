"""Under DDP, torch compiles a network in parts, one for each bucket of gradients."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import models  # noqa: F401  (registers the models)
from engine.compiling import Compiled


@pytest.fixture
def one_process(tmp_path: Path):
    """A group of this process alone."""
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("stabilizer", ["sigma_reparam", "qk_norm"])
def test_every_parameter_gets_the_gradient_of_the_eager_network(stabilizer, one_process, monkeypatch):
    """sigma_reparam takes power iterations without gradients at the beginning of each pass."""
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda network, options, dynamic: real(network, backend="aot_eager", dynamic=dynamic)
    )
    torch._dynamo.reset()
    torch.manual_seed(0)
    sizes = {"embed_dim": 192, "depth": 3, "num_heads": 3, "img_size": 32, "num_classes": 5}
    model = timm.create_model("vit_preln_small", stabilizer=stabilizer, **sizes).train()
    eager = timm.create_model("vit_preln_small", stabilizer=stabilizer, **sizes).train()
    eager.load_state_dict(model.state_dict())
    parallel = DistributedDataParallel(model, bucket_cap_mb=1, gradient_as_bucket_view=True)
    compiler = SimpleNamespace(is_on=True, options={}, may_fall_back=False)
    network = Compiled(parallel, compiler, None, "default")  # type: ignore[arg-type]
    images = torch.randn(2, 3, 32, 32)
    for either in (network, eager):
        either(images).square().sum().backward()
    assert torch.is_grad_enabled()
    for (name, a), b in zip(model.named_parameters(), eager.parameters(), strict=True):
        assert a.grad is not None, name
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
