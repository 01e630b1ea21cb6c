"""The two-stage ranker over lifelong histories.

Shapes: R requests, S candidates, N events of all histories together, K chosen events, M others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from modules.attention import (
    attend_all,
    attend_chosen,
    encode_all,
    masked_softmax,
    mean_all,
    score_joint,
)
from modules.bags import Ids, ids_of, pick_rows
from modules.clusters import cluster_histories
from modules.context import NO_CONTEXT, ContextConfig, ContextFields, FirstOrder
from modules.jagged import first_rows
from modules.parts import (
    make_auxiliary_head,
    make_collisions,
    make_encoder,
    make_head,
    make_score,
    make_search,
    start_maps_small,
)
from modules.random import uniform
from modules.ranker_config import RankerConfig
from modules.search import Histories, Selection, most_recent, sample_others
from modules.search_units import SoftSearch, search_by_score
from modules.tables import EventTables, FieldConfig, Rows


class RankerOutput(NamedTuple):
    """What a forward pass says about S candidates."""

    logits: Tensor
    """(S,) log odds of a click."""
    auxiliary_logits: Tensor | None
    """(S,) of the auxiliary head; None in evaluation and with ``auxiliary="none"``."""
    weights: Tensor
    """(S, K) attention weights of the chosen events, or clusters, without gradient; 0 where there
    are fewer. (S, 0) with ``search="all"``, which chooses none."""
    recency: Tensor
    """(S, K) rank from the end of each chosen event (1: most recent); 0 where there are fewer. Of
    a cluster, the rounded mean."""


class _Found(NamedTuple):
    """What the heads look at."""

    targets: Tensor
    """(S, R) representation rows of the candidates."""
    interests: list[Tensor]
    """(S, R) each."""
    pooled: Tensor | None
    """(S, R) interest of the auxiliary task."""
    weights: Tensor
    recency: Tensor
    """As in :class:`RankerOutput`."""


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
        context: ContextConfig = NO_CONTEXT,
        sums_rows: bool = False,
    ) -> None:
        """``device`` is that of the tables: "meta" where they will be sharded. With
        ``sums_rows`` tables sum representation rows where they can, instead of handing them out.
        """
        super().__init__()
        self.config = config
        # semantic fields first: the score splits the width in two
        self.fields = tuple(sorted(fields, key=lambda f: not f.semantic))
        if self.fields:
            self.tables = EventTables(
                self.fields,
                config.sharing,
                device,
                config.projection,
                sums_rows=sums_rows and config.searches_first,
            )
        self.score = make_score(config, self.fields)
        self.search = make_search(config, self.fields, self.score)
        self.collisions = make_collisions(config, self.score)
        self.encoder = make_encoder(config, self.fields)
        if config.pooling != "attention" and not config.short_window:
            self.score.requires_grad_(requires_grad=False)  # no gradient would come
        linear = config.head == "crossing" and config.crossing.linear
        vectors = config.head == "mlp" or config.crossing.reads_vectors
        self.context = (
            ContextFields(context, vectors=vectors, first_order=linear, device=device)
            if len(context)
            else None
        )
        semantic = tuple((f.name, f.num_embeddings) for f in self.fields if f.semantic)
        self.first_order = (
            FirstOrder(semantic, "candidate", device) if linear and semantic else None
        )
        self.head = make_head(config, self.fields, context)
        if config.auxiliary != "none":
            self.auxiliary_head = make_auxiliary_head(config, self.fields)
        if config.small_maps:
            start_maps_small(self)

    def forward(
        self,
        history: KeyedJaggedTensor,
        candidates: KeyedJaggedTensor,
        request_of: Tensor,
        request_ids: Tensor,
        history_lengths: Tensor,
        candidate_counts: Tensor,
        seed: int = 0,
        context: KeyedJaggedTensor | None = None,
        numbers: Tensor | None = None,
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
            context: stride R, bags of one; what the model has no field for is not read.
            numbers: (R, N), NaN where missing.
        """
        names = [f.name for f in self.fields]
        histories = Histories.of(
            ids_of(history, names),
            ids_of(candidates, names),
            request_of,
            history_lengths,
            candidate_counts,
        )
        found = self._find(
            histories,
            draw=lambda: uniform(
                seed, request_ids[request_of], _rank_in_request(request_of, candidate_counts)
            ),
        )
        beside = self._beside(histories, context, numbers)
        return RankerOutput(
            self.head(found.targets, *found.interests, **beside),
            None if found.pooled is None else self.auxiliary_head(found.targets, found.pooled),
            found.weights.detach(),
            found.recency,
        )

    def _find(self, histories: Histories, draw: Callable[[], Tensor]) -> _Found:
        if self.config.pooling == "none":
            return self._without_history(histories)
        if self.config.search == "all":
            return self._attending_to_all(histories)
        if self.config.search == "clusters":
            return self._among_clusters(histories)
        if self.training and not self.config.searches_first:
            return self._with_gradient_to_all(histories)
        return self._searching_first(histories, draw)

    def _beside(
        self, histories: Histories, context: KeyedJaggedTensor | None, numbers: Tensor | None
    ) -> dict[str, Tensor]:
        """What the head sees beside candidate and interests: (S, F, D) rows of context fields, and
        (S,) the linear term.
        """
        beside: dict[str, Tensor] = {}
        request_of = histories.request_of
        first_order = torch.zeros(len(request_of), device=request_of.device)
        if self.context is not None:
            rows, of_request = self.context(context, numbers)
            beside["context"], first_order = rows[request_of], of_request[request_of]
        if self.first_order is not None:
            ids = {f.name: histories.candidates[f.name] for f in self.fields if f.semantic}
            first_order = first_order + self.first_order(ids)
        if self.config.head == "crossing":
            beside["first_order"] = first_order
        return beside

    @property
    def reads_history(self) -> bool:
        """Whether events matter to it."""
        return self.config.pooling != "none"

    def _without_history(self, histories: Histories) -> _Found:
        """The candidate alone; nothing at all where a log has no items."""
        if self.fields:
            targets = self.tables.represent(histories.candidates)
        else:
            targets = torch.zeros(len(histories.request_of), 0, device=histories.request_of.device)
        return _Found(targets, [], None, *_nothing_chosen(targets))

    def _attending_to_all(self, histories: Histories) -> _Found:
        """No search: every event counts."""
        raw = self.tables(histories.events, histories.candidates)
        rows = self._scored(raw)
        if self.config.pooling == "mean":
            interests = mean_all(rows.targets, rows.values, histories.blocks)
        elif self.encoder is not None:
            interests = encode_all(rows.targets, rows.values, histories.blocks, self.encoder)
        elif self.collisions is not None:
            queries, keys = self.score.hashable(raw.queries), self.score.hashable(raw.keys)
            interests = self.collisions(queries, keys, rows.values, histories.blocks)
        else:
            interests = self._attend_all(rows, histories)
        interests = [*interests.split(rows.targets.shape[1], dim=1)]
        interests += self._short_interest(rows, histories)
        return _Found(rows.targets, interests, None, *_nothing_chosen(rows.targets))

    def _with_gradient_to_all(self, histories: Histories) -> _Found:
        """Gradient reaches every event, through the auxiliary attention over the whole history."""
        raw = self.tables(histories.events, histories.candidates)
        rows = self._scored(raw)
        chosen = self.search(
            histories, lambda: (raw.keys.__getitem__, raw.queries), self.score, self.config.top_k
        )
        pooled = (
            self.search.pool(raw.queries, raw.keys, raw.values, histories.blocks)
            if isinstance(self.search, SoftSearch)
            else self._attend_all(rows, histories)
        )
        short = self._short_interest(rows, histories)
        return self._of_chosen(rows, chosen, histories.age_of(chosen), pooled, short)

    def _among_clusters(self, histories: Histories) -> _Found:
        """Exact search among clusters, each as likely as its members together."""
        raw = self.tables(histories.events, histories.candidates)
        semantic = sum(f.attention_dim for f in self.fields if f.semantic)
        clusters = cluster_histories(raw.keys[:, :semantic], histories.lengths)
        rows = self._scored(
            raw._replace(keys=clusters.mean(raw.keys), values=clusters.mean(raw.values))
        )
        # <[q; 1], [k; ln n]> = score + ln n
        log_size = clusters.sizes.to(rows.keys.dtype).log()[:, None]
        rows = rows._replace(
            keys=torch.cat([rows.keys, log_size], 1),
            queries=torch.cat([rows.queries, rows.queries.new_ones(len(rows.queries), 1)], 1),
        )
        of_clusters = histories.of_lengths(clusters.lengths)
        chosen = search_by_score(
            rows.queries, rows.keys.__getitem__, self.score, of_clusters, self.config.top_k
        )
        age = clusters.mean(histories.ages().to(rows.keys.dtype)[:, None]).round().long()
        with_auxiliary = self.training and self.config.auxiliary == "full"
        pooled = self._attend_all(rows, of_clusters) if with_auxiliary else None
        short = self._short_interest(self._scored(raw), histories)
        age_of_chosen = _take(age.squeeze(1), chosen.rows) * chosen.valid
        return self._of_chosen(rows, chosen, age_of_chosen, pooled, short)

    def _of_chosen(
        self,
        rows: Rows,
        chosen: Selection,
        age: Tensor,
        pooled: Tensor | None,
        short: list[Tensor],
    ) -> _Found:
        """Attention over the chosen of all rows."""
        interest, weights = self._attend(rows, chosen)
        return _Found(rows.targets, [interest, *short], pooled, weights, age)

    def _searching_first(self, histories: Histories, draw: Callable[[], Tensor]) -> _Found:
        """Searches without gradient, then looks up again, with gradient, what attention needs."""
        k, m, w = self.config.top_k, self.config.auxiliary_others, self.config.short_window
        chosen = self.search(
            histories,
            lambda: self.tables.searched(histories.events, histories.candidates),
            self.score,
            k,
        )
        wanted = [chosen]
        with_others = self.training and self.config.auxiliary == "sampled"
        if with_others:
            others, log_weight = sample_others(
                chosen, histories.first_row, histories.length, m, draw()
            )
            wanted.append(others)
        if w:
            last = most_recent(histories.first_row, histories.length, w)
            wanted.append(last)
        attended = _side_by_side(wanted)
        keys, queries, sums = self.tables.attended(
            _events_of(attended, histories), histories.candidates
        )
        scores = score_joint(keys, queries, self.score)
        weights = masked_softmax(scores[:, :k], chosen.valid)
        parts = [(slice(k), weights)]
        if w:
            parts.append((slice(-w, None), masked_softmax(scores[:, -w:], last.valid)))
        if with_others:
            raised = torch.cat(
                [scores[:, :k], scores[:, k : k + m] + log_weight.to(scores.dtype)], dim=1
            )
            both = slice(k + m)
            parts.append((both, masked_softmax(raised, attended.valid[:, both])))
        targets, interests = sums(parts)
        pooled = None
        if self.training and self.config.auxiliary != "none":
            pooled = interests.pop() if with_others else interests[0]
        return _Found(targets, interests, pooled, weights, histories.age_of(chosen))

    def _attend_all(self, rows: Rows, histories: Histories) -> Tensor:
        return attend_all(rows.queries, rows.keys, rows.values, histories.blocks, self.score)

    def _short_interest(self, rows: Rows, histories: Histories) -> list[Tensor]:
        """Of the last events, from rows of the whole history; none without a short window."""
        if not self.config.short_window:
            return []
        last = most_recent(histories.first_row, histories.length, self.config.short_window)
        return [self._attend(rows, last)[0]]

    def _attend(self, rows: Rows, chosen: Selection) -> tuple[Tensor, Tensor]:
        """To some of all events: (S, R) interests and (S, K) weights."""
        keys, values = _take(rows.keys, chosen.rows), _take(rows.values, chosen.rows)
        return attend_chosen(rows.queries, keys, values, chosen.valid, self.score)

    def _scored(self, rows: Rows) -> Rows:
        """Keys and queries as the score takes them."""
        return rows._replace(keys=self.score.key(rows.keys), queries=self.score.query(rows.queries))


