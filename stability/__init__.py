"""Instruments that measure a model or a run. They take any ``nn.Module`` and import nothing else of this project."""

from stability.attention import AttentionReport, attention_report
from stability.blocks import BlockReport, block_report
from stability.crash_signs import collapsed_heads
from stability.errors import StabilityError
from stability.layers import norm_gains, query_keys, residual_scales, weight_matrices
from stability.local_lipschitz import local_lipschitz
from stability.monitor import StabilityMonitor, StabilityReport
from stability.spectra import effective_rank, energy_concentration, entropy, query_key_energies
from stability.tokens import token_diversity

__all__ = [
    "AttentionReport",
    "BlockReport",
    "StabilityError",
    "StabilityMonitor",
    "StabilityReport",
    "attention_report",
    "block_report",
    "collapsed_heads",
    "effective_rank",
    "energy_concentration",
    "entropy",
    "local_lipschitz",
    "norm_gains",
    "query_key_energies",
    "query_keys",
    "residual_scales",
    "token_diversity",
    "weight_matrices",
]
