"""Every family of models learns: 20 steps of the real loop in each precision, eager, compiled, and on 2 processes."""

import copy
from statistics import mean

import pytest
import torch

from models import FAMILIES, build_model
from tests.families import FORMS, SMALL
from tests.runs import NO_LOCAL_NOISE, PLAIN_IMAGES, checkpoint, losses, run, same_tensors, settings, train_here
from tests.runs import SMALL as SMALL_RUN
from tests.training import real_batches, twenty_losses

RUNS = {form: small.overrides() for form, small in FORMS.items()} | {
    "swin": (
        *("model=swin_tiny", "+model.kwargs={embed_dim:16,depths:[1,1],num_heads:[2,4],window_size:4,patch_size:2}"),
        *("data.crop=32", "data.resize=32"),
    ),
}


def options(form: str, folder: str = "run") -> tuple[str, ...]:
    """The options of a small run in a folder."""
    shared = [option for option in SMALL_RUN if not option.startswith("model.")]
    return (*shared, *RUNS[form], "ema=null", f"output_dir={folder}")


def test_every_family_has_a_small_form():
    missing = ", ".join(FAMILIES.keys() - SMALL.keys() - {"timm"})
    assert not missing, f"add a line for {missing} to SMALL in tests/families.py: the tests of all families take it"


@pytest.mark.parametrize("amp", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", RUNS)
def test_the_loss_falls_in_twenty_steps(form, amp, small_images, here):
    full_rate = ("epochs=20", "max_steps=20", "optim.lr=2e-3")
    train_here(*options(form), *NO_LOCAL_NOISE, *PLAIN_IMAGES, *full_rate, f"amp={amp}", f"data.root={small_images}")
    found = losses(here / "run")
    first, last = (mean(found[step] for step in steps) for steps in (range(1, 6), range(16, 21)))
    assert last < first - 0.03


@pytest.mark.slow
@pytest.mark.parametrize("form", RUNS)
def test_a_model_is_one_graph_that_learns_like_the_eager_model(form, small_images):
    """In float32, with the kernels of the eager model; what inductor makes of such a graph is tested below."""
    eager_losses, losses = compiled_and_eager(form, "fp32", small_images, backend="aot_eager")
    assert losses == pytest.approx(eager_losses, abs=1e-3)
    assert mean(losses[-5:]) < mean(losses[:5]) - 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "amp", "steps", "tolerance"), [("lipsformer_swin", "bf16", 5, 3e-2), ("vit", "fp32", 10, 2e-3)]
)
def test_a_compiled_model_learns_like_the_eager_model(form, amp, steps, tolerance, small_images):
    """Rounding differs, and every step increases the difference."""
    eager_losses, losses = compiled_and_eager(form, amp, small_images, backend="inductor")
    assert losses[:steps] == pytest.approx(eager_losses[:steps], abs=tolerance)
    assert mean(losses[-5:]) < mean(losses[:5]) - 0.05


def compiled_and_eager(form, amp, images, backend):
    """The losses of twenty steps without and with compilation.

    There are only two batches, repeated. From any initial weights, the loss then falls by far more than 0.05.
    """
    cfg = settings(*options(form), "model.drop_path_rate=0")
    model = build_model(cfg.model, 10, cfg.data.crop)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend=backend)
    batches = real_batches(images, cfg.data.crop)[:2]
    return [twenty_losses(each, amp, batches, lr=2e-3) for each in (model, compiled)]


@pytest.mark.slow
@pytest.mark.parametrize("form", RUNS)
def test_every_family_goes_on_where_it_stopped(form, small_images, here):
    """Bit for bit, in the middle of an epoch, with stochastic depth."""
    common = (f"data.root={small_images}", "model.drop_path_rate=0.3", "optim.lr=1e-3")
    train_here(*options(form, "whole"), *common, "max_steps=12")
    for last in (7, 12):
        train_here(*options(form, "part"), *common, f"max_steps={last}")
    assert same_tensors(*(checkpoint(here / folder)["model"] for folder in ("whole", "part")))
    assert losses(here / "whole") == losses(here / "part")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["lipsformer_cswin", "cswin", "vit5", "vit, DyT", "vit, fixed positions"])
def test_two_processes_find_no_unused_parameter(form, small_images, here):
    chosen = (*options(form), "recipe=plain")  # the recipe of ViT-5 is an experiment
    out = run("train.py", *chosen, f"data.root={small_images}", "max_steps=3", cwd=here, processes=2)
    assert out.returncode == 0, out.stderr
    assert sorted(losses(here / "run")) == [1, 2, 3]
