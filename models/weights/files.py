"""Read weight files from any source without running code in them."""

import re
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from models.errors import ModelError

# Classes of the settings that authors pickle together with the weights. They are read as OrderedDict. torch allows
# OrderedDict in every file, so this trusts no additional code. torch cannot fill any other subclass of dict.
STAND_INS: list[Any] = [(OrderedDict, "yacs.config.CfgNode"), (OrderedDict, "argparse.Namespace")]
# First bytes of other files that users pass by mistake, and what to do.
OTHERS = {
    b"version https://git-lfs": "it is a Git LFS pointer, not the file itself: run git lfs pull",
    b"\x1f\x8b": "it is compressed with gzip: unpack it with gunzip",
    b"<": "it is an HTML or XML page, perhaps from a failed download: download it again",
    b"{": "it is a JSON file: give the path of the weight file",
    b"\x93NUMPY": "it is a NumPy array: save the weights with torch.save or safetensors",
    b"\x89HDF": "it is an HDF5 file: save the weights with torch.save or safetensors",
}
ZIP = b"PK\x03\x04"


class _Unfit(Exception):
    """The file holds no weights or is damaged. The message says why."""


def read_file(path: str | Path) -> Any:
    """The content of a ``.safetensors`` or torch file, on the CPU: tensors, numbers, text and containers of them.

    The format is detected from the content and not from the file name.

    Raises:
        ModelError: if the file is missing or damaged, or refers to code that torch does not consider safe.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelError(f"{path} is a folder: give the path of a weight file in it")
    if not path.is_file():
        raise ModelError(f"there is no file {path}: give the path of a weight file")
    try:
        return _read(path)
    except Exception as error:  # torch and safetensors raise many kinds of exceptions for a damaged file
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
    # Pass the open file and not its path, because torch would decide by the name.
    with open(path, "rb") as file, torch.serialization.safe_globals(STAND_INS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about how the file was pickled; an error says what is wrong with it
        return torch.load(file, map_location="cpu", weights_only=True)


def _check_sums(path: Path) -> None:
    """Compare the content of a zip archive with its checksums, which torch writes but does not check."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if all(name.endswith(".npy") for name in names):
            raise _Unfit("it holds NumPy arrays: save the weights with torch.save or safetensors")
        if any("/code/" in name for name in names):
            raise _Unfit("it is a TorchScript archive, which is code and is not loaded: save only the weights")
        # torch compresses nothing. A small file that was compressed afterwards may need more memory than there is.
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise _Unfit("it was compressed after torch.save wrote it: use the file as torch.save wrote it")
        # All checksums are 0 if torch was told to write none (set_crc32_options).
        has_sums = any(info.CRC for info in archive.infolist())
        if has_sums and (bad := archive.testzip()):
            raise _Unfit(f"it is damaged, because {bad} in it differs from its checksum: use another copy of the file")


def _reason(error: Exception) -> str:
    """The reason of an error in one line, without torch's advice to trust the file."""
    message = str(error)
    if isinstance(error, _Unfit):
        return message
    if match := re.search(r"GLOBAL (\S+)", message):
        return f"it holds {match[1]}, which may run code and is not loaded: save only the weights"
    if "Unsupported operand" in message or "magic number" in message:
        message = "torch.save did not write it"
    elif match := re.search(r"WeightsUnpickler error:\s*(.+)", message):
        message = match[1]
    line = (getattr(error, "strerror", None) or message or type(error).__name__).splitlines()[0]
    return f"it is damaged or holds no weights ({'torch cannot read it' if 'weights_only' in line else line})"
