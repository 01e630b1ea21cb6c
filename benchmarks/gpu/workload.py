"""A sharded model in a world of one and a batch for it, on the device, without input files.

Needs torch, torchrec and fbgemm_gpu alone, and of this project ``modules`` and ``sharding``.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec import KeyedJaggedTensor
from torchrec.optim.optimizers import in_backward_optimizer_filter

from benchmarks.gpu.floor import Shape
from modules.kernels import choice
from modules.loss import ranking_losses, regularized_parameters
from modules.ranker import LifelongRanker
from modules.ranker_config import Auxiliary, RankerConfig
from modules.search import Histories
from modules.tables import FieldConfig
from sharding.apply import TableOptimizer, shard
from sharding.cluster_plan import choose_plan
from sharding.plan import ShardingConfig
from sharding.search_tables import read_live_tables, read_replica

ITEMS, CATEGORIES = 4_068_791, 9_408
"""As in Taobao's log."""


@contextlib.contextmanager
def world_of_one(device: torch.device) -> Iterator[None]:
    """A process group of this process."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"file://{Path(folder) / 'store'}",
            rank=0,
            world_size=1,
        )
        try:
            yield
        finally:
            dist.destroy_process_group()


class Step:
    """A model and all that a step of it changes."""

    def __init__(
        self,
        shape: Shape,
        device: torch.device,
        auxiliary: Auxiliary = "none",
        items: int = ITEMS,
        replica: str | None = None,
        learning_rate: float = 0.001,
    ) -> None:
        """``replica``: searches read a copy of this type, else the tables themselves."""
        fields = tuple(
            FieldConfig(
                name=name,
                num_embeddings=rows,
                semantic=name != "recency",
                attention_dim=shape.attention_dim // 3,
                representation_dim=shape.representation_dim // 3,
            )
            for name, rows in (
                ("item", items),
                ("category", CATEGORIES),
                ("recency", shape.history + 1),
            )
        )
        torch.manual_seed(0)
        config = RankerConfig(auxiliary=auxiliary, top_k=shape.top_k)
        self.shape, self.device, self.items = shape, device, items
        self.ranker = LifelongRanker(config, fields, torch.device("meta"))
        plan = choose_plan(
            self.ranker,
            world_size=1,
            local_world_size=1,
            device_type=device.type,
            lookups_per_rank=shape.candidates * (1 + shape.history),
            config=ShardingConfig(),
        )
        optimizer = TableOptimizer(learning_rate=learning_rate)
        self.model = shard(self.ranker, plan, optimizer=optimizer, device=device, seed=0)
        if replica:
            read_replica(self.ranker, replica, device)
        else:
            read_live_tables(self.ranker)
        dense = dict(in_backward_optimizer_filter(self.model.named_parameters()))
        self.adam = torch.optim.Adam(dense.values(), lr=learning_rate, fused=True)
        self.regularized = regularized_parameters(self.model)

    def train(self, batch: dict[str, Any], labels: Tensor) -> Tensor:
        """Forward, backward, update; the loss."""
        output = self.model(**batch)
        losses = ranking_losses(output, labels, self.regularized, num_candidates=len(labels))
        self.adam.zero_grad()
        losses.total().backward()
        self.adam.step()
        return losses.total().detach()

    @torch.no_grad()
    def serve(self, batch: dict[str, Any]) -> Tensor:
        """Logits."""
        return self.model(**batch).logits

    @torch.no_grad()
    def search(self, batch: dict[str, Any]) -> Tensor:
        """Rows of the chosen events."""
        names = [field.name for field in self.ranker.fields]
        histories = Histories.of(
            {name: batch["history"][name].values() for name in names},
            {name: batch["candidates"][name].values() for name in names},
            batch["request_of"],
            batch["history_lengths"],
            batch["candidate_counts"],
        )
        tables = self.ranker.tables
        found = self.ranker.search(
            histories,
            lambda: tables.searched(histories.events, histories.candidates),
            self.ranker.score,
            self.shape.top_k,
        )
        return found.rows

    def graph_heads(self) -> None:
        """Puts forward and backward of the heads into CUDA graphs, for the mode that they are in
        and for batches of this size alone.
        """
        size = self.shape.candidates, self.shape.representation_dim
        for name in ("head", "auxiliary_head"):
            head = getattr(self.ranker, name, None)
            if head is not None:
                inputs = tuple(
                    torch.randn(size, device=self.device, requires_grad=self.model.training)
                    for _ in range(2)
                )
                setattr(self.ranker, name, torch.cuda.make_graphed_callables(head, inputs))


def make_batch(
    shape: Shape, device: torch.device, items: int = ITEMS, seed: int = 0
) -> tuple[dict[str, Any], Tensor]:
    """Arguments of the model and labels. Items are uniform: the cache does not help."""
    draws = torch.Generator().manual_seed(seed)
    requests, length = shape.candidates, shape.history
    events = requests * length
    recency = torch.arange(length, 0, -1).repeat(requests)
    candidate_recency = torch.zeros(requests, dtype=torch.int64)

    def draw(rows: int, count: int) -> Tensor:
        return torch.randint(1, rows, (count,), generator=draws)

    def keyed(ids: list[Tensor], lengths: Tensor) -> KeyedJaggedTensor:
        return KeyedJaggedTensor(
            ["item", "category", "recency"],
            torch.cat(ids).to(device),
            lengths=lengths.repeat(3).to(device),
            length_per_key=[len(ids[0])] * 3,
        )

    lengths = torch.full((requests,), length)
    counts = torch.ones(requests, dtype=torch.int64)
    of_history = [draw(items, events), draw(CATEGORIES, events), recency]
    of_candidates = [draw(items, requests), draw(CATEGORIES, requests), candidate_recency]
    number = torch.arange(requests, device=device)
    batch = {
        "history": keyed(of_history, lengths),
        "candidates": keyed(of_candidates, counts),
        "request_of": number,
        "request_ids": number,
        "history_lengths": lengths,
        "candidate_counts": counts,
        "seed": seed,
    }
    return batch, (torch.rand(requests, generator=draws) < 0.5).float().to(device)


def stock_search() -> contextlib.AbstractContextManager[Any]:
    """Lets stock operations search meanwhile."""
    return mock.patch.object(choice, "kernel_on", lambda device: None)
