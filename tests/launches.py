"""Counts what a program asks a GPU to do. No GPU is needed: fake tensors have shapes and a device, but no values."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WITHOUT_LAUNCH = ("device", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


class Launches(TorchDispatchMode):
    """Counts the operations on a GPU that start a kernel or a copy, by name. Views and allocations do not.

    Copies to the host are refused, because the host waits for them. A few operations start more than one kernel (such
    as a cumulative sum of long rows); each counts once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        given, made = (
            [leaf.is_cuda for leaf in tree_leaves(part) if isinstance(leaf, Tensor)] for part in ((args, kwargs), out)
        )
        if any(given + made) and not func.is_view and name not in WITHOUT_LAUNCH:
            assert all(made), f"{name} copies to the host"
            self.counts[name] += 1
        return out


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Tensors made on the device ``cuda`` are fake. An operation that needs values on the host raises an error."""
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "pin_memory", lambda tensor: tensor)  # pages are pinned for a real GPU only
        generator = torch.Generator
        patch.setattr(torch, "Generator", lambda device: generator())  # a GPU's generator needs a real GPU
        yield
