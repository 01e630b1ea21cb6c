"""One process of a measurement: a few training steps, as ``twofold train`` takes them.

``python -m benchmarks.training.step none STORE HISTORY REQUESTS WARM_UP STEPS``
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from data.batch import RankingBatch
from data.loader import RequestLoader
from data.store import EventStore
from trainer.experiment import Experiment
from trainer.experiments import EXPERIMENTS
from trainer.processes import Ranks, process_group
from trainer.state import TrainState, build_state, train_step
from trainer.steps.measure import peak

ATTENDED = 20
REPLICA_STEPS = 100
"""Of variant "none replica"; its renewals are not in what is measured, but told beside it."""


def main() -> None:
    variant, store, *numbers = sys.argv[1:]
    auxiliary, *words = variant.split()
    length, requests, warm_up, steps = map(int, numbers)
    base = EXPERIMENTS["dare"]()
    model = dataclasses.replace(base.model, auxiliary=auxiliary, score="dot", top_k=ATTENDED)
    if "others" in words:
        model = dataclasses.replace(model, auxiliary_others=int(words[0]))
    experiment = base.changed(
        model=model,
        history_length=length,
        requests_per_batch=requests,
        replica_steps=REPLICA_STEPS if "replica" in words else 0,
    )
    with process_group() as ranks:
        print(json.dumps(_measure(experiment, EventStore.open(Path(store)), ranks, warm_up, steps)))


def _measure(
    experiment: Experiment, store: EventStore, ranks: Ranks, warm_up: int, steps: int
) -> dict[str, Any]:
    state = build_state(experiment, store, ranks)
    loader = RequestLoader(
        store,
        "train",
        requests_per_batch=experiment.requests_per_batch,
        history_length=experiment.history_length,
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=1,
    )
    batches = iter(loader)
    _train(state, itertools.islice(batches, warm_up), experiment, ranks)
    dist.barrier()
    begin = Clock()
    samples, loss = _train(state, itertools.islice(batches, steps), experiment, ranks)
    result = begin.seconds() | {"samples": samples, "loss": loss}
    with Traffic(ranks.world_size) as traffic:
        of_one_step, _ = _train(state, itertools.islice(batches, 1), experiment, ranks)
    return result | {"sent": traffic.bytes / of_one_step * samples}


def _train(
    state: TrainState, batches: Iterator[RankingBatch], experiment: Experiment, ranks: Ranks
) -> tuple[int, float]:
    """Candidates of this rank, and the main loss, the mean over steps and ranks."""
    samples, total, steps = 0, torch.zeros(()), 0
    for batch in batches:
        total += train_step(state, batch, experiment, ranks.world_size).main
        samples += len(batch.labels)
        steps += 1
    dist.all_reduce(total)
    return samples, float(total) / steps / ranks.world_size


class Clock:
    """CPU seconds of all threads of this process, and seconds on the wall, from its making."""

    def __init__(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """Until now; and MiB of memory at the peak."""
        return {
            "cpu": time.process_time() - self.cpu,
            "wall": time.perf_counter() - self.wall,
            "peak": (peak() or math.nan) / 2**20,
        }


class Traffic(TorchDispatchMode):
    """Bytes that this rank sends to others by its collectives, as good algorithms would send them:
    an all-reduce twice the share of the others, an all-gather its input to each of them.
    """

    def __init__(self, world_size: int) -> None:
        super().__init__()
        self.world_size, self.bytes = world_size, 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func.namespace == "c10d":
            self.bytes += self._sent(func.__name__, args)
        return func(*args, **(kwargs or {}))

    def _sent(self, name: str, args: tuple) -> float:
        others = self.world_size - 1
        if name.startswith("alltoall_base_"):
            return _size(args[1]) * others / self.world_size
        if name.startswith("allreduce_"):
            return 2 * sum(map(_size, args[0])) * others / self.world_size
        if name.startswith("_reduce_scatter_base_"):
            return _size(args[1]) * others / self.world_size
        if name.startswith("reduce_scatter_"):
            given = [part for parts in args[1] for part in parts]
            return sum(map(_size, given)) * others / self.world_size
        if name.startswith(("allgather_", "_allgather_base_")):
            given = args[1] if isinstance(args[1], (list, tuple)) else [args[1]]
            return sum(map(_size, given)) * others
        if name.startswith(("barrier", "monitored_barrier", "broadcast_")):
            return 0.0
        raise NotImplementedError(f"The bytes of {name} are not known.")


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


if __name__ == "__main__":
    main()
