"""Weight files like those of the papers' authors: their tensor names, and settings pickled with the weights."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

# A class that pickle can find while a file is written, but not when it is read.
YACS = ModuleType("yacs.config")
YACS.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})  # type: ignore[attr-defined]


def yacs_config(**options: Any) -> dict[str, Any]:
    """Settings that are pickled as a yacs ``CfgNode``."""
    node = YACS.CfgNode(options)
    node.__dict__["__immutable__"] = True  # yacs keeps its own state in attributes
    return node


def save(content: Any, path: Path, **kwargs: Any) -> Path:
    """Write a file as on a machine with yacs installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "yacs", ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", YACS)
        torch.save(content, path, **kwargs)
    return path


def released(name: str) -> dict[str, Tensor]:
    """The tensors of the authors' model, on the meta device."""
    shapes = json.loads((Path(__file__).parent / "released" / f"{name}.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
