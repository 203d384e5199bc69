"""Triton's kernels run on the GPU if there is one, else in Triton's interpreter, which is slow: the tests are small."""

import pytest
import torch


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu) if torch.cuda.is_available() else "cpu"])
def triton_device(request: pytest.FixtureRequest) -> torch.device:
    """The device that runs the kernels; see the top of ``tests/conftest.py``."""
    return torch.device(request.param)
