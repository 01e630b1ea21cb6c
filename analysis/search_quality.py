r"""How near a search comes to the order of the mutual information (DARE, figure 9), done right.

With the gain :math:`g_j = MI(c, b_j, p_j)` of the event j of category b_j in recency bin p_j for a
candidate of category c, and the events in the order in which a model ranks them,

.. math::
    \mathrm{DCG}@k = \sum_{i=1}^{k} \frac{g_{(i)}}{\log_2 (i + 1)}, \quad
    \mathrm{NDCG}@k = \mathrm{DCG}@k / \max_{\text{orders}} \mathrm{DCG}@k

The published curve divides by the best DCG@K at every k, so that only its last point is an NDCG; it
is kept beside as ``official``. Shapes: in a block B requests, L events, C candidates; M candidates
that are judged, T target categories, K length of the order, P bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from analysis.histories import history_ends
from analysis.mutual_information import InformationCounts
from analysis.scores import (
    PLACE,
    block_scores,
    chooses_by_score,
    chooses_events,
    has_partial_scores,
)
from data.batch import RankingBatch
from modules.jagged import Block
from modules.ranker import LifelongRanker, RankerOutput

ORDERS = ("score", "category and recency", "search", "most recent", "random")
"""Ways to order a history: by the trained score; by the score of category and recency alone, which
is what the published measure takes; what the search handed to attention, by weight; by time; any.
"""
USER_GROUPS = 1024
"""Into so many groups users fall for the interval of NDCG@K, whose memory thus stays small."""
RESAMPLES = 1000
JUDGES = ("judged", "published")
"""Which candidates are judged, and by what. judged: all of a category with enough training
candidates; the information is that of the narrowest bin of ranks with enough counts. published:
only those candidates few of whose events have too few counts, whatever these say."""


@dataclass(frozen=True, kw_only=True)
class Enough:
    """Which counts are enough for a gain. The numbers are those of the published measure."""

    candidates: int = 700
    """Of the target category in training."""
    events: int = 50
    """Clicked and not clicked, each, of a cell."""
    uncertain_share: float = 0.1
    """Of a history's events with fewer, above which ``published`` leaves a candidate out."""


