"""How well groups of like representations tell clicks apart (DARE, section 2.4 and figure 10).

Shapes: n candidates, d width of what is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score
from torch import Tensor, nn

from data.batch import RankingBatch
from modules.ranker import LifelongRanker, RankerOutput

SIZES = (2, 5, 10, 20, 50, 100, 200)
SEEDS = (1, 2, 3, 4, 5)


class HeadInputs:
    """Collects what the head sees of every n-th request while it is entered: the interest h, and
    the whole input: ``[v; h; v ⊙ h]``, or all that is crossed.
    """

    def __init__(self, ranker: LifelongRanker, every: int) -> None:
        self.every = every
        self._head = ranker.head
        self._hooks: list[Any] = []
        self._interest: Tensor
        self._input: Tensor
        self._parts: list[Tensor] = []
        self.interest_width = 0

    def __enter__(self) -> HeadInputs:
        """Starts looking."""
        self._hooks = [
            self._head.register_forward_pre_hook(self._see_interest),
            self._head.layers.register_forward_pre_hook(self._see_input),
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops looking."""
        for hook in self._hooks:
            hook.remove()

    def _see_interest(self, head: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._interest = torch.cat(args[1:], dim=1)

    def _see_input(self, layers: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._input = args[0].flatten(1)  # of a crossing head, its fields

    def update(self, output: RankerOutput, batch: RankingBatch) -> None:
        """Keeps the requests of a batch whose number is a multiple of ``every``."""
        request = batch.request_ids[batch.request_of]
        kept = request % self.every == 0
        self.interest_width = self._interest.shape[1]
        columns = [request[:, None].double(), batch.labels[:, None].double()]
        columns += [self._interest.double(), self._input.double()]
        self._parts.append(torch.cat(columns, dim=1)[kept].float())

    def rows(self) -> Tensor:
        """(n, 2 + d) of this rank: request, label, interest, whole input."""
        return torch.cat(self._parts)


@dataclass(frozen=True)
class Discriminability:
    """Mutual information of cluster and label, by number of clusters; means over k-means seeds."""

    clusters: list[int]
    bits: list[float]
    """Of the candidates that the clusters were made from."""
    bits_held_out: list[float]
    """Of other candidates, put into the nearest cluster."""
    bits_held_out_interval: list[tuple[float, float]]
    """Lowest and highest of the seeds."""
    bits_of_shuffled_labels: list[float]
    """Held out, after the labels were shuffled: what chance alone gives so many clusters."""
    normalized_held_out: list[float]
    """Held out, divided by the mean of the entropies of cluster and label."""
    candidates: int
    """Half of them made the clusters, the other half are held out."""

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def discriminability(
    features: np.ndarray,
    label: np.ndarray,
    group: np.ndarray,
    sizes: Sequence[int] = SIZES,
    seeds: Sequence[int] = SEEDS,
) -> Discriminability:
    """Quantises the features by k-means and asks what a cluster says of the label.

    Args:
        features: (n, d).
        label: (n,) 0 or 1.
        group: (n,) the request of each; a request is held out whole.
        sizes: numbers of clusters; those that a cluster of ten would not fill are left out.
        seeds: of k-means.
    """
    made_from = _half(group)
    features = features.astype(np.float64)  # k-means would convert every piece anew
    inside, outside = features[made_from], features[~made_from]
    shuffled = np.random.default_rng(0).permutation(label[~made_from])
    sizes = [k for k in sizes if 10 * k <= min(len(inside), len(outside))]
    rows = []
    for k in sizes:
        for seed in seeds:
            means = MiniBatchKMeans(k, random_state=seed, n_init=1).fit(inside)
            cluster = means.predict(outside)
            rows.append(
                (
                    bits(means.labels_, label[made_from]),
                    bits(cluster, label[~made_from]),
                    bits(cluster, shuffled),
                    normalized_mutual_info_score(label[~made_from], cluster),
                )
            )
    table = np.array(rows).reshape(len(sizes), len(seeds), 4)
    means = table.mean(axis=1).T.tolist() if len(sizes) else [[], [], [], []]
    held_out = table[:, :, 1]
    return Discriminability(
        clusters=sizes,
        bits=means[0],
        bits_held_out=means[1],
        bits_held_out_interval=[(float(row.min()), float(row.max())) for row in held_out],
        bits_of_shuffled_labels=means[2],
        normalized_held_out=means[3],
        candidates=len(label),
    )


def _half(group: np.ndarray) -> np.ndarray:
    """(n,) bool: every other one of the groups."""
    _, number = np.unique(group, return_inverse=True)
    return number % 2 == 0


def bits(cluster: np.ndarray, label: np.ndarray) -> float:
    """Mutual information of two sets of names."""
    return float(mutual_info_score(label, cluster)) / math.log(2)
