"""What is minimised: scalar functions of tokens, each with its value and its gradient written by hand.

Tokens are rows, ``(..., tokens, dim)``; logarithms are natural, so rates are in nats.
This package imports torch and nothing heavier.
"""

from .alignment import nearest_direction, principal_directions, subspace_alignment
from .base import CertifiedStep, Composite, Objective, Proximable, beta_of, certified_step_size, lift, project
from .class_tokens import ClassTokensOnly, SubspacePCARate
from .coding_rate import ChannelRate, CodingRate, SubspaceCodingRate
from .hopfield import AttentionEnergy, EnergyTransformerEnergy, HopfieldEnergy, attention_curvature
from .kernel_regression import KernelRegression
from .pca import PCARate, PCAReconstruction, PCAVariance, SeparableRate
from .rate_reduction import (
    LinearisedRateReduction,
    RateReduction,
    SubspaceRateReduction,
    one_hot_memberships,
    relaxed_sparse_rate_reduction,
    soft_memberships,
    sparse_rate_reduction,
)
from .representatives import RepresentativeNorm, RepresentativeRate, SoftRepresentativeRate, feasibility_gap
from .softmax_energy import (
    CrossAttentionEnergy,
    RepresentativeEnergy,
    SelfAttentionEnergy,
    SymmetricEnergy,
)
from .sparse_coding import L1, NonNegativeL1, Reconstruction, sparse_coding
from .subspace_denoising import SelectedEnergy, SubspaceMixture, signal_to_noise
from .variational_rate import PrefixVariationalRate, SoftVariationalRate, VariationalRate, head_memberships

__all__ = [
    "L1",
    "AttentionEnergy",
    "CertifiedStep",
    "ChannelRate",
    "ClassTokensOnly",
    "CodingRate",
    "Composite",
    "CrossAttentionEnergy",
    "EnergyTransformerEnergy",
    "HopfieldEnergy",
    "KernelRegression",
    "LinearisedRateReduction",
    "NonNegativeL1",
    "Objective",
    "PCARate",
    "PCAReconstruction",
    "PCAVariance",
    "PrefixVariationalRate",
    "Proximable",
    "RateReduction",
    "Reconstruction",
    "RepresentativeEnergy",
    "RepresentativeNorm",
    "RepresentativeRate",
    "SelectedEnergy",
    "SelfAttentionEnergy",
    "SeparableRate",
    "SoftRepresentativeRate",
    "SoftVariationalRate",
    "SubspaceCodingRate",
    "SubspaceMixture",
    "SubspacePCARate",
    "SubspaceRateReduction",
    "SymmetricEnergy",
    "VariationalRate",
    "attention_curvature",
    "beta_of",
    "certified_step_size",
    "feasibility_gap",
    "head_memberships",
    "lift",
    "nearest_direction",
    "one_hot_memberships",
    "principal_directions",
    "project",
    "relaxed_sparse_rate_reduction",
    "signal_to_noise",
    "soft_memberships",
    "sparse_coding",
    "sparse_rate_reduction",
    "subspace_alignment",
]
