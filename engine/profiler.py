"""A trace of a few steps, for a look at what waits for what."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, record_function, schedule
from torch.profiler import supported_activities as supported

from engine.beside import beside
from engine.trace import TRACE

log = logging.getLogger(__name__)

_profiling = False


def span(name: str) -> AbstractContextManager:
    """Names a part of a step in the trace; without a profiler a context that does nothing."""
    return record_function(name) if _profiling else nullcontext()


@contextmanager
def step_profiler(folder: Path, enabled: bool) -> Iterator[Callable[[], None]]:
    """Profile steps 6 to 9 into ``folder/profile/trace.json``; yields what to call after each step."""
    if not enabled:
        yield lambda: None
        return
    path = folder / TRACE
    path.parent.mkdir(parents=True, exist_ok=True)

    def save(profiler: profile) -> None:
        with beside(f"{path} cannot be written"):
            profiler.export_chrome_trace(str(path))
            log.info("trace of steps 6 to 9: %s (open it in https://ui.perfetto.dev)", path)
            log.info("what a step waits for: python scripts/read_profile.py %s", folder)

    activities = [a for a in (ProfilerActivity.CPU, ProfilerActivity.CUDA) if a in supported()]
    steps = schedule(wait=3, warmup=2, active=4, repeat=1)
    global _profiling
    _profiling = True
    try:
        with profile(activities=activities, schedule=steps, on_trace_ready=save) as profiler:
            yield profiler.step
    finally:
        _profiling = False
