"""Numbers as valid JSON, which has no word for those that are not finite."""

import json
import math
from typing import Any


def to_json(content: Any, indent: int | None = None) -> str:
    """``content`` as JSON; numbers that are not finite become null."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
