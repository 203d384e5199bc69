"""Where images come from, which comes next, how it is changed, and how it reaches the device."""

from data.augment import DeviceAugment, soft_cross_entropy
from data.backends import build_backend, resolve_backend
from data.config import AugmentConfig, DataConfig
from data.dataset import ImageSet, is_prepared, open_split
from data.errors import DataError
from data.geometry import BatchGeometry
from data.labels import refuse_different_classes
from data.loader import Batch, Loader
from data.plan import EvalPlan, TrainPlan
from data.policies import policies

__all__ = [
    "AugmentConfig",
    "Batch",
    "BatchGeometry",
    "DataConfig",
    "DataError",
    "DeviceAugment",
    "EvalPlan",
    "ImageSet",
    "Loader",
    "TrainPlan",
    "build_backend",
    "is_prepared",
    "open_split",
    "policies",
    "refuse_different_classes",
    "resolve_backend",
    "soft_cross_entropy",
]
