"""Fast paths behind the layers' plain formulas: each has its plain twin, and an argument that forces either."""

from .cbsa import contract_broadcast, contract_broadcast_plain, extraction
from .coding_rate import StreamedRate, coding_rate, streamed_rate
from .mita import mita, mita_masked, mita_plain
from .mssa import contract_tokens
from .routed import Routing, routed_attention
from .scratch import release
from .tssa import Statistics, memberships, shrink, shrink_plain

__all__ = [
    "Routing",
    "Statistics",
    "StreamedRate",
    "coding_rate",
    "contract_broadcast",
    "contract_broadcast_plain",
    "contract_tokens",
    "extraction",
    "memberships",
    "mita",
    "mita_masked",
    "mita_plain",
    "release",
    "routed_attention",
    "shrink",
    "shrink_plain",
    "streamed_rate",
]
