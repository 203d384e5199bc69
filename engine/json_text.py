"""Numbers as valid JSON, which has no word for those that are not finite."""

import json
import math
from collections.abc import Callable
from typing import Any


def to_json(content: Any, indent: int | None = None) -> str:
    """``content`` as JSON; numbers that are not finite become null."""
    return json.dumps(_replaced(content, lambda number: None), indent=indent, allow_nan=False)


def spelt(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with numbers that are not finite as words, such as ``inf``, which options read as numbers again."""
    return _replaced(settings, str)


def _replaced(content: Any, substitute: Callable[[float], Any]) -> Any:
    """The same, but for numbers that are not finite."""
    if isinstance(content, dict):
        return {key: _replaced(value, substitute) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_replaced(value, substitute) for value in content]
    return substitute(content) if isinstance(content, float) and not math.isfinite(content) else content
