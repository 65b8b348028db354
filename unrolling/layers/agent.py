"""Agent attention: a few pooled queries read all tokens, and every token reads what they found. CBSA* contracts it."""

from __future__ import annotations

from typing import Unpack, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attend import attend
from ..attention import AttentionLayer, AttentionOptions
from ..errors import check_choice, check_count
from ..representatives import GridPool, Representatives

__all__ = ["AgentAttention", "AgentBias"]


@final
class AgentBias(nn.Module):
    """The learned position biases of agent attention: one for what agents read, one for what reads them.

    Each is a coarse map (``block × block`` cells, bilinearly enlarged) plus a row and a column profile of the window, and
    one number for class tokens. Another grid than the window's gets the same maps, resized bilinearly.

    Shapes
        from_tokens ``(heads, agents, tokens)``, to_tokens ``(heads, tokens, agents)``
    Source
        agent attention, arXiv 2312.08874, section 3.3; parameter names of its code, as MiTA's released baseline has them
    """

    def __init__(self, heads: int, agents: int, window: tuple[int, int] = (14, 14), block: int = 7) -> None:
        super().__init__()
        if not isinstance(window, (tuple, list)) or len(window) != 2:
            raise ValueError(f"AgentBias: window must be (rows, columns), but is {window!r}.")
        rows, columns = window
        sizes = {"heads": heads, "agents": agents, "block": block, "rows": rows, "columns": columns}
        for name, value in sizes.items():
            check_count("AgentBias", name, value)
        self.window = (rows, columns)
        shapes = {
            "an_bias": (heads, agents, block, block),
            "na_bias": (heads, agents, block, block),
            "ah_bias": (1, heads, agents, rows, 1),
            "aw_bias": (1, heads, agents, 1, columns),
            "ha_bias": (1, heads, rows, 1, agents),
            "wa_bias": (1, heads, 1, columns, agents),
            "ac_bias": (1, heads, agents, 1),
            "ca_bias": (1, heads, 1, agents),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02)))

    def from_tokens(self, grid: tuple[int, int], class_tokens: int) -> Tensor:
        """Added to the scores of agents with tokens."""
        profile = (self.get_parameter("ah_bias") + self.get_parameter("aw_bias"))[0]
        return self._bias("an_bias", profile, self.get_parameter("ac_bias")[0], grid, class_tokens)

    def to_tokens(self, grid: tuple[int, int], class_tokens: int) -> Tensor:
        """Added to the scores of tokens with agents."""
        profile = (self.get_parameter("ha_bias") + self.get_parameter("wa_bias"))[0].movedim(-1, -3)
        return self._bias("na_bias", profile, self.get_parameter("ca_bias")[0].mT, grid, class_tokens).mT

    def _bias(self, coarse: str, profile: Tensor, classes: Tensor, grid: tuple[int, int], class_tokens: int) -> Tensor:
        """``(heads, agents, class tokens + patches)`` from a coarse map and a profile ``(heads, agents, rows, columns)``."""
        enlarged = F.interpolate(self.get_parameter(coarse), size=grid, mode="bilinear")
        if grid != self.window:
            profile = F.interpolate(profile, size=grid, mode="bilinear")
        return torch.cat((classes.expand(-1, -1, class_tokens), (enlarged + profile).flatten(-2)), dim=-1)


