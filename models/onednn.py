"""When to compute by oneDNN's convolutions, the fastest arithmetic that PyTorch has on CPUs."""

import torch
from torch import Tensor

_AVAILABLE = torch.backends.mkldnn.is_available()  # asked once: torch.compile cannot ask


def suits_onednn(x: Tensor) -> bool:
    """Whether ``x`` is best convolved by oneDNN: on a CPU, but not in float64, which it does not know.

    Exported and scripted programs keep the plain operations, which every runtime has.
    """
    if torch.jit.is_scripting():  # the script compiler reads no further
        return False
    else:
        return _AVAILABLE and x.device.type == "cpu" and x.dtype != torch.float64 and not torch.compiler.is_exporting()
