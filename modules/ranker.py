"""The two-stage ranker over lifelong histories.

Shapes: R requests, S candidates, N events of all histories together, K chosen events, M others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from modules.attention import attend_all, attend_chosen, mean_all
from modules.clusters import cluster_histories
from modules.collisions import HashCollisions
from modules.head import INIT_STD, InterestHead
from modules.jagged import blocks, first_rows
from modules.random import uniform
from modules.ranker_config import RankerConfig
from modules.score import MLPScore, Score
from modules.search import Histories, Selection, most_recent, sample_others
from modules.search_units import (
    CATEGORY,
    CategorySearch,
    ExactSearch,
    RecentSearch,
    Search,
    SimHashSearch,
    SoftSearch,
    search_by_score,
)
from modules.tables import EventTables, FieldConfig, Projections, Rows


class RankerOutput(NamedTuple):
    """What a forward pass says about S candidates."""

    logits: Tensor
    """(S,) log odds of a click."""
    auxiliary_logits: Tensor | None
    """(S,) of the auxiliary head; None in evaluation and with ``auxiliary="none"``."""
    weights: Tensor
    """(S, K) attention weights of the chosen events, without gradient; 0 where there are fewer.
    (S, 0) where no event is chosen before the others."""
    recency: Tensor
    """(S, K) rank from the end of each chosen event (1: most recent); 0 where there are fewer. Of
    a cluster, the rounded mean."""


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
        self.tables = EventTables(self.fields, config.sharing, device, config.projection)
        self.score = _make_score(config, self.fields)
        self.search = _make_search(config, self.fields, self.score)
        if config.pooling != "attention" and not config.short_window:
            self.score.requires_grad_(requires_grad=False)  # no gradient would come
        self.collisions = (
            HashCollisions(self.score.hashable_width(), config.hash_groups, config.hash_group_bits)
            if config.pooling == "collisions"
            else None
        )
        width = sum(f.representation_dim for f in fields)
        self.head = InterestHead(
            width,
            config.hidden,
            config.target_aware,
            config.official_init,
            interests=2 if config.short_window else 1,
        )
        if config.auxiliary != "none":
            self.auxiliary_head = InterestHead(
                width, config.auxiliary_hidden, config.target_aware, config.official_init
            )
        if config.official_init:
            _initialize_as_published(self)

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
        histories = Histories(
            events={f.name: history[f.name].values() for f in self.fields},
            candidates={f.name: candidates[f.name].values() for f in self.fields},
            blocks=list(blocks(history_lengths, candidate_counts, request_of.device)),
            first_row=first_rows(history_lengths).to(request_of.device)[request_of],
            length=history_lengths.to(request_of.device)[request_of],
        )
        if self.config.search == "all":
            return self._forward_all(histories)
        if self.config.search == "clusters":
            return self._forward_clusters(histories, history_lengths, candidate_counts, request_of)
        if self.training and self.config.auxiliary == "full" and not self._sees_found_alone():
            return self._forward_full(histories)
        return self._forward_fast(
            histories,
            draw=lambda: uniform(
                seed, request_ids[request_of], _rank_in_request(request_of, candidate_counts)
            ),
        )

    def _sees_found_alone(self) -> bool:
        """Whether the auxiliary, too, attends to what the search found."""
        return self.config.search in ("category", "category_filled")

    def _forward_all(self, histories: Histories) -> RankerOutput:
        """No search: every event counts."""
        raw = self.tables(histories.events, histories.candidates)
        rows = self._scored(raw)
        if self.config.pooling == "mean":
            interests = mean_all(rows.targets, rows.values, histories.blocks)
        elif self.collisions is not None:
            interests = self.collisions(
                self.score.hashable(raw.queries),
                self.score.hashable(raw.keys),
                rows.values,
                histories.blocks,
            )
        else:
            interests = attend_all(
                rows.queries, rows.keys, rows.values, histories.blocks, self.score
            )
        nothing = interests.new_zeros(len(interests), 0)
        logits = self.head(rows.targets, interests, *self._short_interest(rows, histories))
        return RankerOutput(logits, None, nothing, nothing.long())

    def _forward_full(self, histories: Histories) -> RankerOutput:
        """Gradient reaches every event, through the auxiliary attention over the whole history."""
        raw = self.tables(histories.events, histories.candidates)
        rows = self._scored(raw)
        if isinstance(self.search, ExactSearch):  # by what is already there
            chosen = search_by_score(
                rows.queries, rows.keys, self.score, histories, self.config.top_k
            )
        else:
            chosen = self.search(
                histories, lambda: (raw.keys, raw.queries), self.score, self.config.top_k
            )
        if isinstance(self.search, SoftSearch):
            pooled = self.search.pool(raw.queries, raw.keys, raw.values, histories.blocks)
        else:
            pooled = attend_all(rows.queries, rows.keys, rows.values, histories.blocks, self.score)
        short = self._short_interest(rows, histories)
        return self._answer(rows, chosen, _recency(histories, chosen), pooled, short)

    def _forward_clusters(
        self,
        histories: Histories,
        history_lengths: Tensor,
        candidate_counts: Tensor,
        request_of: Tensor,
    ) -> RankerOutput:
        """Exact search among clusters, each as likely as its members together."""
        raw = self.tables(histories.events, histories.candidates)
        # the score normalizes or drops columns: like events are those of like keys
        clusters = cluster_histories(self._semantic(raw.keys), history_lengths)
        rows = self._scored(
            raw._replace(keys=clusters.mean(raw.keys), values=clusters.mean(raw.values))
        )
        # <[q; 1], [k; ln n]> = score + ln n
        log_size = clusters.sizes.to(rows.keys.dtype).log()[:, None]
        rows = rows._replace(
            keys=torch.cat([rows.keys, log_size], 1),
            queries=torch.cat([rows.queries, rows.queries.new_ones(len(rows.queries), 1)], 1),
        )
        counted = histories._replace(
            blocks=list(blocks(clusters.lengths, candidate_counts, request_of.device)),
            first_row=first_rows(clusters.lengths).to(request_of.device)[request_of],
            length=clusters.lengths.to(request_of.device)[request_of],
        )
        chosen = search_by_score(rows.queries, rows.keys, self.score, counted, self.config.top_k)
        age = _age(history_lengths, request_of.device)
        recency = clusters.mean(age.to(rows.keys.dtype)[:, None]).round().long().squeeze(1)
        pooled = None
        if self.training and self.config.auxiliary == "full":
            pooled = attend_all(rows.queries, rows.keys, rows.values, counted.blocks, self.score)
        short = self._short_interest(self._scored(raw), histories)
        return self._answer(rows, chosen, _take(recency, chosen.rows) * chosen.valid, pooled, short)

    def _answer(
        self,
        rows: Rows,
        chosen: Selection,
        recency: Tensor,
        pooled: Tensor | None,
        short: list[Tensor],
    ) -> RankerOutput:
        """Attention over the chosen of many rows, and both heads."""
        interests, weights = self._attend(
            rows.queries, _take(rows.keys, chosen.rows), _take(rows.values, chosen.rows), chosen
        )
        return RankerOutput(
            self.head(rows.targets, interests, *short),
            None if pooled is None else self.auxiliary_head(rows.targets, pooled),
            weights.detach(),
            recency,
        )

    def _forward_fast(self, histories: Histories, draw: Callable[[], Tensor]) -> RankerOutput:
        """Searches without gradient, then looks up again, with gradient, what attention needs."""
        k, m, w = self.config.top_k, self.config.auxiliary_others, self.config.short_window
        chosen = self.search(
            histories,
            lambda: self.tables.attend(histories.events, histories.candidates),
            self.score,
            k,
        )
        parts, with_auxiliary = [chosen], self.training and self.config.auxiliary != "none"
        if with_others := with_auxiliary and self.config.auxiliary == "sampled":
            others, log_weight = sample_others(
                chosen, histories.first_row, histories.length, m, draw()
            )
            parts.append(others)
        if w:
            parts.append(most_recent(histories.first_row, histories.length, w))
        rows = self._look_up(_side_by_side(parts), histories)
        queries, keys, values, targets = rows.queries, rows.keys, rows.values, rows.targets
        interests, weights = self._attend(queries, keys[:, :k], values[:, :k], chosen)
        all_interests = [interests]
        if w:
            all_interests.append(self._attend(queries, keys[:, -w:], values[:, -w:], parts[-1])[0])
        auxiliary_logits = None
        if with_others:
            raised = torch.cat(
                [log_weight.new_zeros(chosen.rows.shape), log_weight.expand_as(others.rows)], 1
            )
            interests, _ = self._attend(
                queries, keys[:, : k + m], values[:, : k + m], _side_by_side(parts[:2]), raised
            )
        if with_auxiliary:
            auxiliary_logits = self.auxiliary_head(targets, interests)
        return RankerOutput(
            self.head(targets, *all_interests),
            auxiliary_logits,
            weights.detach(),
            _recency(histories, chosen),
        )

    def _attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        chosen: Selection,
        log_weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return attend_chosen(queries, keys, values, chosen.valid, log_weight, self.score)

    def _short_interest(self, rows: Rows, histories: Histories) -> list[Tensor]:
        """Of the last events, from rows of the whole history; none without a short window."""
        if not self.config.short_window:
            return []
        last = most_recent(histories.first_row, histories.length, self.config.short_window)
        keys, values = _take(rows.keys, last.rows), _take(rows.values, last.rows)
        return [self._attend(rows.queries, keys, values, last)[0]]

    def _scored(self, rows: Rows) -> Rows:
        """Keys and queries as the score takes them."""
        return rows._replace(keys=self.score.key(rows.keys), queries=self.score.query(rows.queries))

    def _semantic(self, keys: Tensor) -> Tensor:
        """(N, A) -> the columns that say what an event is about."""
        return keys[:, : sum(f.attention_dim for f in self.fields if f.semantic)]

    def _look_up(self, attended: Selection, histories: Histories) -> Rows:
        """Rows of each candidate's own events, (S, K, ...), and of the candidates."""
        # padding is id 0: with an event's ids, an optimizer with momentum would move its row
        rows, valid = attended.rows.flatten(), attended.valid.flatten()
        events = {name: _take(ids, rows) * valid for name, ids in histories.events.items()}
        found = self._scored(self.tables(events, histories.candidates))
        return found._replace(
            keys=found.keys.unflatten(0, attended.rows.shape),
            values=found.values.unflatten(0, attended.rows.shape),
        )


