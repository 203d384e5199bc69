"""A trace of a few steps, for a look at what waits for what."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule
from torch.profiler import supported_activities as supported

log = logging.getLogger(__name__)


@contextmanager
def step_profiler(folder: Path, enabled: bool) -> Iterator[Callable[[], None]]:
    """Profile steps 6 to 9 into ``folder/profile/trace.json``; yields what to call after each step."""
    if not enabled:
        yield lambda: None
        return
    path = folder / "profile" / "trace.json"
    path.parent.mkdir(parents=True, exist_ok=True)

    def save(profiler: profile) -> None:
        profiler.export_chrome_trace(str(path))
        log.info("trace of steps 6 to 9: %s (open it in https://ui.perfetto.dev)", path)

    activities = [a for a in (ProfilerActivity.CPU, ProfilerActivity.CUDA) if a in supported()]
    steps = schedule(wait=3, warmup=2, active=4, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=save) as profiler:
        yield profiler.step
