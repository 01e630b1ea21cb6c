"""The baseline: DARE with its auxiliary loss in plain PyTorch, written as one would at first.

    python -m benchmarks.training.plain plain STORE HISTORY REQUESTS WARM_UP STEPS

Dense tables and dense gradients, Adam over all rows, a copy of the history for every candidate,
padded to the longest, softmax over all of it under a mask in both stages.

Shapes: S candidates, N events (padded), A and R widths of all fields together.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.training.step import ATTENDED, Clock
from data.batch import RankingBatch
from data.loader import RequestLoader
from data.store import EventStore

WIDTH = 16
FIELDS = ("item", "category", "recency")


class Plain(nn.Module):
    """Two tables a field, two networks."""

    def __init__(self, rows: dict[str, int]) -> None:
        super().__init__()
        self.attention, self.representation = (
            nn.ModuleDict({name: nn.Embedding(rows[name], WIDTH) for name in FIELDS})
            for _ in range(2)
        )
        for table in (*self.attention.values(), *self.representation.values()):
            nn.init.normal_(table.weight, std=0.01)
        width = 3 * WIDTH * len(FIELDS)
        self.head, self.auxiliary_head = (
            nn.Sequential(
                nn.BatchNorm1d(width), nn.Linear(width, 200), nn.PReLU(200), nn.Linear(200, 80),
                nn.PReLU(80), nn.Linear(80, 1),
            )
            for _ in range(2)
        )  # fmt: skip

    def forward(
        self, events: dict[str, Tensor], mask: Tensor, candidates: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(S, N) ids and mask, (S,) ids -> (S,) logits of both networks."""
        keys, values = (_rows(t, events) for t in (self.attention, self.representation))
        query, target = (_rows(t, candidates) for t in (self.attention, self.representation))
        scores = torch.einsum("sna,sa->sn", keys, query) / keys.shape[-1] ** 0.5
        scores = scores.masked_fill(~mask, -1e9)
        kept = torch.zeros_like(mask).scatter(
            1, scores.topk(min(ATTENDED, scores.shape[1])).indices, value=True
        )
        found = _pool(scores.masked_fill(~kept, -1e9), values)
        pooled = _pool(scores, values)
        logits, auxiliary = (
            head(torch.cat([target, interest, target * interest], dim=1)).squeeze(1)
            for head, interest in ((self.head, found), (self.auxiliary_head, pooled))
        )
        return logits, auxiliary


def _rows(tables: nn.ModuleDict, ids: dict[str, Tensor]) -> Tensor:
    return torch.cat([tables[name](ids[name]) for name in FIELDS], dim=-1)


def _pool(scores: Tensor, values: Tensor) -> Tensor:
    return torch.einsum("sn,snr->sr", scores.softmax(dim=1), values)


def _padded(batch: RankingBatch) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor], Tensor]:
    """Events, mask, candidates, labels: a history for each candidate."""
    lengths = batch.history_lengths
    events = {
        name: nn.utils.rnn.pad_sequence(
            batch.history[name].values().split(lengths.tolist()), batch_first=True
        )[batch.request_of]
        for name in FIELDS
    }
    mask = torch.arange(int(lengths.max())) < lengths[batch.request_of][:, None]
    candidates = {name: batch.candidates[name].values() for name in FIELDS}
    return events, mask, candidates, batch.labels.float()


def main() -> None:
    _, store_path, *numbers = sys.argv[1:]
    length, requests, warm_up, steps = map(int, numbers)
    torch.manual_seed(1)
    store = EventStore.open(Path(store_path))
    model = Plain(dict(store.fields) | {"recency": length + 1})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches = iter(
        RequestLoader(store, "train", requests_per_batch=requests, history_length=length, seed=1)
    )
    _train(model, optimizer, itertools.islice(batches, warm_up))
    clock = Clock()
    samples, loss = _train(model, optimizer, itertools.islice(batches, steps))
    print(json.dumps(clock.seconds() | {"samples": samples, "loss": loss, "sent": 0}))


def _train(
    model: Plain, optimizer: torch.optim.Optimizer, batches: Iterator[RankingBatch]
) -> tuple[int, float]:
    losses, samples = [], 0
    for batch in batches:
        events, mask, candidates, labels = _padded(batch)
        both = model(events, mask, candidates)
        main, auxiliary = (F.binary_cross_entropy_with_logits(x, labels) for x in both)
        optimizer.zero_grad()
        (main + auxiliary).backward()
        optimizer.step()
        losses.append(main.item())
        samples += len(labels)
    return samples, sum(losses) / len(losses)


if __name__ == "__main__":
    main()
