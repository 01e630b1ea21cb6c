"""The two-stage ranker over lifelong histories, and its configuration.

Shapes: R requests, S candidates, N events of all histories together, K chosen events, M others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from modules.attention import attend_all, attend_chosen
from modules.head import InterestHead
from modules.jagged import Block, blocks, first_rows
from modules.random import uniform
from modules.score import Score, ScoreKind
from modules.search import Selection, sample_others, top_k
from modules.tables import DecoupledTables, FieldConfig, Ids, Rows, SharedTables, Tables

Sharing = Literal["decoupled", "shared"]
Auxiliary = Literal["full", "sampled", "none"]


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """What a :class:`LifelongRanker` is made of. Defaults are DARE's."""

    sharing: Sharing = "decoupled"
    """decoupled: attention and representation have tables of their own (DARE); shared: one table
    serves both (TWIN)."""
    score: ScoreKind = "dot"
    """Of the semantic fields: dot product by the root of their width, or cosine times a learned
    temperature."""
    temperature: float = 6.0
    """Where the cosine's temperature starts."""
    top_k: int = 20
    """Events that the search hands to attention for each candidate (K)."""
    auxiliary: Auxiliary = "full"
    """The second loss, through attention over more than the K chosen events. full: over the whole
    history, as DARE; sampled: over the chosen and a few others; none: no second loss."""
    auxiliary_others: int = 20
    """sampled: others drawn for each candidate (M)."""
    target_aware: bool = True
    """Feeds the head the product of candidate and interest too."""
    hidden: tuple[int, ...] = (200, 80)
    """Widths of the head's hidden layers."""
    auxiliary_hidden: tuple[int, ...] = (200,)
    """Widths of the auxiliary head's hidden layers."""
    official_init: bool = False
    """Starts batch-norm gains and PReLU slopes from N(0, 0.01²) too, as the published code does."""

    def __post_init__(self) -> None:
        for name in ("top_k", "auxiliary_others"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("hidden", "auxiliary_hidden"):
            if min(getattr(self, name), default=1) < 1:
                raise ValueError(f"{name} widths must be positive, got {getattr(self, name)}.")
        for name, kind in (("sharing", Sharing), ("score", ScoreKind), ("auxiliary", Auxiliary)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name} is one of {', '.join(get_args(kind))}; got {getattr(self, name)!r}."
                )
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive, got {self.temperature}.")


class RankerOutput(NamedTuple):
    """What a forward pass says about S candidates."""

    logits: Tensor
    """(S,) log odds of a click."""
    auxiliary_logits: Tensor | None
    """(S,) of the auxiliary head; None in evaluation and with ``auxiliary="none"``."""
    weights: Tensor
    """(S, K) attention weights of the chosen events, without gradient; 0 where there are fewer."""
    recency: Tensor
    """(S, K) rank from the end of each chosen event (1: most recent); 0 where there are fewer."""


