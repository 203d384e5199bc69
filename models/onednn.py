"""When to use oneDNN's convolutions, the fastest operations that PyTorch has on CPUs."""

import torch
from torch import Tensor

_AVAILABLE = torch.backends.mkldnn.is_available()  # called at import, because torch.compile cannot trace the call


def suits_onednn(x: Tensor) -> bool:
    """Whether to convolve ``x`` with oneDNN: yes on a CPU, but not in float64, which oneDNN does not support.

    Exported and scripted programs keep the plain operations, which every runtime supports.
    """
    if torch.jit.is_scripting():  # TorchScript does not compile the other branch
        return False
    else:
        return _AVAILABLE and x.device.type == "cpu" and x.dtype != torch.float64 and not torch.compiler.is_exporting()
