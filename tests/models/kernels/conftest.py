"""Triton's kernels run on the GPU if there is one, else in Triton's interpreter, which is slow: the tests are small."""

import pytest
import torch


@pytest.fixture
def triton_device() -> torch.device:
    """The device that runs the kernels; see the top of ``tests/conftest.py``."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
