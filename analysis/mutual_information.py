r"""How much an event says about a click, whatever a model thinks: the order a search should find.

For a target category c, an event category b and a place p in the history, over the training
candidates of category c whose history reaches p (TIN, Zhou et al. 2024; DARE, figure 8):

.. math::
    X = 1[\text{the event at } p \text{ has category } b], \quad Y = \text{click}, \quad
    MI(c, b, p) = \sum_{x, y} P(x, y) \log_2 \frac{P(x, y)}{P(x) P(y)} \;\text{bits}

Shapes: T target categories, B event categories, P bins of recency ranks; S candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from analysis.histories import history_ends
from data.batch import RankingBatch
from data.store import EventStore

MISSING = 1e-5
"""What a count of zero is taken for."""
MAX_EVENT_CATEGORIES = 2_000
SINGLE_RANKS = 10
"""Most recent ranks with a bin of their own; later ones share bins of a third of a doubling."""


@dataclass(frozen=True)
class Axes:
    """What is counted apart."""

    targets: np.ndarray
    """(T,) categories of candidates, the most frequent of the training candidates first."""
    events: np.ndarray
    """(B,) categories of events, the most frequent first; others count in the totals only."""
    edges: np.ndarray
    """(P + 1,) bin p holds the ranks ``edges[p] .. edges[p + 1] - 1``; 1 is the most recent."""
    num_categories: int

    @classmethod
    def of(cls, store: EventStore, history_length: int, targets: int) -> Axes:
        """The most frequent categories of a store."""
        category = store.items["category"]
        size = dict(store.fields)["category"]
        of_targets, of_events = np.zeros(size, np.int64), np.zeros(size, np.int64)
        for partition in store.partitions:
            wanted = category[partition.requests("train").candidates]
            of_targets += np.bincount(wanted, minlength=size)
            of_events += np.bincount(partition.events["category"], minlength=size)
        return cls(
            _most_frequent(of_targets, targets),
            _most_frequent(of_events, MAX_EVENT_CATEGORIES),
            recency_edges(history_length),
            size,
        )

    def slots(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Category -> number in ``targets``, in ``events``; rank -> bin. -1: none."""
        target = torch.full((self.num_categories,), -1, dtype=torch.int64)
        event = target.clone()
        target[torch.from_numpy(self.targets)] = torch.arange(len(self.targets))
        event[torch.from_numpy(self.events)] = torch.arange(len(self.events))
        ranks = np.arange(self.edges[-1])
        place = torch.from_numpy(np.searchsorted(self.edges, ranks, side="right") - 1)
        return target.to(device), event.to(device), place.to(device)


def recency_edges(history_length: int) -> np.ndarray:
    """Bins of one rank up to 10, then ever wider ones, to the end of the history.

    >>> recency_edges(20).tolist()
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 18, 21]
    """
    edges = list(range(1, min(SINGLE_RANKS, history_length) + 1))
    if history_length > SINGLE_RANKS:
        edges.append(SINGLE_RANKS + 1)
        while (following := int(np.ceil(edges[-1] * 2 ** (1 / 3)))) <= history_length:
            edges.append(following)
    return np.array([*edges, history_length + 1])


def _most_frequent(counts: np.ndarray, most: int) -> np.ndarray:
    """Ids by descending count; none that never occurs, nor id 0, "unknown"."""
    counts = counts.copy()
    counts[0] = 0
    order = np.argsort(-counts, kind="stable")[:most]
    return order[counts[order] > 0]


