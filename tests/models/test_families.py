"""Every family of models learns: 20 steps of the real loop in each precision, eager, compiled, and on 2 processes."""

import copy
from statistics import mean

import pytest
import torch

from models import build_model
from tests.runs import NO_LOCAL_NOISE, PLAIN_IMAGES, SMALL, losses, run, settings, train_here
from tests.training import real_batches, twenty_losses

# Small configurations of the families for images of 32 pixels.
CSWIN = (
    *("model.embed_dim=16", "model.depths=[1,1]", "model.num_heads=[2,4]", "model.stripes=[2,4]"),
    *("data.crop=32", "data.resize=32"),
)
VIT = (
    *("model.patch_size=8", "model.embed_dim=24", "model.depth=2", "model.num_heads=3"),
    *("data.crop=32", "data.resize=32"),
)
FAMILIES = {
    "lipsformer_swin": ("model=lipsformer_swin_mini",),
    "lipsformer_swin, certified": ("model=lipsformer_swin_mini", "model.attention=certified", "model.epsilon=0.01"),
    "lipsformer_cswin": ("model=lipsformer_cswin_tiny", *CSWIN),
    "lipsformer_cswin, certified": ("model=lipsformer_cswin_tiny", *CSWIN, "model.attention=certified"),
    "cswin": ("model=cswin_tiny", *CSWIN),
    "vit": ("model=deit_tiny", *VIT),
    "vit, Post-LN": ("model=vit_postln_small", *VIT),
    "vit, convolutional stem": ("model=deit_small_convstem", *VIT, "model.stem_width=8"),
    "vit, QK-norm": ("model=deit_tiny", *VIT, "model.stabilizer=qk_norm"),
    "swin": (
        *("model=swin_tiny", "+model.kwargs={embed_dim:16,depths:[1,1],num_heads:[2,4],window_size:4,patch_size:2}"),
        *("data.crop=32", "data.resize=32"),
    ),
}
SWIN_SIZES = ("model.depths=[1,1]", "model.embed_dim=12", "model.num_heads=[1,2]")


def options(family: str) -> tuple[str, ...]:
    """The options of a small run of a family."""
    own = FAMILIES[family]
    shared = [option for option in SMALL if not option.startswith("model.")]
    sizes = SWIN_SIZES if own[0] == "model=lipsformer_swin_mini" else ()
    return (*shared, *own, *sizes, "ema=null", "output_dir=run")


@pytest.mark.parametrize("amp", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_falls_in_twenty_steps(family, amp, small_images, here):
    full_rate = ("epochs=20", "max_steps=20", "optim.lr=2e-3")
    train_here(*options(family), *NO_LOCAL_NOISE, *PLAIN_IMAGES, *full_rate, f"amp={amp}", f"data.root={small_images}")
    found = losses(here / "run")
    first, last = (mean(found[step] for step in steps) for steps in (range(1, 6), range(16, 21)))
    assert last < first - 0.03


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "amp"), [*((family, "fp32") for family in FAMILIES), ("lipsformer_swin", "bf16"), ("vit", "bf16")]
)
def test_a_compiled_model_learns_like_the_eager_model(family, amp, small_images):
    cfg = settings(*options(family), "model.drop_path_rate=0")
    model = build_model(cfg.model, 10, cfg.data.crop)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    # Only two batches, repeated. From any initial weights, the loss then falls by far more than the bound below.
    batches = real_batches(small_images, cfg.data.crop)[:2]
    eager_losses = twenty_losses(model, amp, batches, lr=2e-3)
    losses = twenty_losses(compiled, amp, batches, lr=2e-3)
    # Rounding differs, and every step increases the difference.
    same = {"fp32": (10, 2e-3), "bf16": (5, 3e-2)}
    steps, tolerance = same[amp]
    assert losses[:steps] == pytest.approx(eager_losses[:steps], abs=tolerance)
    assert mean(losses[-5:]) < mean(losses[:5]) - 0.05


@pytest.mark.slow
@pytest.mark.parametrize("family", ["lipsformer_cswin", "cswin"])
def test_two_processes_find_no_unused_parameter(family, small_images, here):
    out = run("train.py", *options(family), f"data.root={small_images}", "max_steps=3", cwd=here, processes=2)
    assert out.returncode == 0, out.stderr
    assert sorted(losses(here / "run")) == [1, 2, 3]