@final
class AgentAttention(AttentionLayer):
    r"""Agent attention: m agents read all tokens, every token reads the agents; with contraction, CBSA of three projections.

    Minimises
        $f(O) = \frac{1}{2K} \sum_k \sum_i \sum_{a \leq m} b_{k,ia} \Vert o_i - K O_k r_{k,a} - b \Vert^2$ over the m pairs of
        agents and what they found; agents, their values and weights frozen at Z
    In code
        ``R = pool(Q)``, ``V_R = softmax(s R Kᵀ) V``, contraction ``V_R ← softmax(s V_R V_Rᵀ) V_R``,
        ``attention = softmax(s Q Rᵀ) V_R``, ``x + κ (attention(x) − x)``. Gradient of f at x: ``x − attention(x)``, L = 1
    Shapes
        x ``(..., tokens, dim)``; agents, agent_values ``(..., heads, m, head_dim)``; returns like x
    Special cases
        contraction=False: agent attention, CBSA∨; contraction=True: CBSA*, the contraction of CBSA's softmax form on
        representatives read through the query, key and value matrices of a trained network. MiTA(keys_per_expert=0) is
        the same layer without contraction and biases.

    Parameters
    ----------
        agents: a strategy from :mod:`unrolling.representatives`, GridPool((7, 7)) by default. contraction: see above.
        bias_window: rows and columns of patches for :class:`AgentBias`, None for no biases (a window needs a number of
        agents that is known). norm_agents=False: qk_norm in the agents' reading only, queries and agents as they are
        in the broadcast, as CBSA's released adaptation has it. The others: as for SoftmaxAttention.
    Cost
        multiply-adds ``4 N d² + 4 N m d`` (+ ``2 m² d`` with contraction): linear in tokens
    Source
        agent attention, arXiv 2312.08874, eq. 4; CBSA, arXiv 2509.16875, section 4.1 and figure 9 (CBSA*, CBSA∨)
    Differences from the authors' code
        MiTA's baseline and CBSA's adaptation pool a square grid that holds the class token and leaves out the last
        patch: agents=OfficialGridPool((7, 7)) and ((8, 8)). The original's depth-wise convolution is convolution=True.

    Raises
    ------
        ValueError for sizes, grids or steps that do not fit and a bias without a known number of agents; TypeError for
        another dtype or a strategy that pools nothing.
    Claims
        agent.values, agent.step.exact, agent.contraction, agent.cost
    """

    declares = "kernel regression on the agents; agents, their values and weights frozen"

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        head_dim: int | None = None,
        *,
        agents: Representatives | None = None,
        contraction: bool = False,
        bias_window: tuple[int, int] | None = None,
        norm_agents: bool = True,
        projections: str = "free",
        bias: bool = True,
        scale: float | None = None,
        step_size: float = 1.0,
        learnable_step: bool = True,
        class_tokens: int = 0,
        **options: Unpack[AttentionOptions],
    ) -> None:
        check_choice("AgentAttention", "projections", projections, ("free", "identity"))
        super().__init__(
            dim,
            heads,
            head_dim,
            projections=projections,
            bias=bias,
            scale=scale,
            step_size=step_size,
            learnable_step=learnable_step,
            class_tokens=class_tokens,
            **options,
        )
        strategy = GridPool((7, 7)) if agents is None else agents
        if not isinstance(strategy, Representatives) or not strategy.softmax_extraction:
            raise TypeError(
                "AgentAttention: agents must be a strategy that pools queries (GridPool, SequencePool, LearnedQueries,"
                f" Strided), but is {type(strategy).__name__}."
            )
        self.strategy, self.contraction, self.norm_agents = strategy, contraction, norm_agents
        self.agent_bias = None
        if bias_window is not None:
            if self.register_tokens:
                raise ValueError("AgentAttention: biases are of class tokens and patches; pass register_tokens=0.")
            if strategy.count is None:
                raise ValueError(
                    f"AgentAttention: biases need a known number of agents, which {type(strategy).__name__} has not."
                )
            self.agent_bias = AgentBias(heads, strategy.count, bias_window)
        self.token_count = None
        if strategy.token_count is not None:
            self.token_count = strategy.token_count + class_tokens + self.register_tokens

    def _read(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int] | None, x: Tensor) -> Tensor:
        drop = self.dropout if self.training else 0.0
        readers, agents = self._broadcast_pair(q, grid, x)
        bias = self._bias_from(x, grid)
        found = self._contract(attend(self._reading(agents), k, v, self.scale, bias, drop, self.kernel))
        return attend(readers, agents, found, self.scale, self._bias_to(x, grid), drop, self.kernel)

    def _broadcast_pair(self, q: Tensor, grid: tuple[int, int] | None, x: Tensor) -> tuple[Tensor, Tensor]:
        """The queries that read the agents, and the agents pooled of them."""
        readers = q if self.norm_agents else self._split(x, "query")
        return readers, self.strategy.initial(self._patches(readers), self.class_tokens, grid)

    def _reading(self, agents: Tensor) -> Tensor:
        return agents if self.norm_agents or self.idle_norms else self.query_norm(agents)

    def _contract(self, found: Tensor) -> Tensor:
        if not self.contraction:
            return found
        return attend(found, found, found, self.scale, kernel=self.kernel)

    def _grid_of(self, x: Tensor, grid: tuple[int, int] | None) -> tuple[int, int]:
        bias = self.agent_bias
        found = bias.window if grid is None and bias is not None else grid
        count = x.shape[-2] - self.class_tokens - self.register_tokens
        if found is None or found[0] * found[1] != count:
            raise ValueError(f"AgentAttention: the biases need the grid of the {count} patches, but it is {found}.")
        return found

    def _bias_from(self, x: Tensor, grid: tuple[int, int] | None) -> Tensor | None:
        if self.agent_bias is None:
            return None
        return self.agent_bias.from_tokens(self._grid_of(x, grid), self.class_tokens)

    def _bias_to(self, x: Tensor, grid: tuple[int, int] | None) -> Tensor | None:
        if self.agent_bias is None:
            return None
        return self.agent_bias.to_tokens(self._grid_of(x, grid), self.class_tokens)

    def agents(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """The agents ``(..., heads, m, head_dim)``: pooled queries."""
        return self._broadcast_pair(self.queries(x, grid), grid, x)[1]

    def agent_weights(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """How much of every token an agent reads, ``(..., heads, m, tokens)``; rows sum to 1."""
        scores = self.scale * (self._reading(self.agents(x, grid)) @ self.keys(x, grid).mT)
        bias = self._bias_from(x, grid)
        return torch.softmax(scores if bias is None else scores + bias, dim=-1)

    def agent_values(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """What the agents found, contracted if the layer does that: ``(..., heads, m, head_dim)``."""
        found = self.agent_weights(x, grid) @ self.values(x)
        if not self.contraction:
            return found
        return torch.softmax(self.scale * (found @ found.mT), dim=-1) @ found

    def pairs(self, x: Tensor, grid: tuple[int, int] | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The weights of the agents for every token, and what the agents found."""
        readers, agents = self._broadcast_pair(self.queries(x, grid), grid, x)
        scores, bias = self.scale * (readers @ agents.mT), self._bias_to(x, grid)
        weights = torch.softmax(scores if bias is None else scores + bias, dim=-1)
        return weights, self.agent_values(x, grid), None

    def attention_map(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """What every token reads of every other through the agents, ``(..., heads, tokens, tokens)``; rows sum to 1."""
        through = self.agent_weights(x, grid)
        if self.contraction:
            found = through @ self.values(x)
            through = torch.softmax(self.scale * (found @ found.mT), dim=-1) @ through
        return self.pairs(x, grid)[0] @ through

    def extra_repr(self) -> str:
        """Sizes and options."""
        return super().extra_repr() + (", contraction=True" if self.contraction else "")
