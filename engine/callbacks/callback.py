"""The base class of callbacks, and the list that calls them."""

from pathlib import Path
from typing import Any

from engine.measuring.meter import Reading
from engine.step import StepOutcome
from engine.warn_on_failure import warn_on_failure


class Callback:
    """Watches a run and changes nothing in it. The methods here do nothing; a subclass overrides those it needs.

    Callbacks exist only in the first process. If a method raises an exception, one warning says so and the run goes on.

    Attributes:
        state: saved with every checkpoint, and passed to the callback of the same name when the run resumes; None for a
            new run, and for a copy of a run under another name. It may contain only numbers, text, lists and dicts. A
            state with anything else is not saved, because a checkpoint with it could not be read.
    """

    state: dict[str, Any] | None = None

    def after_step(self, outcome: StepOutcome) -> None:
        """Called after each optimizer step. It must not wait for the device, because that delays the next step."""

    def on_reading(self, reading: Reading) -> None:
        """Called before the line of metrics, with the numbers of each step since the last line.

        If the loss or gradient of a step was not finite, no line follows and the run ends.
        """

    def on_line(self, line: dict[str, Any]) -> None:
        """Called with a line of metrics: ``split``, ``step``, ``epoch`` and numbers.

        ``line["split"]`` is the kind of line:

        - ``train``: at every reading of the training metrics;
        - ``val``: after a validation;
        - ``stability``, ``layers``: after a reading of the instruments; ``layers`` has one number per layer.
        """

    def on_picture(self, name: str, path: Path, step: int) -> None:
        """Called with the path of a new PNG file.

        ``batch`` and ``val_batch`` come once in a run, and not again after a resume. Other pictures come again;
        ``stability`` about 20 times in a run, although the file is drawn after each validation.
        ``plots/curves.png`` is not among them: loggers draw curves themselves, from the lines.
        """

    def on_end(self) -> None:
        """Called at the end of the run, also after an error."""


def _refuse_unsavable(state: Any) -> None:
    """Check a state before it is saved.

    Raises:
        TypeError: if it holds something that a checkpoint may not contain, such as ``numpy.float64``.
    """
    if isinstance(state, dict | list):
        for value in [*state, *state.values()] if isinstance(state, dict) else state:
            _refuse_unsavable(value)
    elif type(state) not in (int, float, bool, str, type(None)):  # a subclass would be pickled as itself
        raise TypeError(f"it holds a {type(state).__name__}: use only numbers, text, lists and dicts")


class Callbacks:
    """The callbacks of a run, in the order in which they are called.

    Args:
        states: the callbacks' states from the checkpoint, by name.
    """

    def __init__(self, states: dict[str, Any] | None = None):
        self.states = dict(states or {})
        self.members: dict[str, Callback] = {}

    def add(self, name: str, callback: Callback) -> None:
        """Add a callback. Its state is saved under ``name``."""
        self.members[name] = callback

    def state_dict(self) -> dict[str, Any]:
        """Return all states by name, including loaded states of callbacks that this start does not use."""
        own = {}
        for name, member in self.members.items():
            with warn_on_failure(f"the state of {name} cannot be saved"):
                if member.state is not None:
                    _refuse_unsavable(member.state)
                    own[name] = member.state
        return self.states | own

    def after_step(self, outcome: StepOutcome) -> None:
        """See :class:`Callback`."""
        self._tell("after_step", outcome)

    def on_reading(self, reading: Reading) -> None:
        """See :class:`Callback`."""
        self._tell("on_reading", reading)

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
            with warn_on_failure(f"{name} failed", "the run continues, and later failures of it are not shown"):
                getattr(member, event)(*what)