class LifelongRanker(nn.Module):
    r"""Two-stage target attention over lifelong histories (DARE, https://arxiv.org/abs/2410.02604).

    .. math::
        s_j = \text{score}(a_v, a_j), \quad T = \text{top-}K_j\, s_j, \quad
        h = \sum_{j \in T} \mathrm{softmax}_T(s_j)\, r_j, \quad
        \hat y = \text{head}([r_v;\, h;\, r_v \odot h])

    with attention rows a and representation rows r of the candidate v and the events j. Search and
    attention use the same score. Every row of a table is looked up with gradient once a step, so a
    fused optimizer makes one update of it.
    """

    def __init__(
        self,
        config: RankerConfig,
        fields: tuple[FieldConfig, ...],
        device: torch.device | None = None,
    ) -> None:
        """``device`` is that of the tables: "meta" where they will be sharded."""
        super().__init__()
        self.config = config
        # semantic fields first: the score splits the width in two
        self.fields = tuple(sorted(fields, key=lambda f: not f.semantic))
        self.tables: Tables = (
            DecoupledTables(self.fields, device)
            if config.sharing == "decoupled"
            else SharedTables(self.fields, device)
        )
        self.score = Score(self.fields, config.score, config.temperature)
        width = sum(f.representation_dim for f in fields)
        self.head = InterestHead(width, config.hidden, config.target_aware, config.official_init)
        if config.auxiliary != "none":
            self.auxiliary_head = InterestHead(
                width, config.auxiliary_hidden, config.target_aware, config.official_init
            )

    def forward(
        self,
        history: KeyedJaggedTensor,
        candidates: KeyedJaggedTensor,
        request_of: Tensor,
        request_ids: Tensor,
        history_lengths: Tensor,
        candidate_counts: Tensor,
        seed: int = 0,
    ) -> RankerOutput:
        """Scores the candidates of a batch.

        Args:
            history: stride R, one key per field, events in time order.
            candidates: stride S, bags of one, the same keys.
            request_of: (S,) int64 request of each candidate, ascending.
            request_ids: (R,) int64; with ``seed`` they decide the random draws of the auxiliary.
            history_lengths: (R,) int64 on the host.
            candidate_counts: (R,) int64 on the host.
            seed: of this step's draws.
        """
        batch = _Batch(
            events={f.name: history[f.name].values() for f in self.fields},
            candidates={f.name: candidates[f.name].values() for f in self.fields},
            blocks=list(blocks(history_lengths, candidate_counts, request_of.device)),
            first_row=first_rows(history_lengths).to(request_of.device)[request_of],
            length=history_lengths.to(request_of.device)[request_of],
        )
        if self.config.auxiliary == "full" and self.training:
            return self._forward_full(batch)
        return self._forward_fast(
            batch,
            draw=lambda: uniform(
                seed, request_ids[request_of], _rank_in_request(request_of, candidate_counts)
            ),
        )

    def _forward_full(self, batch: _Batch) -> RankerOutput:
        """Gradient reaches every event, through the auxiliary attention over the whole history."""
        keys, queries, values, targets = self.tables(batch.events, batch.candidates)
        keys, queries = self.score.key(keys), self.score.query(queries)
        chosen = top_k(queries, keys, batch.blocks, self.config.top_k)
        interests, weights = attend_chosen(
            queries, _take(keys, chosen.rows), _take(values, chosen.rows), chosen.valid
        )
        history_interests = attend_all(queries, keys, values, batch.blocks)
        return RankerOutput(
            self.head(targets, interests),
            self.auxiliary_head(targets, history_interests),
            weights.detach(),
            batch.recency(chosen),
        )

    def _forward_fast(self, batch: _Batch, draw: Callable[[], Tensor]) -> RankerOutput:
        """Searches without gradient, then looks up again, with gradient, what attention needs."""
        chosen = self._search(batch)
        attended, log_weight = chosen, None
        with_auxiliary = self.training and self.config.auxiliary == "sampled"
        if with_auxiliary:
            attended, log_weight = self._add_others(chosen, batch, draw())
        keys, queries, values, targets = self._look_up(attended, batch)
        k = self.config.top_k
        interests, weights = attend_chosen(queries, keys[:, :k], values[:, :k], chosen.valid)
        auxiliary_logits = None
        if with_auxiliary:
            wider_interests, _ = attend_chosen(queries, keys, values, attended.valid, log_weight)
            auxiliary_logits = self.auxiliary_head(targets, wider_interests)
        return RankerOutput(
            self.head(targets, interests),
            auxiliary_logits,
            weights.detach(),
            batch.recency(chosen),
        )

    @torch.no_grad()
    def _search(self, batch: _Batch) -> Selection:
        keys, queries = self.tables.attend(batch.events, batch.candidates)
        return top_k(
            self.score.query(queries), self.score.key(keys), batch.blocks, self.config.top_k
        )

    def _add_others(
        self, chosen: Selection, batch: _Batch, draw: Tensor
    ) -> tuple[Selection, Tensor]:
        """The chosen events and M others, (S, K + M), and what their scores are raised by."""
        others, log_weight = sample_others(
            chosen, batch.first_row, batch.length, self.config.auxiliary_others, draw
        )
        both = Selection(
            torch.cat([chosen.rows, others.rows], dim=1),
            torch.cat([chosen.valid, others.valid], dim=1),
        )
        raised = [log_weight.new_zeros(chosen.rows.shape), log_weight.expand_as(others.rows)]
        return both, torch.cat(raised, dim=1)

    def _look_up(self, attended: Selection, batch: _Batch) -> Rows:
        """Rows of each candidate's own events, (S, K, ...), and of the candidates."""
        # padding is id 0: with an event's ids, an optimizer with momentum would move its row
        rows, valid = attended.rows.flatten(), attended.valid.flatten()
        events = {name: _take(ids, rows) * valid for name, ids in batch.events.items()}
        keys, queries, values, targets = self.tables(events, batch.candidates)
        return Rows(
            self.score.key(keys).unflatten(0, attended.rows.shape),
            self.score.query(queries),
            values.unflatten(0, attended.rows.shape),
            targets,
        )


class _Batch(NamedTuple):
    """A batch as the two stages need it."""

    events: Ids
    candidates: Ids
    blocks: list[Block]
    first_row: Tensor
    """(S,) where each candidate's history begins."""
    length: Tensor
    """(S,) events in it."""

    def recency(self, chosen: Selection) -> Tensor:
        """(S, K) rank from the end of the history, 0 where not valid."""
        rank = (self.first_row + self.length)[:, None] - chosen.rows
        return rank * chosen.valid


def _take(values: Tensor, rows: Tensor) -> Tensor:
    """``values[rows]``; zeros where no history of the batch has an event."""
    if len(values) == 0:
        return values.new_zeros((*rows.shape, *values.shape[1:]))
    return values[rows]


def _rank_in_request(request_of: Tensor, candidate_counts: Tensor) -> Tensor:
    """(S,) 0, 1, ... within each request."""
    first = first_rows(candidate_counts).to(request_of.device)
    return torch.arange(len(request_of), device=request_of.device) - first[request_of]
