"""Name the parts of a step in the profiler's trace."""

from contextlib import AbstractContextManager, nullcontext

from torch.profiler import record_function

_recording = False


def record_spans(recording: bool) -> None:
    """Start or stop naming the parts of a step."""
    global _recording
    _recording = recording


def span(name: str) -> AbstractContextManager:
    """Return a context that names a part of a step in the trace. Without a profiler it does nothing."""
    return record_function(name) if _recording else nullcontext()
