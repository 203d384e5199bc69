"""Work beside the training, such as metrics, pictures and instruments. If it fails, the run continues."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import reason

log = logging.getLogger(__name__)

_said: set[str] = set()


@contextmanager
def warn_on_failure(what: str, then: str = "the run continues without it") -> Iterator[None]:
    """Turn an exception into a warning, so that it does not end the run. Each ``what`` warns once.

    Args:
        what: describes the failure and begins the warning, such as "outputs/a/plots/curves.png cannot be drawn".
        then: what happens next, which ends the warning.
    """
    try:
        yield
    except Exception as error:  # whatever it is, it must not end a training run
        if what not in _said:
            _said.add(what)
            file = getattr(error, "filename", None)
            place = f"{file}: " if file is not None and str(file) not in what else ""
            log.warning("%s (%s%s): %s", what, place, reason(error), then)
