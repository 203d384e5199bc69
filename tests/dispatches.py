"""A mode that counts operations, and refuses those for which the host waits for a device."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Dispatches(TorchDispatchMode):
    """Counts operations. Raises an error if one reads a number back to the host, or needs values to continue."""

    READS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "item")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        by_mask = name.startswith("index") and any(x is not None and x.dtype == torch.bool for x in args[1])
        assert name not in self.READS and not by_mask, f"{name} makes the host wait for the device"
        found = operation(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_"):
            devices = {x.device.type for x in (args[0], args[1] if name == "copy_" else found)}
            assert len(devices) == 1, "a copy from device to device"
        self.count += 1
        return found
