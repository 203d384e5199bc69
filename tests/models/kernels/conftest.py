"""Triton's kernels run on the GPU if there is one, else in Triton's interpreter, which is slow: the tests are small."""

import pytest
import torch


@pytest.fixture(autouse=True)
def triton_device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The device that runs the kernels. The kernels are imported by the first call, when the variable is set."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return torch.device("cpu")
