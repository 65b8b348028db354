"""The papers' equations, transcribed: numpy, tokens in COLUMNS, one function an equation, plain loops.

Nothing here knows our packages. Arrays may hold floats or mpmath numbers (dtype object), so that the same
transcription is evaluated in float64 and with fifty digits. Slow on purpose; never on the way of a layer.

Letters: Z (d, N) tokens; U a list of bases (d, p); A (N, m) extraction, columns sum to 1; eps is ε, not ε².
"""

from .cbsa import (
    adaptive_average_bins,
    cbsa_eq4,
    cbsa_eq6,
    cbsa_eq7,
    cbsa_eq8,
    cbsa_eq12,
    cbsa_eq13,
    cbsa_released,
    pool_grid,
    pool_sequence,
    representative_energy,
    representative_norm,
)
from .energies import crate_eq14, cross_attention_energy, self_attention_energy, symmetric_energy
from .numbers import logdet, softmax_columns
from .rates import coding_rate, coding_rate_tokens_side, crate_eq8, crate_eq11

__all__ = [
    "adaptive_average_bins",
    "cbsa_eq4",
    "cbsa_eq6",
    "cbsa_eq7",
    "cbsa_eq8",
    "cbsa_eq12",
    "cbsa_eq13",
    "cbsa_released",
    "coding_rate",
    "coding_rate_tokens_side",
    "crate_eq8",
    "crate_eq11",
    "crate_eq14",
    "cross_attention_energy",
    "logdet",
    "pool_grid",
    "pool_sequence",
    "representative_energy",
    "representative_norm",
    "self_attention_energy",
    "softmax_columns",
    "symmetric_energy",
]
