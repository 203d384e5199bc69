"""Fused operations for GPUs, in Triton, with the plain operations that they replace.

They serve training only. Evaluation, exported and traced programs use the plain operations, which everything supports.
"""

from models.kernels.choice import KERNELS as KERNELS
from models.kernels.choice import set_kernels as set_kernels
from models.kernels.choice import wants_triton as wants_triton
from models.kernels.operators import depthwise_gelu as depthwise_gelu
from models.kernels.operators import depthwise_gelu_residual as depthwise_gelu_residual
from models.kernels.operators import residual_center_norm as residual_center_norm
