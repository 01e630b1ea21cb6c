"""Does the search find what a candidate is about, how wide does attention spread, and what does a
search in a copy of the keys miss?

Shapes: S candidates, K chosen events; in a block B requests, L events, C candidates.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from analysis.histories import chosen_rows, matches
from analysis.scores import chooses_events
from data.batch import RankingBatch
from modules.bags import Ids, pick_rows
from modules.jagged import blocks
from modules.ranker import LifelongRanker, RankerOutput
from modules.search import Selection
from modules.tables import Keys

FIELDS = ("item", "category")


class SearchProbe:
    r"""Sums over batches, on the device: an update waits for nothing.

    * ``same_item_recall``: of the events of a history that have the candidate's item, the share
      among the K chosen ones, :math:`|chosen \cap same| / \min(|same|, K)`, as a mean over the
      candidates that have any. ``same_category_recall`` likewise.
    * ``attention_entropy``: :math:`-\sum_j w_j \ln w_j` in nats, a mean over the candidates with a
      history. ln K if all weigh the same, 0 if one event has all the weight.
    """

    def __init__(self, ranker: LifelongRanker, device: torch.device) -> None:
        self._sums = torch.zeros(len(FIELDS) + 1, 2, dtype=torch.float64, device=device)
        """Of the shares and the entropy, and how many candidates they are of."""
        self._searches = chooses_events(ranker)

    @torch.no_grad()
    def update(self, output: RankerOutput, batch: RankingBatch) -> None:
        """Adds a batch."""
        rows, valid = chosen_rows(output, batch)
        for number, field in enumerate(FIELDS if self._searches else ()):
            share, found = self._shares(field, rows, valid, batch)
            self._sums[number, 0] += share.sum()
            self._sums[number, 1] += found.sum()
        attended = output.weights.sum(dim=1) > 0
        self._sums[-1, 0] += torch.special.entr(output.weights.double()).sum()
        self._sums[-1, 1] += attended.sum()

    def _shares(
        self, field: str, rows: Tensor, valid: Tensor, batch: RankingBatch
    ) -> tuple[Tensor, Tensor]:
        """(S,) shares found, and (S,) bool: whether there was anything to find."""
        ids, wanted = batch.history[field].values(), batch.candidates[field].values()
        same = _count_same(ids, wanted, batch)
        hits = (matches(ids, rows, wanted) & valid).sum(dim=1)
        return hits / same.clamp(min=1, max=max(rows.shape[1], 1)), same > 0

    def to_json(self) -> dict[str, Any]:
        """Means and counts over all ranks: collective. None where nothing was to be found, or
        where the model chooses no events.
        """
        dist.all_reduce(self._sums)
        result: dict[str, Any] = {}
        names = [f"same_{field}_recall" for field in FIELDS]
        sums = self._sums.tolist()
        for name, (total, count) in zip([*names, "attention_entropy"], sums, strict=True):
            result[name] = total / count if count else None
            result[name.replace("_recall", "").replace("_entropy", "") + "_candidates"] = int(count)
        return result


def _count_same(ids: Tensor, wanted: Tensor, batch: RankingBatch) -> Tensor:
    """(S,) events of each candidate's history with its id."""
    num_candidates = len(wanted)
    # one candidate more, where the padding of the blocks lands; no event has its id
    padded = torch.cat([wanted, wanted.new_full((1,), -1)])
    same = torch.zeros(num_candidates + 1, dtype=torch.int64, device=wanted.device)
    for block in blocks(batch.history_lengths, batch.candidate_counts, wanted.device):
        ids_BL = ids[block.rows].masked_fill(~block.row_mask, -2)
        same_BCL = ids_BL[:, None] == padded[block.candidates][:, :, None]
        same[block.candidates] = same_BCL.sum(dim=2)
    return same[:-1]


class ReplicaProbe:
    r"""What the model's searches find in a copy of the keys, against the K events that the same
    searches find by live ones: :math:`|found \cap live| / |live|`, a mean over the candidates with
    a history.

    Events of equal ids in all fields are the same to a search: which of them it takes is no matter.
    While the probe is open, every forward pass of the model also searches by live keys.
    """

    def __init__(self, ranker: LifelongRanker, device: torch.device) -> None:
        self._tables = ranker.tables
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        """Of the shares, and how many candidates they are of."""
        self._hook = ranker.search.register_forward_hook(self._compare)

    @torch.no_grad()
    def _compare(self, search: Any, args: tuple[Any, ...], found: Selection) -> None:
        histories, _, score, k = args

        def live_rows() -> tuple[Keys, Tensor]:
            keys, queries = self._tables.attend(histories.events, histories.candidates)
            return (lambda rows: pick_rows(keys, rows)), queries

        live = search.forward(histories, live_rows, score, k)
        wanted = live.valid.sum(dim=1)
        hits = _found_again(found, live, histories.events)
        self._sums[0] += (hits / wanted.clamp(min=1)).sum()
        self._sums[1] += (wanted > 0).sum()

    def close(self) -> float | None:
        """The mean over all ranks: collective. None where nobody has a history."""
        self._hook.remove()
        dist.all_reduce(self._sums)
        total, count = self._sums.tolist()
        return total / count if count else None


def _found_again(found: Selection, live: Selection, events: Ids) -> Tensor:
    """(S,) events of ``live`` that ``found`` has too, each as often as both have it."""
    if not next(iter(events.values())).numel():
        return torch.zeros(len(found.rows), dtype=torch.int64, device=found.rows.device)
    rows = torch.cat([found.rows, live.rows], dim=1)
    ids = torch.stack([pick_rows(of_field, rows.flatten()) for of_field in events.values()], dim=1)
    # equal events by one number: comparing K by K of each field would take F times the memory
    numbers = ids.unique(dim=0, return_inverse=True)[1].view(rows.shape)
    of_found, of_live = numbers.split([found.rows.shape[1], live.rows.shape[1]], dim=1)
    # the n-th of equal events is found again where live keys find n or more of them
    nth = ((of_found[:, :, None] == of_found[:, None]) & found.valid[:, None]).tril().sum(2)
    equal = ((of_found[:, :, None] == of_live[:, None]) & live.valid[:, None]).sum(2)
    return ((nth <= equal) & found.valid).sum(dim=1)
