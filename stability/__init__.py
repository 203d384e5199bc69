"""Instruments that look at a model or a run; they take any ``nn.Module`` and know of no other room."""

from stability.attention import AttentionReport, attention_report
from stability.errors import StabilityError
from stability.local_lipschitz import local_lipschitz
from stability.spectra import effective_rank, energy_concentration, entropy, query_key_energies
from stability.tokens import token_diversity

__all__ = [
    "AttentionReport",
    "StabilityError",
    "attention_report",
    "effective_rank",
    "energy_concentration",
    "entropy",
    "local_lipschitz",
    "query_key_energies",
    "token_diversity",
]
