"""The spectral norms that the monitor asks an optimizer for."""

import pytest
import torch
from torch import Tensor, nn

from optim import AdamW2, OptimError, spectral_norms
from tests.monitored import read


def test_spectral_norms_do_not_change_the_optimizer():
    *_, optimizer = read(build=AdamW2)
    before = [v.clone() for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    spectral_norms(optimizer)
    after = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("named", [False, True])
def test_spectral_norms_need_our_param_groups(named):
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.named_parameters() if named else layer.parameters(), lr=0.1)
    with pytest.raises(OptimError, match="param_groups"):
        spectral_norms(optimizer)
