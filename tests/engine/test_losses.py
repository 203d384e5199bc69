"""The training losses against timm's, and in a run."""

import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy

from engine.errors import UserError
from engine.losses import binary_cross_entropy, soft_cross_entropy, training_loss
from tests.runs import PLAIN_IMAGES, SMALL, losses, settings, train_here

IMAGES, CLASSES = 16, 10


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def logits(request) -> torch.Tensor:
    return torch.randn(IMAGES, CLASSES, generator=torch.Generator().manual_seed(0)).to(request.param)


@pytest.fixture(params=[0.1, 0.0], ids=["smoothed", "unsmoothed"])
def outputs(logits, request) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the targets of mixed images. Without label smoothing, most of them are 0."""
    labels = torch.randint(CLASSES, (IMAGES,), generator=torch.Generator().manual_seed(1))
    return logits, mixup_target(labels, CLASSES, 0.3, request.param)


def test_cross_entropy_is_the_sum_of_timms(outputs) -> None:
    logits, targets = outputs
    loss = soft_cross_entropy(logits, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(IMAGES * SoftTargetCrossEntropy()(logits.float(), targets).item(), rel=1e-5)


@pytest.mark.parametrize("sum_classes", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.0, 0.2])
def test_binary_cross_entropy_is_the_sum_of_timms(outputs, threshold, sum_classes) -> None:
    logits, targets = outputs
    loss = binary_cross_entropy(logits, targets, threshold, sum_classes)
    theirs = BinaryCrossEntropy(smoothing=0.0, target_threshold=threshold, sum_classes=sum_classes)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(IMAGES * theirs(logits.float(), targets).item(), rel=1e-5)


def test_the_options_choose_the_loss(outputs) -> None:
    logits, targets = outputs
    assert training_loss(settings(*SMALL, "data.root=.")) is soft_cross_entropy
    chosen = training_loss(settings(*SMALL, "data.root=.", "loss=bce", "bce_target_thresh=0.2", "bce_sum=true"))
    assert torch.equal(chosen(logits, targets), binary_cross_entropy(logits, targets, 0.2, True))


@pytest.mark.parametrize("option", ["bce_sum=true", "bce_target_thresh=0.1"])
def test_options_of_another_loss_are_refused(option) -> None:
    with pytest.raises(UserError, match="belong to loss=bce, but loss=ce: add loss=bce"):
        settings(*SMALL, "data.root=.", option)


def test_a_run_learns_with_it_in_any_micro_batches(small_images, here) -> None:
    options = (*SMALL, *PLAIN_IMAGES, f"data.root={small_images}", "loss=bce", "optim.lr=4e-3")
    train_here(*options, "name=whole", "max_steps=20")
    train_here(*options, "name=parts", "max_steps=5", "micro_batch_size=8")
    whole, parts = (losses(here / "outputs" / name) for name in ("whole", "parts"))
    assert whole[20] < 0.6 * whole[1]
    assert [parts[step] for step in range(1, 6)] == pytest.approx([whole[step] for step in range(1, 6)], rel=1e-3)
