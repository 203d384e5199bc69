"""Files as the authors of the papers publish them: their names, and their settings pickled beside the weights."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

# A class that pickle finds while a file is written, and no longer when it is read.
YACS = ModuleType("yacs.config")
YACS.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})  # type: ignore[attr-defined]


def yacs_config(**options: Any) -> dict[str, Any]:
    """A node of settings that pickle takes for one of yacs."""
    node = YACS.CfgNode(options)
    node.__dict__["__immutable__"] = True  # yacs keeps its own state beside the options
    return node


def save(content: Any, path: Path, **kwargs: Any) -> Path:
    """Write a file as on a machine that has yacs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "yacs", ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", YACS)
        torch.save(content, path, **kwargs)
    return path


def released(name: str) -> dict[str, Tensor]:
    """The tensors in the authors' file of a model, without their values."""
    shapes = json.loads((Path(__file__).parent / "released" / f"{name}.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
