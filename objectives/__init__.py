"""What is minimised: scalar functions of tokens, each with its value and its gradient written by hand.

Tokens are rows, ``(..., tokens, dim)``; logarithms are natural, so rates are in nats.
This package imports torch and nothing heavier.
"""

from .base import CertifiedStep, Composite, Objective, Proximable, beta_of, certified_step_size, lift, project
from .coding_rate import ChannelRate, CodingRate, SubspaceCodingRate
from .representatives import RepresentativeNorm, RepresentativeRate, SoftRepresentativeRate, feasibility_gap
from .softmax_energy import (
    CrossAttentionEnergy,
    RepresentativeEnergy,
    SelfAttentionEnergy,
    SymmetricEnergy,
)
from .sparse_coding import L1, NonNegativeL1, Reconstruction, sparse_coding

__all__ = [
    "L1",
    "CertifiedStep",
    "ChannelRate",
    "CodingRate",
    "Composite",
    "CrossAttentionEnergy",
    "NonNegativeL1",
    "Objective",
    "Proximable",
    "Reconstruction",
    "RepresentativeEnergy",
    "RepresentativeNorm",
    "RepresentativeRate",
    "SelfAttentionEnergy",
    "SoftRepresentativeRate",
    "SubspaceCodingRate",
    "SymmetricEnergy",
    "beta_of",
    "certified_step_size",
    "feasibility_gap",
    "lift",
    "project",
    "sparse_coding",
]
