"""One line of the report, and how a check becomes lines."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from engine.errors import reason

Verdict = Literal["ok", "warn", "bad", "missing"]
# Images per second for each GPU, below which a check warns: those of lipsformer_swin_tiny on an H200, compiled, with
# CUDA graphs (docs/performance.md).
TRAINED = 2300


@dataclass(frozen=True)
class Row:
    """What one check found.

    Attributes:
        name: what was checked.
        value: what was found.
        verdict: ``missing``: this machine does not have it, and some runs do without. ``warn``: it costs speed, or a
            run may meet it later. ``bad``: it stops a run or slows it badly.
        advice: what to do about it; shown unless the verdict is ``ok``.
    """

    name: str
    value: str
    verdict: Verdict = "ok"
    advice: str = ""

    def __str__(self) -> str:
        line = f"{self.verdict:<8}{self.name:<24}{self.value}"
        return line if self.verdict == "ok" or not self.advice else f"{line}: {self.advice}"


def verdict(value: float, enough: float, least: float = 0) -> Verdict:
    """Return ``ok`` from ``enough`` on, ``warn`` from ``least`` on, and ``bad`` below that."""
    if value >= enough:
        return "ok"
    return "warn" if value >= least else "bad"


def rows_of(name: str, check: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """Yield the rows of a check as it finds them. An error in it is a row, too, so that the other checks still run."""
    try:
        yield from check()
    except Exception as error:
        yield Row(name, f"this check failed ({type(error).__name__}: {reason(error)})", "bad")
