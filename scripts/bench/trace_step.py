"""Count what a training step asks of a GPU, without a GPU: kernel launches, bytes moved and FLOPs, by part of the model.

python scripts/bench/trace_step.py lipsformer_swin_tiny --vs swin_tiny_patch4_window7_224
python scripts/bench/trace_step.py lipsformer_swin_tiny --optim adamw2 --batch-size 128

The step runs eagerly on fake tensors, which have shapes but no values. An operation that computes or copies counts as one
launch; a view counts nothing. Its bytes are the sizes of the tensors that it reads and writes, as if no cache kept them.
The last columns are lower bounds of the time on a GPU: no operation is faster than its bytes or its FLOPs at the GPU's
peak. They leave out what the host needs to launch the kernels.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import models  # noqa: F401  (registers the models)
from engine.device import AMP_DTYPES, GPUS
from scripts.bench.fake_gpu import Cost, CostCounter, as_on_a_gpu
from scripts.bench.step_speed import optimizer

CLASSES, SIDE = 1000, 224
