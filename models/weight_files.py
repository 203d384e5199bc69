"""Reading files of weights, whoever wrote them and without running what they hold."""

import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from models.errors import ModelError

# Settings that authors pickle beside the weights. They become a plain OrderedDict, which torch builds from any file
# anyway, so that nothing more is trusted; torch fills no other subclass of dict.
STAND_INS: list[Any] = [(OrderedDict, "yacs.config.CfgNode"), (OrderedDict, "argparse.Namespace")]
# How files begin that people name in place of weights, and what to do.
OTHERS = {
    b"version https://git-lfs": "it is a pointer of Git LFS, not the file itself: run git lfs pull",
    b"\x1f\x8b": "it is packed by gzip: unpack it with gunzip",
    b"<": "it is a page of HTML or XML, perhaps in place of a failed download: download it again",
    b"{": "it is a text of JSON: name the file of weights itself",
    b"\x93NUMPY": "it is an array of NumPy: save the weights with torch.save or safetensors",
    b"\x89HDF": "it is a file of HDF5: save the weights with torch.save or safetensors",
}
ZIP = b"PK\x03\x04"


class _Unfit(Exception):
    """The file holds no weights or is damaged; the message says how."""


def read_file(path: str | Path) -> Any:
    """The content of a ``.safetensors`` or torch file, on the CPU: tensors, numbers, text and containers of them.

    What a file is, its content says, and not its name.

    Raises:
        ModelError: if the file is missing, damaged, or names any code but the harmless.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelError(f"{path} is a folder: name a file of weights in it")
    if not path.is_file():
        raise ModelError(f"there is no file {path}: name a file of weights")
    try:
        return _read(path)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise ModelError(f"{path} cannot be read: {_reason(error)}") from error


def _read(path: Path) -> Any:
    with open(path, "rb") as file:
        head = file.read(32)
    if not head:
        raise _Unfit("it is damaged or holds no weights (it is empty)")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return safetensors.torch.load_file(path)
    for start, what in OTHERS.items():
        if head.startswith(start):
            raise _Unfit(what)
    if head.startswith(ZIP):
        _check_sums(path)
    # A file, not its path: torch would go by the name.
    with open(path, "rb") as file, torch.serialization.safe_globals(STAND_INS):
        return torch.load(file, map_location="cpu", weights_only=True)


def _check_sums(path: Path) -> None:
    """Compare the content of a zip archive with the checksums in it, which torch writes and does not read."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if all(name.endswith(".npy") for name in names):
            raise _Unfit("it holds arrays of NumPy: save the weights with torch.save or safetensors")
        if any("/code/" in name for name in names):
            raise _Unfit("it is an archive of TorchScript, which is code and is not loaded: save the weights alone")
        # torch can be told to write none (set_crc32_options): all are 0 then.
        has_sums = any(info.CRC for info in archive.infolist())
        if has_sums and (bad := archive.testzip()):
            raise _Unfit(f"it is damaged, for {bad} in it differs from its checksum: take another copy of the file")


def _reason(error: Exception) -> str:
    """One line of the many of an error; torch's own advice, to trust the file, is left out."""
    message = str(error)
    if isinstance(error, _Unfit):
        return message
    if match := re.search(r"GLOBAL (\S+)", message):
        return f"it holds {match[1]}, which may run code and is not loaded: save the weights alone"
    if "Unsupported operand" in message or "magic number" in message:
        message = "torch.save did not write it"
    elif match := re.search(r"WeightsUnpickler error:\s*(.+)", message):
        message = match[1]
    line = (getattr(error, "strerror", None) or message or type(error).__name__).splitlines()[0]
    return f"it is damaged or holds no weights ({'torch cannot read it' if 'weights_only' in line else line})"
