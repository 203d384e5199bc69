"""Save a profiler trace of a few steps, to see what a step waits for."""

import logging
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule
from torch.profiler import supported_activities as supported

from engine.callbacks.callback import Callback
from engine.measuring.span import record_spans
from engine.measuring.trace import TRACE
from engine.step import StepOutcome
from engine.warn_on_failure import warn_on_failure

log = logging.getLogger(__name__)

# Steps of a start. The profiler begins after the first of them, which compiles.
WAIT, WARM_UP, TRACED = 2, 2, 4
LAST_TRACED = 1 + WAIT + WARM_UP + TRACED  # the trace is saved after this step of a start


class StepProfiler(Callback):
    """Profiles steps 6 to 9 after this start and writes ``FOLDER/profile/trace.json``.

    Args:
        folder: directory of the run.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / TRACE
        activities = [a for a in (ProfilerActivity.CPU, ProfilerActivity.CUDA) if a in supported()]
        steps = schedule(wait=WAIT, warmup=WARM_UP, active=TRACED, repeat=1)
        self.profiler = profile(activities=activities, schedule=steps, on_trace_ready=self._save)
        self.running = False

    def after_step(self, outcome: StepOutcome) -> None:
        """Start the profiler after the first step; after later steps, tell it that a step is done."""
        if self.running:
            self.profiler.step()
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            record_spans(True)
            self.profiler.start()
            self.running = True

    def on_end(self) -> None:
        """Stop the profiler."""
        if self.running:
            record_spans(False)
            self.profiler.stop()

    def _save(self, profiler: profile) -> None:
        with warn_on_failure(f"{self.path} cannot be written"):
            profiler.export_chrome_trace(str(self.path))
            steps = f"{LAST_TRACED - TRACED + 1} to {LAST_TRACED}"
            log.info("trace of steps %s of this start: %s (open it in https://ui.perfetto.dev)", steps, self.path)
            log.info("what a step waits for: python scripts/read_profile.py %s", self.folder)