def _make_score(config: RankerConfig, fields: tuple[FieldConfig, ...]) -> Score | MLPScore:
    if config.score == "mlp":
        return MLPScore(fields)
    # equal in all that a filled category search finds, but for what fills it up
    unused = frozenset({CATEGORY}) if config.search == "category_filled" else frozenset()
    return Score(fields, config.score, config.temperature, unused)


def _make_search(
    config: RankerConfig, fields: tuple[FieldConfig, ...], score: Score | MLPScore
) -> Search:
    match config.search:
        case "simhash":
            width = score.hashable_width(semantic_only=not config.hash_recency)
            bits = config.hash_bits or 2 * width
            return SimHashSearch(width, bits, semantic_only=not config.hash_recency)
        case "category" | "category_filled":
            if CATEGORY not in {f.name for f in fields}:
                raise ValueError(f"search={config.search!r} needs a field {CATEGORY!r}.")
            return CategorySearch(fill=config.search == "category_filled")
        case "soft":
            return SoftSearch(sum(f.attention_dim for f in fields))
        case "recent":
            return RecentSearch()
        case _:
            return ExactSearch()


def _initialize_as_published(model: nn.Module) -> None:
    """The heads do it themselves."""
    for module in model.modules():
        if isinstance(module, (Projections, MLPScore)):
            for name, parameter in module.named_parameters():
                if not name.endswith("bias"):
                    nn.init.normal_(parameter, std=INIT_STD)


def _side_by_side(parts: list[Selection]) -> Selection:
    """(S, K1 + K2 + ...)."""
    return Selection(
        torch.cat([part.rows for part in parts], 1), torch.cat([part.valid for part in parts], 1)
    )


def _recency(histories: Histories, chosen: Selection) -> Tensor:
    """(S, K) rank from the end of the history, 0 where not valid."""
    return ((histories.first_row + histories.length)[:, None] - chosen.rows) * chosen.valid


def _age(history_lengths: Tensor, device: torch.device) -> Tensor:
    """(N,) rank of each event from the end of its history."""
    ends = history_lengths.cumsum(0).repeat_interleave(history_lengths)
    return (ends - torch.arange(len(ends))).to(device)


def _take(values: Tensor, rows: Tensor) -> Tensor:
    """``values[rows]``; zeros where no history of the batch has an event."""
    if len(values) == 0:
        return values.new_zeros((*rows.shape, *values.shape[1:]))
    return values[rows]


def _rank_in_request(request_of: Tensor, candidate_counts: Tensor) -> Tensor:
    """(S,) 0, 1, ... within each request."""
    first = first_rows(candidate_counts).to(request_of.device)
    return torch.arange(len(request_of), device=request_of.device) - first[request_of]
