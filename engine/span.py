"""Names for the parts of a step, for a profiler's trace."""

from contextlib import AbstractContextManager, nullcontext

from torch.profiler import record_function

_recording = False


def record_spans(recording: bool) -> None:
    """Begin to name the parts of steps in traces, or stop."""
    global _recording
    _recording = recording


def span(name: str) -> AbstractContextManager:
    """Names a part of a step in the trace; without a profiler a context that does nothing."""
    return record_function(name) if _recording else nullcontext()
