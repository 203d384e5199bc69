"""Say after a validation how the run compares with the reference of its recipe."""

import logging
import os
from typing import Any

from engine.callbacks.callback import Callback
from engine.options.config import CONF
from engine.options.plain import as_container, defaults_of
from engine.reference import Curve, Reference, setting_of, unlike
from engine.run import Run
from engine.run_dir import RunDirectory
from engine.warn_on_failure import warn_on_failure

log = logging.getLogger(__name__)


class OnTrack(Callback):
    """Logs a line after each validation at an epoch of the reference.

    Args:
        reference: the reference of the run's recipe.
        directory: directory of the run, which holds its metrics so far.
    """

    def __init__(self, reference: Reference, directory: RunDirectory):
        self.reference, self.directory = reference, directory

    @classmethod
    def of(cls, run: Run) -> "OnTrack | None":
        """Return the callback for the reference in ``conf/`` whose recipe, epochs and numbers of images are the run's.

        Returns:
            The callback; None if there is no such reference. A file that cannot be read is left out with a warning.
        """
        setting = setting_of(as_container(run.cfg), run.length.steps_per_epoch, len(run.data.val_set))
        for path in sorted(CONF.glob("*/*.json")):
            with warn_on_failure(f"{path} cannot be used"):
                reference = Reference.read(path)
                if not unlike(reference, setting, defaults_of(run.cfg)):
                    return cls(reference, run.directory)
        return None

    def on_line(self, line: dict[str, Any]) -> None:
        """Compare a validation with the reference."""
        if line["split"] == "val" and line["epoch"] in self.reference.curves[0].top1:
            verdict = self.reference.verdict(Curve.of(self.directory.read_metrics()))
            log.info("%s (%s)", verdict, os.path.relpath(self.reference.path))
