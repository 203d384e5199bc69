"""What watches a run: one protocol for metrics files, loggers, pictures and instruments."""

from pathlib import Path
from typing import Any

from engine.beside import beside
from engine.step import StepOutcome


class Callback:
    """Watches a run and changes nothing in it. Each method does nothing here: a callback writes those it needs.

    What a method raises is said once, and the run goes on.

    Attributes:
        state: saved with every checkpoint, and given to the callback of the same name when the run goes on. Numbers and
            text only.
        exchanges: whether its methods exchange numbers with the other processes. What they raise then ends the run,
            for the others would wait.
    """

    state: dict[str, Any] | None = None
    exchanges: bool = False

    def after_step(self, outcome: StepOutcome) -> None:
        """After each optimizer step. Nothing here may wait for the device, for the next step does."""

    def on_line(self, line: dict[str, Any]) -> None:
        """With a line of metrics: its kind, ``step``, ``epoch`` and numbers.

        ``line["split"]`` is the kind: ``train`` at every reading, ``val`` after a validation, ``stability`` and
        ``layers`` (a number of each layer) after a look of the instruments, ``crash`` where ``step`` was the first
        whose loss or gradient was not finite. Those of ``train``, ``val`` and ``crash`` come on all processes.
        """

    def on_picture(self, name: str, path: Path, step: int) -> None:
        """With a PNG file that was drawn."""

    def on_end(self) -> None:
        """At the end of the run, whatever ended it."""


class Callbacks:
    """The callbacks of a run, in the order in which they are told.

    Args:
        states: of the callbacks of an earlier start, by name.
    """

    def __init__(self, states: dict[str, Any] | None = None):
        self.states = dict(states or {})
        self.members: dict[str, Callback] = {}

    def add(self, name: str, callback: Callback) -> None:
        """Add one; ``name`` is that of its state."""
        self.members[name] = callback

    def state_dict(self) -> dict[str, Any]:
        """The states, by name: also those of callbacks that are not here this time."""
        own = {name: member.state for name, member in self.members.items() if member.state is not None}
        return self.states | own

    def after_step(self, outcome: StepOutcome) -> None:
        """See :class:`Callback`."""
        self._tell("after_step", outcome)

    def on_line(self, line: dict[str, Any]) -> None:
        """See :class:`Callback`."""
        self._tell("on_line", line)

    def on_picture(self, name: str, path: Path, step: int) -> None:
        """See :class:`Callback`."""
        self._tell("on_picture", name, path, step)

    def on_end(self) -> None:
        """See :class:`Callback`."""
        self._tell("on_end")

    def _tell(self, event: str, *what: Any) -> None:
        for name, member in self.members.items():
            if member.exchanges:
                getattr(member, event)(*what)
            else:
                with beside(f"{name} failed"):
                    getattr(member, event)(*what)