class InformationCounts:
    """Counts events by (target category, event category, rank bin, label) over batches.

    Memory: 16 bytes a cell (T, B, P), whatever the log. In a bin of several ranks each event counts
    for itself.
    """

    def __init__(self, axes: Axes, device: torch.device) -> None:
        self.axes = axes
        self._target, self._event, self._place = axes.slots(device)
        T, B, P = len(axes.targets), len(axes.events), len(axes.edges) - 1
        self.cells = torch.zeros(T, B, P, 2, dtype=torch.int64, device=device)
        """(T, B, P, 2) events of category b in bin p of candidates of category c, by label."""
        self.totals = torch.zeros(T, P, 2, dtype=torch.int64, device=device)
        """(T, P, 2) events of any category there, by label."""
        self.candidates = torch.zeros(T, 2, dtype=torch.int64, device=device)
        """(T, 2) candidates of each category, by label."""

    @torch.no_grad()
    def update(self, batch: RankingBatch) -> None:
        """Adds a batch."""
        target = self._target[batch.candidates["category"].values()]
        label = batch.labels.long()
        kept = target >= 0
        _count(self.candidates, target[kept], label[kept])
        ends, lengths = (per_candidate[kept] for per_candidate in history_ends(batch))
        lengths = lengths.clamp(max=int(self.axes.edges[-1]) - 1)
        # a pair for each event of each kept candidate: its rank runs 1, 2 ... n
        of_pair = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
        first = lengths.cumsum(0) - lengths
        rank = torch.arange(len(of_pair), device=lengths.device) - first[of_pair] + 1
        event = self._event[batch.history["category"].values()[ends[of_pair] - rank]]
        place = self._place[rank]
        target, label = target[kept][of_pair], label[kept][of_pair]
        _count(self.totals, target, place, label)
        known = event >= 0
        _count(self.cells, target[known], event[known], place[known], label[known])

    def reduce(self) -> None:
        """Sums over all ranks: collective."""
        for counts in (self.cells, self.totals, self.candidates):
            dist.all_reduce(counts)

    def information(self) -> Tensor:
        """(T, B, P) bits."""
        return mutual_information(self.cells, self.totals[:, None])

    def certain(self, least: int) -> Tensor:
        """(T, B, P) bool: at least so many events of the category, clicked and not clicked."""
        return (self.cells >= least).all(dim=-1)

    def merged(self, groups: np.ndarray) -> InformationCounts:
        """The same counts in wider bins.

        Args:
            groups: (P,) ascending: which new bin each bin becomes a part of.
        """
        first = np.flatnonzero(np.diff(groups, prepend=-1))
        edges = np.append(self.axes.edges[first], self.axes.edges[-1])
        wider = InformationCounts(replace(self.axes, edges=edges), self.cells.device)
        index = torch.from_numpy(groups).to(self.cells.device)
        wider.cells.index_add_(2, index, self.cells)
        wider.totals.index_add_(1, index, self.totals)
        wider.candidates += self.candidates
        return wider

    def widened_until_certain(self, least: int) -> tuple[Tensor, Tensor]:
        """(T, B, P) bits, each of the narrowest bin around a place that has enough counts (bins
        are merged by twos, again and again, to the whole history), 0 where none has; and (T, B, P)
        bool: whether one has.
        """
        bins = np.arange(self.cells.shape[2])
        found, known = self.information(), self.certain(least)
        found = found * known
        while bins[-1] > 0:
            bins = bins // 2
            wider = self.merged(bins)
            back = torch.from_numpy(bins).to(found.device)
            better = wider.certain(least)[:, :, back] & ~known
            found = torch.where(better, wider.information()[:, :, back], found)
            known = known | better
        return found, known


def _count(counts: Tensor, *index: Tensor) -> None:
    """Adds 1 at each index."""
    flat = torch.zeros_like(index[0])
    for size, part in zip(counts.shape, index, strict=True):
        flat = flat * size + part
    # in place: the counts are much larger than a batch
    counts.view(-1).index_add_(0, flat, torch.ones_like(flat))


def mutual_information(present: Tensor, total: Tensor) -> Tensor:
    """Bits that knowing whether an event is there gives about the label.

    Args:
        present: (..., 2) counts with the event, by label.
        total: (..., 2) counts with or without it, by label.
    """
    joint = torch.stack([total - present, present], dim=-2).double()
    joint = torch.where(joint > 0, joint, MISSING)
    joint = joint / joint.sum(dim=(-2, -1), keepdim=True)
    apart = joint.sum(dim=-1, keepdim=True) * joint.sum(dim=-2, keepdim=True)
    return (joint * (joint / apart).log2()).sum(dim=(-2, -1))
