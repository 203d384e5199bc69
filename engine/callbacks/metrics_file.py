"""Write the lines of metrics to ``metrics.jsonl``, one JSON object per line."""

from pathlib import Path
from typing import Any

from engine.callbacks.callback import Callback
from engine.json_text import to_json
from engine.line_file import LineFile

WRITTEN = ("train", "val", "stability")


class MetricsFile(Callback):
    """Writes each line at once.

    Args:
        path: the file.
    """

    def __init__(self, path: Path):
        self.lines = LineFile(path)

    def on_line(self, line: dict[str, Any]) -> None:
        """Write the line if its kind belongs in the file."""
        if line["split"] in WRITTEN:
            self.lines.add(to_json(line))
