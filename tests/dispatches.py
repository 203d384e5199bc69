"""Modes that count operations, and refuse those for which the host waits for a device."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class Dispatches(TorchDispatchMode):
    """Counts operations. Raises an error if one reads a number back to the host, or needs values to continue.

    Args:
        on_host: returns the tensors that are meant to be on the host, in a test that runs on a CPU. They may be read.
    """

    READS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "item")

    def __init__(self, on_host: Callable[[], Iterable[Tensor]] = tuple) -> None:
        super().__init__()
        self.count, self.on_host = 0, on_host

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        by_mask = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in indices)
        reads = name in self.READS and not any(args[0] is tensor for tensor in self.on_host())
        assert not reads and not by_mask, f"{name} makes the host wait for the device"
        found = operation(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_"):
            devices = {x.device.type for x in (args[0], args[1] if name == "copy_" else found)}
            assert len(devices) == 1, "a copy from device to device"
        self.count += 1
        return found


class NoHostCopies(TorchFunctionMode):
    """Raises an error at the methods that copy a whole tensor to the host. On a CPU they are no operations."""

    COPIES = (Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.__array__)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        assert function not in self.COPIES, f"{function.__name__} makes the host wait for the device"
        return function(*args, **(kwargs or {}))