class SearchQuality:
    """Sums over batches of a split."""

    def __init__(
        self,
        ranker: LifelongRanker,
        counts: InformationCounts,
        enough: Enough,
        device: torch.device,
    ) -> None:
        """``counts`` are of all ranks already."""
        self.ranker, self.enough = ranker, enough
        axes, self.k = counts.axes, ranker.config.top_k
        self._target, self._event, self._place = axes.slots(device)
        rich = counts.candidates.sum(dim=1) >= enough.candidates
        self._rich = torch.cat([rich, rich.new_zeros(1)])  # the last is no target
        widened, _ = counts.widened_until_certain(enough.events)
        self._gains = [_with_unknown(widened), _with_unknown(counts.information())]
        self._certain = _with_unknown(counts.certain(enough.events))
        self.orders = tuple(name for name in ORDERS if self._has(name))
        shape = (len(JUDGES), len(self.orders), self.k)
        self._ndcg, self._official, self._recall = (
            torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(3)
        )
        self._judged = torch.zeros(len(JUDGES), 1, 1, dtype=torch.float64, device=device)
        # candidates, and the sum of NDCG@K of each order, by group of users
        self._groups = torch.zeros(
            USER_GROUPS, 1 + len(self.orders), dtype=torch.float64, device=device
        )
        self._seen = torch.zeros(1, dtype=torch.float64, device=device)
        self._agreement = torch.zeros(2, dtype=torch.float64, device=device)

    def _has(self, order: str) -> bool:
        if order == "category and recency":
            return has_partial_scores(self.ranker)
        return order != "search" or chooses_events(self.ranker)

    @torch.no_grad()
    def update(self, output: RankerOutput, batch: RankingBatch) -> None:
        """Adds a batch. Collective where the tables are sharded."""
        partial = "category and recency" in self.orders
        full = list(block_scores(self.ranker, batch))
        place = list(block_scores(self.ranker, batch, only=PLACE)) if partial else full
        for (block, scores_BCL), (_, place_BCL) in zip(full, place, strict=True):
            self._add_block(block, scores_BCL, place_BCL, output, batch)

    def _add_block(
        self,
        block: Block,
        scores_BCL: Tensor,
        place_BCL: Tensor,
        output: RankerOutput,
        batch: RankingBatch,
    ) -> None:
        real = block.candidates < len(output.logits)
        b, c = real.nonzero(as_tuple=True)
        candidate = block.candidates[b, c]
        scores_ML, mask_ML = scores_BCL[b, c], block.row_mask[b]
        chosen_ML = self._chosen(candidate, output, batch, mask_ML)
        if "search" in self.orders:
            self._add_agreement(scores_ML, chosen_ML, mask_ML)
        self._seen += len(candidate)
        target = self._target[batch.candidates["category"].values()[candidate]]
        kept = self._rich[target]
        rows_ML = block.rows[b[kept]]
        event = self._event[batch.history["category"].values()[rows_ML]]
        place = self._place[batch.history["recency"].values()[rows_ML]]
        cell = (target[kept][:, None], event, place)
        mask_ML, certain_ML = mask_ML[kept], self._certain[cell]
        recency = torch.arange(mask_ML.shape[1], device=mask_ML.device).expand(mask_ML.shape)
        orders = {
            "score": scores_ML[kept],
            "category and recency": place_BCL[b, c][kept],
            "search": chosen_ML[kept],
            "most recent": recency.double(),
        }
        uncertain = (mask_ML & ~certain_ML).sum(1) / mask_ML.sum(1)
        published = uncertain <= self.enough.uncertain_share
        user = batch.context["user"].values()[batch.request_of[candidate[kept]]]
        self._judge(0, orders, self._gains[0][cell], mask_ML, user % USER_GROUPS)
        chosen = {name: order[published] for name, order in orders.items()}
        self._judge(1, chosen, self._gains[1][cell][published], mask_ML[published])

    def _chosen(
        self, candidate: Tensor, output: RankerOutput, batch: RankingBatch, mask_ML: Tensor
    ) -> Tensor:
        """(M, L) attention weight of the events that the search chose, -inf for all others."""
        recency, weights = output.recency[candidate], output.weights[candidate].double()
        _, lengths = history_ends(batch)
        # one column more, for what was not chosen
        position = torch.where(
            recency > 0, lengths[candidate][:, None] - recency, mask_ML.shape[1]
        ).clamp(0, mask_ML.shape[1])
        order = weights.new_full((len(candidate), mask_ML.shape[1] + 1), -torch.inf)
        return order.scatter_(1, position, weights)[:, :-1]

    def _add_agreement(self, scores_ML: Tensor, chosen_ML: Tensor, mask_ML: Tensor) -> None:
        """How many of the K highest scores the search has chosen; equal scores are as good."""
        k = min(self.k, scores_ML.shape[1])
        least = scores_ML.topk(k, dim=1).values
        possible = mask_ML.sum(1).clamp(max=self.k)
        least = least.gather(1, (possible - 1)[:, None])
        tolerance = 1e-5 * (1 + least.abs())
        hits = ((scores_ML >= least - tolerance) & (chosen_ML > -torch.inf)).sum(1)
        self._agreement[0] += (hits.clamp(max=possible) / possible).sum()
        self._agreement[1] += len(hits)

    def _judge(
        self,
        judge: int,
        orders: dict[str, Tensor],
        gain: Tensor,
        mask: Tensor,
        group: Tensor | None = None,
    ) -> None:
        """Adds candidates by one of the ways to choose them.

        Args:
            orders: name -> (M, L): the higher, the earlier; -inf: not at all.
            gain: (M, L).
            mask: (M, L).
            group: (M,) of users; None: no interval is wanted.
        """
        ideal_MK = _dcg(_first(gain.masked_fill(~mask, -torch.inf), gain, self.k))
        told = ideal_MK[:, -1] > 0
        gain, mask, ideal_MK = gain[told], mask[told], ideal_MK[told]
        self._judged[judge] += len(gain)
        in_group = [torch.ones(len(gain), dtype=torch.float64, device=gain.device)]
        for number, name in enumerate(self.orders):
            if name == "random":
                found_MK, hits_MK = _expected(gain, mask, self.k)
            else:
                order = orders[name][told].masked_fill(~mask, -torch.inf)
                found_MK = _dcg(_first(order, gain, self.k))
                hits_MK = _recall(order, gain, mask, self.k)
            self._ndcg[judge, number] += (found_MK / ideal_MK).sum(0)
            self._official[judge, number] += (found_MK / ideal_MK[:, -1:]).sum(0)
            self._recall[judge, number] += hits_MK.sum(0)
            in_group.append((found_MK / ideal_MK)[:, -1].double())
        if group is not None:
            self._groups.index_add_(0, group[told], torch.stack(in_group, 1))

    def to_json(self) -> dict[str, Any]:
        """Means over the candidates of all ranks: collective."""
        for sums in (
            self._ndcg, self._official, self._recall, self._judged, self._seen, self._agreement,
            self._groups,
        ):  # fmt: skip
            dist.all_reduce(sums)
        result: dict[str, Any] = {
            "k": list(range(1, self.k + 1)),
            "candidates": int(self._seen.item()),
            "exact_search": chooses_by_score(self.ranker),
            "agreement_with_exact": _mean(self._agreement[0], self._agreement[1]),
        }
        for number, judge in enumerate(JUDGES):
            count = self._judged[number]
            result[judge] = {"candidates": int(count.item()), "orders": {}}
            for place, name in enumerate(self.orders):
                result[judge]["orders"][name] = {
                    "ndcg": _mean(self._ndcg[number, place], count[0]),
                    "official": _mean(self._official[number, place], count[0]),
                    "recall": _mean(self._recall[number, place], count[0]),
                }
        if result["judged"]["candidates"]:
            intervals = _intervals(self._groups.cpu().numpy())
            for name, interval in zip(self.orders, intervals, strict=True):
                result["judged"]["orders"][name]["ndcg_interval"] = interval
        return result


