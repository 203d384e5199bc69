"""Write JSON. Its standard has neither NaN nor infinity, so numbers that are not finite need another form."""

import json
import math
from collections.abc import Callable
from typing import Any


def to_json(content: Any, indent: int | None = None) -> str:
    """Return ``content`` as JSON. Numbers that are not finite become null."""
    return json.dumps(_replaced(content, lambda number: None), indent=indent, allow_nan=False)


def with_text_for_nonfinite(settings: dict[str, Any]) -> dict[str, Any]:
    """Replace numbers that are not finite by text such as ``"inf"``, which options can parse again."""
    return _replaced(settings, str)


def _replaced(content: Any, substitute: Callable[[float], Any]) -> Any:
    """Return ``content`` with every number that is not finite replaced."""
    if isinstance(content, dict):
        return {key: _replaced(value, substitute) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_replaced(value, substitute) for value in content]
    return substitute(content) if isinstance(content, float) and not math.isfinite(content) else content