def _events_of(attended: Selection, histories: Histories) -> Ids:
    """(S, K) ids; of padding 0: with an event's, an optimizer with momentum would move its row."""
    return {
        name: _take(ids, attended.rows) * attended.valid for name, ids in histories.events.items()
    }


def _nothing_chosen(like: Tensor) -> tuple[Tensor, Tensor]:
    nothing = like.new_zeros(len(like), 0)
    return nothing, nothing.long()


def _side_by_side(parts: list[Selection]) -> Selection:
    """(S, K1 + K2 + ...)."""
    return Selection(
        torch.cat([part.rows for part in parts], 1), torch.cat([part.valid for part in parts], 1)
    )


def _take(values: Tensor, rows: Tensor) -> Tensor:
    """``values[rows]``; zeros where no history of the batch has an event."""
    if len(values) == 0:  # part of the graph: every rank has to run every backward
        return values.sum(0).expand(*rows.shape, *values.shape[1:])
    return pick_rows(values, rows)


def _rank_in_request(request_of: Tensor, candidate_counts: Tensor) -> Tensor:
    """(S,) 0, 1, ... within each request."""
    first = first_rows(candidate_counts).to(request_of.device, non_blocking=True)
    return torch.arange(len(request_of), device=request_of.device) - first[request_of]
