"""How it is minimised by a network: steps, the unroller, and the attention layers that are steps."""

import objectives as _objectives

if not hasattr(_objectives, "SubspaceCodingRate"):
    raise ImportError(
        f"unrolling needs its sister package 'objectives', but found {_objectives.__file__}, which is another module "
        "of that name. Rename that file, or use a virtual environment of its own for attention-as-descent."
    )

from . import adapt, compat, kernels, models, parallel, plots
from .base import UnrolledLayer
from .fast_weights import (
    FAST_WEIGHTS,
    FastWeights,
    agent_attention,
    block_attention,
    compressed_block_attention,
    full_attention,
    linear_attention,
    projected_attention,
    taxonomy,
    top_k_attention,
)
from .kernels.mita import merge_attention, mita
from .kernels.tiles import top_indices
from .layers.agent import AgentAttention, AgentBias
from .layers.aot import AoT
from .layers.cbsa import CBSA
from .layers.crate import CRATEBlock
from .layers.depict import MSCA, DepictDecoder, DepictRecord
from .layers.energy_transformer import EnergyTransformer
from .layers.ista import ISTA, OvercompleteISTA
from .layers.mita import MiTA
from .layers.mssa import MSSA
from .layers.redunet import ReduNet
from .layers.softmax import SoftmaxAttention
from .layers.symmetric import SymmetricAttention
from .layers.tssa import TSSA
from .mirror import EnergyLayerNorm, MirrorStep
from .models import Stage
from .proximal import AcceleratedProximalStep, AlternatingStep, Momentum, ProximalStep
from .representatives import (
    SVD,
    Axes,
    GridPool,
    LearnedQueries,
    OfficialGridPool,
    Representatives,
    SequencePool,
    Strided,
    Tokens,
)
from .riemannian import RiemannianStep, certified_stiefel_step, retract, tangent
from .rotary import GridRotary
from .steps import ArmijoStep, ExactLineSearchStep, GradientStep, Step
from .subspace import SubspaceLayer
from .trace import BlockRecord, Trace, objective_of, record_block
from .unroll import Unrolled

__all__ = [
    "CBSA",
    "FAST_WEIGHTS",
    "ISTA",
    "MSCA",
    "MSSA",
    "SVD",
    "TSSA",
    "AcceleratedProximalStep",
    "AgentAttention",
    "AgentBias",
    "AlternatingStep",
    "AoT",
    "ArmijoStep",
    "Axes",
    "BlockRecord",
    "CRATEBlock",
    "DepictDecoder",
    "DepictRecord",
    "EnergyLayerNorm",
    "EnergyTransformer",
    "ExactLineSearchStep",
    "FastWeights",
    "GradientStep",
    "GridPool",
    "GridRotary",
    "LearnedQueries",
    "MiTA",
    "MirrorStep",
    "Momentum",
    "OfficialGridPool",
    "OvercompleteISTA",
    "ProximalStep",
    "ReduNet",
    "Representatives",
    "RiemannianStep",
    "SequencePool",
    "SoftmaxAttention",
    "Stage",
    "Step",
    "Strided",
    "SubspaceLayer",
    "SymmetricAttention",
    "Tokens",
    "Trace",
    "Unrolled",
    "UnrolledLayer",
    "adapt",
    "agent_attention",
    "block_attention",
    "certified_stiefel_step",
    "compat",
    "compressed_block_attention",
    "full_attention",
    "kernels",
    "linear_attention",
    "merge_attention",
    "mita",
    "models",
    "objective_of",
    "parallel",
    "plots",
    "projected_attention",
    "record_block",
    "retract",
    "tangent",
    "taxonomy",
    "top_indices",
    "top_k_attention",
]
