"""The papers' equations, transcribed: numpy, tokens in COLUMNS, one function an equation, plain loops.

Nothing here knows our packages. Arrays may hold floats or mpmath numbers (dtype object), so that the same
transcription is evaluated in float64 and with fifty digits. Slow on purpose; never on the way of a layer.

Letters: Z (d, N) tokens; U a list of bases (d, p); A (N, m) extraction, columns sum to 1; eps is ε, not ε².
"""

from .aot import aot_selection, aot_snr, aot_threshold_step, selected_energy
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
from .energy_transformer import (
    attention_energy,
    energy_norm,
    energy_norm_jacobian,
    energy_norm_lagrangian,
    hopfield_energy,
    hopfield_softmax_energy,
)
from .numbers import logdet, softmax_columns
from .rate_reduction import (
    class_compression,
    class_compression_tokens_side,
    crate_eq9,
    linearised_rate_reduction,
    rate_reduction,
    redunet_layer,
    redunet_memberships,
    redunet_operators,
)
from .rates import coding_rate, coding_rate_tokens_side, crate_eq8, crate_eq11
from .sparse_coding import (
    crate_alpha_codes,
    crate_eq17,
    duality_gap,
    fista,
    ista_step,
    layer_norm_columns,
    nonnegative_codes,
    reconstruction_error,
    sparse_coding_value,
    threshold,
    threshold_gap,
)
from .tost import tost_causal, tost_memberships, tost_prefix_rate, tost_rate, tost_released, tost_step

__all__ = [
    "adaptive_average_bins",
    "aot_selection",
    "aot_snr",
    "aot_threshold_step",
    "attention_energy",
    "cbsa_eq4",
    "cbsa_eq6",
    "cbsa_eq7",
    "cbsa_eq8",
    "cbsa_eq12",
    "cbsa_eq13",
    "cbsa_released",
    "class_compression",
    "class_compression_tokens_side",
    "coding_rate",
    "coding_rate_tokens_side",
    "crate_alpha_codes",
    "crate_eq8",
    "crate_eq9",
    "crate_eq11",
    "crate_eq14",
    "crate_eq17",
    "cross_attention_energy",
    "duality_gap",
    "energy_norm",
    "energy_norm_jacobian",
    "energy_norm_lagrangian",
    "fista",
    "hopfield_energy",
    "hopfield_softmax_energy",
    "ista_step",
    "layer_norm_columns",
    "linearised_rate_reduction",
    "logdet",
    "nonnegative_codes",
    "pool_grid",
    "pool_sequence",
    "rate_reduction",
    "reconstruction_error",
    "redunet_layer",
    "redunet_memberships",
    "redunet_operators",
    "representative_energy",
    "representative_norm",
    "selected_energy",
    "self_attention_energy",
    "softmax_columns",
    "sparse_coding_value",
    "symmetric_energy",
    "threshold",
    "threshold_gap",
    "tost_causal",
    "tost_memberships",
    "tost_prefix_rate",
    "tost_rate",
    "tost_released",
    "tost_step",
]
