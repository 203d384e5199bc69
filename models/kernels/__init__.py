"""A fused operation for GPUs, in Triton, with the plain operations that it replaces.

It serves training only. Evaluation, exported and traced programs use the plain operations, which everything supports.
"""

from models.kernels.choice import KERNELS as KERNELS
from models.kernels.choice import set_kernels as set_kernels
from models.kernels.choice import wants_triton as wants_triton
from models.kernels.operator import residual_center_norm as residual_center_norm
