"""Upper bounds of Lipschitz constants, from the weights only."""

from models.lipschitz.bound import lipschitz_bound
from models.lipschitz.report import LipschitzReport

__all__ = ["LipschitzReport", "lipschitz_bound"]
