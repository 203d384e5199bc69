"""The exceptions for mistakes of the user and for runs that end early."""

import re

import torch

from data import DataError
from models import ModelError
from optim import OptimError


class UserError(ValueError):
    """The settings do not work. The message is one line that says what is wrong and what to do."""


class RunStopped(Exception):
    """The run ended early, and not because of a mistake in the command.

    Args:
        message: one line that says why, and how to continue.
        exit_code: exit code of the process.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def reason(error: BaseException) -> str:
    """Return one line that says why something failed. If a system error is the cause, return the system's message."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


# What the driver, cuBLAS, cuDNN and Triton say. Their memory does not come from torch's allocator.
NO_MEMORY = re.compile(
    r"(?:CUDA(?: driver)? error|Triton Error \[CUDA\]): out of memory|_STATUS_ALLOC_FAILED|_DEVICE_ALLOCATION_FAILED"
)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU has too little memory. Such an error need not be torch's own."""
    said = isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None
    return said or isinstance(error, torch.OutOfMemoryError)


def lacks_host_memory(error: BaseException) -> bool:
    """Whether an error says that the host has too little memory. torch raises a plain RuntimeError then."""
    return isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


USER_ERRORS = (UserError, DataError, ModelError, OptimError)
