"""What a training step asks of a GPU. The limits are those that docs/measurements.md reports."""

from pathlib import Path

import pytest
import timm

import models  # noqa: F401  (registers the models)
from scripts.bench.step_cost import CostCounter, milliseconds, traced
from scripts.bench.trace_step import by_part
from tests.runs import run

OPTIONS = {"batch_size": 128, "amp": "bf16", "optim": "adamw", "kernels": "triton"}


def step_of(name: str, side: int = 224, **options) -> CostCounter:
    sized = {} if side == 224 else {"img_size": side}
    return traced(timm.create_model(name, drop_path_rate=0.2, **sized), side, **(OPTIONS | options))


@pytest.mark.slow
def test_a_step_of_lipsformer_swin_tiny_moves_few_bytes_with_few_launches() -> None:
    """Without the kernels of this project it may move a quarter more."""
    for kernels, launches, gigabytes in (("triton", 1805, 88), ("torch", 2453, 106)):
        cost = by_part(step_of("lipsformer_swin_tiny", kernels=kernels))["all", ""]
        assert cost.launches <= launches
        assert cost.bytes <= gigabytes * 1e9


@pytest.mark.slow
def test_adamw2_launches_at_most_1500_operations() -> None:
    counter = step_of("lipsformer_swin_tiny", optim="adamw2", batch_size=2)
    assert by_part(counter)["optimizer", ""].launches <= 1500


@pytest.mark.slow
def test_the_parts_add_up_to_the_whole() -> None:
    counter = step_of("deit_tiny_patch16_224", batch_size=2)
    *parts, whole = by_part(counter).values()
    assert sum(part.launches for part in parts) == whole.launches == len(counter.operations) + _further(counter)
    times = [milliseconds(counter, "H100", *part) for part in by_part(counter)]
    assert sum(times[:-1]) == pytest.approx(times[-1])


@pytest.mark.slow
def test_larger_images_cost_more() -> None:
    """576 patches instead of 196 in every token-wise layer."""
    small, large = (by_part(step_of("deit_tiny_patch16_224", side, batch_size=2))["all", ""] for side in (224, 384))
    assert 576 / 196 < large.flops / small.flops < (576 / 196) ** 2


def _further(counter) -> int:
    """Launches beyond one for each operation, such as those of a foreach operation over many tensors."""
    return sum(operation.cost.launches - 1 for operation in counter.operations)


@pytest.mark.slow
def test_the_command_prints_a_table_for_each_model(tmp_path: Path) -> None:
    names = ("deit_tiny_patch16_224", "--vs", "resnet18")
    done = run("scripts/bench/trace_step.py", *names, "--batch-size", "2", "--operations", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("| all |") for line in done.stdout.splitlines()) == 2
    assert done.stdout.count("| operation |") == 2