def _intervals(groups: np.ndarray) -> list[list[float]]:
    """95 % bootstrap intervals, over groups of users, of means.

    Args:
        groups: (G, 1 + n) of each group, its candidates and n sums over them.
    """
    groups = groups[groups[:, 0] > 0]
    draws = np.random.default_rng(0).multinomial(
        len(groups), np.full(len(groups), 1 / len(groups)), size=RESAMPLES
    )
    totals = draws @ groups
    return np.percentile(totals[:, 1:] / totals[:, :1], [2.5, 97.5], axis=0).T.tolist()


def _with_unknown(cells: Tensor) -> Tensor:
    """(T + 1, B + 1, P + 1): the last of each, index -1, is what has no cell."""
    return torch.nn.functional.pad(cells, (0, 1, 0, 1, 0, 1))


def _first(order: Tensor, gain: Tensor, k: int) -> Tensor:
    """(M, K) gains in an order, 0 after its end."""
    best = order.topk(min(k, order.shape[1]), dim=1)
    found = gain.gather(1, best.indices) * (best.values > -torch.inf)
    return torch.nn.functional.pad(found, (0, k - found.shape[1]))


def _discounts(k: int, like: Tensor) -> Tensor:
    return 1 / torch.arange(2, k + 2, dtype=like.dtype, device=like.device).log2()


def _dcg(gain_MK: Tensor) -> Tensor:
    """(M, K) gains in order -> (M, K) DCG@1 ... DCG@K."""
    return (gain_MK * _discounts(gain_MK.shape[1], gain_MK)).cumsum(1)


def _recall(order: Tensor, gain: Tensor, mask: Tensor, k: int) -> Tensor:
    """(M, K) of the K events of most gain, the share among the first 1 ... K of an order. An event
    that ties with the last of them is as good; one without gain is none.
    """
    wanted = _first(gain.masked_fill(~mask, -torch.inf), gain, k)
    count = (wanted > 0).sum(1, keepdim=True)
    least = wanted.gather(1, count - 1)
    hits = (_first(order, gain, k) >= least).cumsum(1)
    return hits.minimum(count) / count


def _expected(gain: Tensor, mask: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(M, K) DCG and recall that a random order has on average."""
    n = mask.sum(1, keepdim=True)
    place = torch.arange(1, k + 1, device=gain.device)
    there = place <= n
    mean = (gain * mask).sum(1, keepdim=True) / n
    dcg = (mean * there * _discounts(k, gain)).cumsum(1)
    wanted = _first(gain.masked_fill(~mask, -torch.inf), gain, k)
    count = (wanted > 0).sum(1, keepdim=True)
    as_good = ((gain >= wanted.gather(1, count - 1)) & mask).sum(1, keepdim=True)
    hits = place.minimum(n) * as_good / n
    return dcg, hits.minimum(count) / count


def _mean(total: Tensor, count: Tensor) -> Any:
    if not count.item():
        return None
    return (total / count).tolist()
