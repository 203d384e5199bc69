"""Where images come from, which comes next, how it is changed, and how it reaches the device.

- ``sources/`` and ``index/``: where images are, and which there are; ``storage/``: copies of them on this machine;
- ``sets/``: splits and evaluation sets, with the label of each image;
- ``planning/``: which image comes next, and how it is cropped and changed;
- ``backends/`` and ``loader.py``: from files to batches on the device; ``augment/``: what happens to a batch there;
- ``prepare/``: writes ImageNet in forms that are read fast;
- ``concurrency/``: processes, threads and waiting.
"""

from data.augment.device import DeviceAugment
from data.augment.policies import policies
from data.backends import build_backend, resolve_backend
from data.concurrency.waiting import are_threads_abandoned, attentive
from data.config import AugmentConfig, DataConfig
from data.errors import BadImage, DataError
from data.index import are_few_changed, differing
from data.loader import Batch, Loader
from data.planning.geometry import BatchGeometry
from data.planning.order import subset_rows
from data.planning.plan import EvalPlan, TrainPlan
from data.sets.dataset import ImageSet, is_prepared, open_split
from data.sets.eval_sets import SETS, EvalImages, EvalSetsConfig, is_set_prepared, open_set, refuse_other_than_imagenet
from data.sets.labels import IMAGENET_CLASSES, class_names, refuse_different_classes
from data.sources import EncodedSource, Source, open_source
from data.storage.cache import refuse_others
from data.storage.staging import stage, staged, staging_check
from data.transfer import on_stream

__all__ = [
    "IMAGENET_CLASSES",
    "SETS",
    "AugmentConfig",
    "BadImage",
    "Batch",
    "BatchGeometry",
    "DataConfig",
    "DataError",
    "DeviceAugment",
    "EncodedSource",
    "EvalImages",
    "EvalPlan",
    "EvalSetsConfig",
    "ImageSet",
    "Loader",
    "Source",
    "TrainPlan",
    "are_few_changed",
    "are_threads_abandoned",
    "attentive",
    "build_backend",
    "class_names",
    "differing",
    "is_prepared",
    "is_set_prepared",
    "on_stream",
    "open_set",
    "open_source",
    "open_split",
    "policies",
    "refuse_different_classes",
    "refuse_other_than_imagenet",
    "refuse_others",
    "resolve_backend",
    "stage",
    "staged",
    "staging_check",
    "subset_rows",
]
