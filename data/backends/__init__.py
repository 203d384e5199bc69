"""Backends make uint8 batches from crops: they read, decode, crop, resize and mirror. They draw no random numbers."""

import importlib.util
from collections.abc import Callable, Generator, Iterator
from typing import Protocol

import torch
from torch import Tensor

from data.concurrency.waiting import no_check
from data.config import DataConfig
from data.errors import BadImage, DataError, in_one_line
from data.index.headers import BROKEN, decoded
from data.planning.crops import Crops
from data.sources import EncodedSource, Source, source_kind

BACKENDS = ("dali", "torch", "synthetic")


class Backend(Protocol):
    """Makes batches of one data set."""

    def batches(
        self, requests: Iterator[Crops], look: Callable[[], object] = no_check
    ) -> Generator[Tensor, None, None]:
        """One uint8 batch ``(n, 3, side, side)`` for each request, in their order.

        While the backend waits, it calls ``look`` about once a second; ``look`` may raise to stop the waiting.
        Requests are taken ahead of the batches that are returned, so that work continues in the background. A batch
        is on the backend's device or in host memory.

        Raises:
            BadImage: if an image cannot be read or decoded.
            DataError: if batches cannot be made for another reason.
        """
        ...


def has_dali() -> bool:
    """Whether NVIDIA DALI is installed. It is not imported, because that takes seconds."""
    return all(importlib.util.find_spec(name) is not None for name in ("nvidia", "nvidia.dali"))


def resolve_backend(cfg: DataConfig) -> str:
    """The backend that ``data.backend`` selects on this machine.

    ``auto`` is DALI, which is faster on GPU and CPU (``scripts/bench/``), or torch if DALI is not installed.

    Raises:
        DataError: if DALI is asked for but not installed.
    """
    only = source_kind(cfg, cfg.split).backend
    if only is not None:
        return only
    if cfg.backend == "auto":
        return "dali" if has_dali() else "torch"
    if cfg.backend == "dali" and not has_dali():
        raise DataError("data.backend=dali needs NVIDIA DALI: install requirements.txt, or set data.backend=torch")
    return cfg.backend


def build_backend(
    kind: str,
    source: Source,
    cfg: DataConfig,
    device: torch.device,
    workers: int,
    max_batch: int,
    processes: int = 1,
) -> Backend:
    """Build a backend.

    Args:
        kind: ``"dali"``, ``"torch"`` or ``"synthetic"``.
        source: the images.
        cfg: the crop size and more.
        device: where the model is; DALI decodes there, and synthetic images are made there.
        workers: most threads or processes to use.
        max_batch: number of images in the largest request.
        processes: number of processes of this run on this machine.

    Raises:
        DataError: if the backend is unknown or cannot make these images, DALI cannot be imported, or this machine has
            too little shared memory.
    """
    if kind == "synthetic":
        from data.backends.synthetic import SyntheticBackend

        return SyntheticBackend(cfg, device)
    if kind not in BACKENDS:
        raise DataError(f"data.backend={kind} is unknown: choose auto, dali or torch")
    if not isinstance(source, EncodedSource):
        raise DataError(f"data.backend={kind} decodes files, but data={cfg.name} has none: set data.backend=auto")
    if kind == "dali":
        return _dali(source, cfg, device, workers, max_batch)
    from data.backends.torch_backend import TorchBackend

    return TorchBackend(source, cfg, device, workers, max_batch, processes)


def _dali(source: EncodedSource, cfg: DataConfig, device: torch.device, workers: int, max_batch: int) -> Backend:
    """Build the backend of DALI, which is imported here because that takes seconds and needs the package.

    Raises:
        DataError: if it cannot be imported, for example because it lacks a library of CUDA.
    """
    try:
        from data.backends.dali_backend import DaliBackend
    except (ImportError, OSError) as error:
        raise DataError(
            f"NVIDIA DALI is installed and cannot be imported ({in_one_line(error)}): install requirements.txt anew, "
            "or set data.backend=torch"
        ) from error
    return DaliBackend(source, cfg, device, workers, max_batch)


def unreadable(source: EncodedSource, crops: Crops, cause: BaseException) -> BadImage:
    """The error that names the bad image of a failed request. It is found by reading the images one by one.

    Its row is ``None`` if all of them can be read now.
    """
    index, advice = source.index, source.advice
    for row in crops.index.tolist():
        name = source.name(row)
        try:
            image = decoded(source.read(row))
            if (image.height, image.width) != (index.heights[row], index.widths[row]):
                return BadImage(f"{name} has changed since the index was written: {advice.changed}", row)
        except BROKEN as error:
            again = "then run the same command again to continue"
            return BadImage(f"{name} cannot be decoded ({in_one_line(error)}): {advice.in_run}, {again}", row)
    first = source.name(int(crops.index[0]))
    return BadImage(f"a batch that holds {first} could not be decoded: {in_one_line(cause)}", None)
