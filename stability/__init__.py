"""Instruments that look at a model or a run; they take any ``nn.Module`` and know of no other room."""

from stability.errors import StabilityError
from stability.local_lipschitz import local_lipschitz

__all__ = ["StabilityError", "local_lipschitz"]
