"""The moving average of the weights (engine/moving_average.py), compared with the formula."""

import copy

import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn

from engine.moving_average import MovingAverage

DECAY = 0.9


def drawn(model: nn.Module) -> None:
    """Give a model new weights and buffers, as an optimizer step does."""
    with torch.no_grad():
        for value in {id(value): value for value in model.state_dict(keep_vars=True).values()}.values():
            value.copy_(torch.randint(100, value.shape))


def test_a_weight_that_layers_share_moves_once_in_a_step():
    """timm's CoaT shares its convolutions for positions between all blocks of a stage."""
    model = timm.create_model("coat_lite_tiny", num_classes=3, img_size=32)
    average = MovingAverage(model, DECAY)
    expected = None
    for step in (1, 2, 3):
        drawn(model)
        average.update(model, step)
        now = copy.deepcopy(model.state_dict())
        expected = now if expected is None else {k: DECAY * expected[k] + (1 - DECAY) * now[k] for k in now}
    torch.testing.assert_close(average.module.state_dict(), expected)


def test_without_shared_weights_it_is_timms_average_bit_for_bit():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(4, 4))
    ours, timms = MovingAverage(model, DECAY), ModelEmaV3(model, decay=DECAY)
    for step in range(1, 5):
        drawn(model)
        ours.update(model, step)
        timms.update(model, step=step)
    assert not ours.module.training
    assert all(map(torch.equal, ours.module.state_dict().values(), timms.module.state_dict().values()))
