"""Read the file of a checkpoint, and say what is wrong with it."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.options.renamed import translated
from models import ModelError, read_file

FORMAT = 1  # increase it when the content of checkpoints changes
VALIDATION = "last.validation"


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint of this project to the CPU, with what its validation added if that is known.

    Raises:
        UserError: if the file is missing, is damaged, or is not a checkpoint of this project.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    try:
        return checked(read_file(path), path) | _validation_of(path)
    except ModelError as error:
        raise UserError(str(error)) from error


def _validation_of(path: Path) -> dict[str, Any]:
    """Return what the validation of a checkpoint added to its state; nothing if that is not known."""
    try:
        found = read_file(path.with_name(VALIDATION))
        return found if found.pop("of") == checksum(path) else {}  # else it belongs to another checkpoint
    except (ModelError, zipfile.BadZipFile):
        return {}


def checksum(path: Path) -> int:
    """Return a checksum of the checksums in a file that torch wrote. So the content itself need not be read."""
    with zipfile.ZipFile(path) as archive:
        return zlib.crc32(repr([(part.filename, part.CRC) for part in archive.infolist()]).encode())


def checked(content: Any, path: Path) -> dict[str, Any]:
    """Return the content of a file as a checkpoint in today's form.

    Raises:
        UserError: if it is not a checkpoint of this project, or has a format that this version does not read.
    """
    if not is_ours(content):
        raise UserError(f"{path} is not a checkpoint of this project")
    if content["format"] != FORMAT:
        raise UserError(f"{path} has format {content['format']}, but this version reads {FORMAT}")
    if "callbacks" not in content:  # older checkpoints hold only the id of the Weights & Biases run
        logger = content.pop("wandb_id", None)
        content["callbacks"] = {"wandb": {"id": logger, "best_top1": None}} if logger else {}
    if isinstance(content["config"], dict):
        content["config"] = translated(content["config"])
    return content


def lacking(state: dict[str, Any]) -> list[str]:
    """Return which entries about the model and its images are missing. People strip checkpoints to publish them."""
    config = state["config"] if isinstance(state["config"], dict) else {}
    groups = [name for name in ("model", "data") if not config.get(name) or not isinstance(config[name], dict)]
    return [name for name in ("family", "classes") if not state.get(name)] + groups


def resumable(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the state itself if a run can continue from it.

    Raises:
        UserError: if it holds only weights, because somebody has removed the rest.
    """
    missing = {"stepper", "ema", "validated", "fingerprint"} - state.keys()
    if missing or not isinstance(state["config"], dict):
        raise UserError(f"no run can continue from {path}, which holds only weights: set checkpoint={path} instead")
    return state


def is_ours(content: Any) -> bool:
    """Whether a file's content is a checkpoint of this project."""
    return isinstance(content, dict) and {"format", "step", "model", "config"} <= content.keys()
