"""The theory of Pre-LN and Post-LN at initialisation (Xiong et al., ICML 2020, sections 3.2 and 3.3)."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import models  # noqa: F401  (registers the models)


def theory(position: str, depth: int, seed: int = 0, dim: int = 64) -> nn.Module:
    torch.manual_seed(seed)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": dim, "depth": depth, "num_classes": 10}
    return timm.create_model(f"vit_{position}ln_theory", **sizes)


def weight_gradients(position: str, depth: int, seeds: int, batches: int, dim: int = 64) -> torch.Tensor:
    """Gradient norm of each layer's second FFN weight, ``(depth,)``.

    Gradients are averaged over batches, and their norms over seeds.
    """
    norms = []
    for seed in range(seeds):
        model = theory(position, depth, seed, dim)
        for _ in range(batches):
            images, labels = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
            (F.cross_entropy(model(images), labels) / batches).backward()
        norms.append(torch.stack([block.mlp.fc2.weight.grad.norm() for block in model.blocks]))
    return torch.stack(norms).mean(0)


def log_slope(x: list[int], y: list[float]) -> float:
    """Exponent of the power law fitted to the points."""
    logs = torch.tensor([x, y], dtype=torch.float64).log()
    logs -= logs.mean(1, keepdim=True)
    return float((logs[0] * logs[1]).sum() / logs[0].square().sum())


def test_theory_init_has_the_assumed_weights_and_inputs():
    for position in ("pre", "post"):
        model = theory(position, 2)
        assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias") and "norm" not in name)
        assert not model.pos_embed.any() and model.cls_token.std().item() == pytest.approx(1, rel=0.3)
        for block in model.blocks:
            assert block.attn.num_heads == 1 and block.mlp.fc1.weight.shape == (64, 64)
            assert not block.attn.qkv.weight[:128].any()
            for weight in (block.attn.qkv.weight[128:], block.mlp.fc1.weight, block.mlp.fc2.weight):
                assert weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.1)
    wide = theory("pre", 1, dim=512)
    tokens = wide._pos_embed(wide.patch_embed(torch.randn(8, 3, 32, 32)))
    assert tokens.square().mean().item() == pytest.approx(1, rel=0.05)


def test_activations_have_the_size_of_the_theory():
    """|x|^2 / d is 3/2 before each block's last norm (Post-LN), and between 1 + l/2 and 1 + 3l/2 (Pre-LN)."""
    images = torch.randn(8, 3, 32, 32)
    for position in ("pre", "post"):
        sizes: list[float] = []
        model = theory(position, 8, dim=256).eval()
        for block in model.blocks:
            if position == "post":
                block.norm2.register_forward_hook(lambda _, x, __, to=sizes: to.append(x[0].square().mean().item()))
            else:
                block.register_forward_hook(lambda _, __, y, to=sizes: to.append(y.square().mean().item()))
        model(images)
        if position == "post":
            assert sizes == pytest.approx([1.5] * 8, rel=0.15)
        else:
            assert all(0.95 * (1 + depth / 2) < size < 1 + 1.5 * depth for depth, size in enumerate(sizes, 1))


@pytest.mark.slow
def test_the_last_layers_gradient_depends_on_depth_as_in_the_theory():
    """It does not depend on depth for Post-LN, and falls as 1 / sqrt(depth) for Pre-LN."""
    depths = [4, 16]
    last = {p: [weight_gradients(p, d, seeds=16, batches=2)[-1].item() for d in depths] for p in ("pre", "post")}
    assert -0.7 < log_slope(depths, last["pre"]) < -0.3
    assert -0.2 < log_slope(depths, last["post"]) < 0.2


def test_post_norm_shrinks_the_gradient_in_each_block_and_pre_norm_does_not():
    """In Post-LN the last norm of each block multiplies the gradient by sqrt(2/3). Pre-LN has no norm on that path.

    So in Post-LN the gradient of layer l has the factor (2/3)^((L - l) / 2). In Pre-LN it is at least that of the last
    layer.
    """
    images, labels = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
    kept: dict[str, list[float]] = {"pre": [], "post": []}
    for position, factors in kept.items():
        model = theory(position, 10, dim=256)
        for block in model.blocks:
            (block.norm2 if position == "post" else block).register_full_backward_hook(
                lambda _, below, above, to=factors: to.append((below[0].norm() / above[0].norm()).item())
            )
        F.cross_entropy(model(images.clone().requires_grad_()), labels).backward()
    carried = torch.tensor(kept["post"]).log().mean().exp().item()
    assert carried == pytest.approx((2 / 3) ** 0.5, rel=0.06)
    assert all(factor > 0.99 for factor in kept["pre"])


@pytest.mark.slow
def test_gradients_follow_the_theory_in_the_papers_protocol():
    """Depths 6 to 14, 8 batches, 10 seeds: the last layer's gradient at each depth, and all layers' at depth 14.

    From layer to layer Post-LN's gradient grows much more slowly than by the factor (3/2)^(1/2) of its norms, because
    the residual branches add to the gradient.
    """
    depths = [6, 8, 10, 12, 14]
    for position, slope, below in (("pre", -0.5, (1.5, 5.0)), ("post", 0.0, (0.1, 0.85))):
        gradients = [weight_gradients(position, depth, seeds=10, batches=8, dim=128) for depth in depths]
        assert log_slope(depths, [g[-1].item() for g in gradients]) == pytest.approx(slope, abs=0.22)
        assert below[0] < (gradients[-1][:4].mean() / gradients[-1][-4:].mean()).item() < below[1]
