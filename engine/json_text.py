"""Write JSON. Its standard has neither NaN nor infinity, so numbers that are not finite need another form."""

import json
from typing import Any


def to_json(content: Any, indent: int | None = None) -> str:
    """Return ``content`` as JSON. Numbers that are not finite become null."""
    # json writes them as NaN and Infinity. When it reads these words, it calls parse_constant.
    plain = json.loads(json.dumps(content), parse_constant=lambda name: None)
    return json.dumps(plain, indent=indent, allow_nan=False)


def with_text_for_nonfinite(settings: dict[str, Any]) -> dict[str, Any]:
    """Replace numbers that are not finite by text such as ``"inf"``, which options can parse again."""
    plain: dict[str, Any] = json.loads(json.dumps(settings), parse_constant=lambda name: str(float(name)))
    return plain
