"""Histories shortened to clusters of like events. Shapes: R requests, S candidates, N events of all
histories together, C clusters of all histories together, A attention and R representation width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MAX_MEMBERS = 20
"""A cluster with more is divided again."""
FAN_OUT_EXPONENT = 0.3
LLOYD_STEPS = 3


class Clusters(NamedTuple):
    """Which events belong together."""

    of_event: Tensor
    """(N,) int64 cluster of each event; those of a request are numbered in a row."""
    sizes: Tensor
    """(C,) int64 members."""
    lengths: Tensor
    """(R,) int64 clusters of each history, on the host."""

    def mean(self, rows: Tensor) -> Tensor:
        """(N, width) rows of the events -> (C, width) of the clusters."""
        summed = rows.new_zeros(len(self.sizes), rows.shape[1])
        return summed.index_add(0, self.of_event, rows) / self.sizes[:, None]


@torch.no_grad()
def cluster_histories(vectors: Tensor, lengths: Tensor) -> Clusters:
    r"""Recursive k-means within each history (TWIN-V2, https://arxiv.org/abs/2407.16357).

    A cluster of n events with more than ``MAX_MEMBERS`` is divided into
    :math:`\max(2, \lfloor n^{0.3} \rfloor)` by Lloyd's algorithm, which starts from equal
    stretches of time, until none is left. Events that cannot be told apart are divided by time. All
    histories are worked on together, level by level.

    Args:
        vectors: (N, width) of the events.
        lengths: (R,) events of each history, on the host.
    """
    device, longest = vectors.device, int(lengths.max()) if len(lengths) else 0
    most_parts = max(2, int(longest**FAN_OUT_EXPONENT) + 1)  # no wait to learn how many there are
    request = torch.arange(len(lengths), device=device).repeat_interleave(
        lengths.to(device), output_size=len(vectors)
    )
    group = request.unique(return_inverse=True)[1]
    while True:
        sizes = torch.bincount(group, minlength=1)
        large = (sizes > MAX_MEMBERS)[group].nonzero().flatten()
        if not len(large):
            break
        child = _divide(vectors[large], group[large], most_parts)
        child_of = torch.zeros_like(group).index_put((large,), child)
        # a group's number begins with its parent's: those of a request stay in a row
        group = (group * most_parts + child_of).unique(return_inverse=True)[1]
    sizes = torch.bincount(group)
    request_of_cluster = torch.empty_like(sizes).index_put((group,), request)
    counts = torch.bincount(request_of_cluster, minlength=len(lengths))
    return Clusters(group, sizes, counts.cpu())


def _divide(vectors: Tensor, group: Tensor, most_parts: int) -> Tensor:
    """(n,) number of the part, below ``most_parts``, that each event of its group goes to."""
    group = group.unique(return_inverse=True)[1]
    size = torch.bincount(group)
    parts = (size.double() ** FAN_OUT_EXPONENT).long().clamp(min=2)
    place = _place_in_group(group, size)
    by_time = place * parts[group] // size[group]
    child = by_time
    for _ in range(LLOYD_STEPS):
        centroids = _centroids(vectors, group * most_parts + child, len(size) * most_parts)
        child = _nearest(vectors, group, centroids.unflatten(0, (-1, most_parts)))
    # a group that stayed whole is divided by time
    taken = torch.bincount(group * most_parts + child, minlength=len(size) * most_parts)
    taken = taken.view(-1, most_parts)
    stuck = (taken.max(1).values == size)[group]
    return torch.where(stuck, by_time, child)


def _place_in_group(group: Tensor, size: Tensor) -> Tensor:
    """(n,) 0, 1, ... within each group, in time order."""
    order = group.argsort(stable=True)
    first = size.cumsum(0) - size
    place = torch.empty_like(group)
    place[order] = torch.arange(len(group), device=group.device) - first[group[order]]
    return place


def _centroids(vectors: Tensor, part: Tensor, count: int) -> Tensor:
    """(count, d) means; NaN where a part has no event."""
    members = torch.bincount(part, minlength=count)
    summed = vectors.new_zeros(count, vectors.shape[1]).index_add(0, part, vectors)
    return summed / members[:, None]


def _nearest(vectors: Tensor, group: Tensor, centroids: Tensor) -> Tensor:
    """(n,) part whose centroid is nearest to each event."""
    best = torch.full(group.shape, torch.inf, dtype=vectors.dtype, device=group.device)
    child = torch.zeros_like(group)
    for part in range(centroids.shape[1]):
        distance = (vectors - centroids[group, part]).square().sum(1)
        nearer = distance < best  # never for NaN: a part without events
        best, child = torch.where(nearer, distance, best), child.masked_fill(nearer, part)
    return child
