"""What ranks of this machine take to exchange bytes, and to make a collective at all.

The latter is measured in a training step with next to nothing in it, not in a loop of its own:
there ranks meet while they are at work, and a lookup has more to do around its collectives.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

from data.loader import RequestLoader
from data.prepare import prepare
from data.sources.synthetic import Synthetic
from data.store import EventStore
from sharding.catalogue import GB, Cluster, load_nodes
from sharding.collectives import Calls
from sharding.costs import FLOAT_BYTES
from sharding.plan import ShardingConfig
from sharding.replicated import DATA_PARALLEL
from trainer.experiment import Experiment
from trainer.experiments import dare
from trainer.planning.log import Log
from trainer.planning.predict import Situation
from trainer.planning.timing import clock, median_seconds
from trainer.processes import Ranks, keep_freed_memory, process_group, quiet_dependencies
from trainer.state import build_state, train_step

SENT = 2**24
"""Bytes that a rank sends to all in an exchange."""
STEPS = 45
"""Of each model; the first third warms up."""
HISTORY = 8
"""Events: so few that a step is overhead and collectives alone."""
KINDS = (DATA_PARALLEL, "table_wise")
"""How its tables are sharded: a step of all-reduces alone, and one of all-to-alls beside."""


@dataclass(frozen=True)
class RankSpeeds:
    """Of ranks that work together."""

    exchange_gbs: float
    """Bytes a second that leave a rank in an all-to-all."""
    all_to_all_ms: float
    all_reduce_ms: float


def overhead_ms() -> float:
    """Of a tiny step, in this process alone."""
    with tempfile.TemporaryDirectory() as folder, process_group() as ranks:
        store = _tiny_store(Path(folder), 1)
        (seconds,) = _steps([_tiny(1, "table_wise")], store, ranks, clock(ranks.device))
    return 1e3 * statistics.median(seconds)


def rank_speeds(ranks: int, cuda: bool, overhead: float) -> RankSpeeds:
    """Measured by as many processes, which are started for it.

    Args:
        ranks: two or more.
        cuda: one a GPU.
        overhead: milliseconds of a tiny step of one rank, as of :func:`overhead_ms`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = _tiny_store(folder, ranks)
        torch.multiprocessing.spawn(_measure, args=(ranks, cuda, folder), nprocs=ranks)
        found = json.loads((folder / "found.json").read_text())
        calls = [_calls(_tiny(ranks, kind), store, ranks, cuda) for kind in KINDS]
    # waiting counts, so this is wall time; of a shared machine, the step that was least disturbed
    steps = [1e3 * min(seconds) for seconds in found["steps"]]
    gbs = SENT * (ranks - 1) / ranks / found["exchange"] / GB
    return RankSpeeds(gbs, *call_ms(*calls, *steps, overhead))


def call_ms(
    replicated: Calls, sharded: Calls, replicated_ms: float, sharded_ms: float, overhead: float
) -> tuple[float, float]:
    """An all-to-all's and an all-reduce's, so that both steps take what they took.

    Args:
        replicated: of a step with all-reduces alone.
        sharded: of one with all-to-alls too.
        replicated_ms: of the first step.
        sharded_ms: of the other.
        overhead: of a step without either. Where noise leaves nothing of a step for its
            collectives, a tenth of it is taken.
    """

    def beyond(step: float, rest: float) -> float:
        return max(step - rest, 0.1 * step)

    all_reduce = beyond(replicated_ms, overhead) / replicated.all_reduce
    rest = overhead + sharded.all_reduce * all_reduce
    return beyond(sharded_ms, rest) / sharded.all_to_all, all_reduce


def _tiny(ranks: int, kind: str) -> Experiment:
    return dare().changed(
        requests_per_batch=2 * ranks,
        history_length=HISTORY,
        sharding=ShardingConfig(kinds=(kind,)),
    )


def _tiny_store(folder: Path, ranks: int) -> EventStore:
    source = Synthetic(
        users=40 * ranks, events_per_user=30, items=100, categories=5, history_needed=HISTORY
    )
    prepare(source, folder / "store", partitions=1)
    return EventStore.open(folder / "store")


def _calls(experiment: Experiment, store: EventStore, ranks: int, cuda: bool) -> Calls:
    cluster = Cluster(1, ranks, load_nodes()["H100-80" if cuda else "CPU-SPR"])
    situation = Situation.of(experiment, Log.of_store(store), cluster)
    return situation.calls(situation.plan())


def _steps(
    experiments: Sequence[Experiment], store: EventStore, ranks: Ranks, now: Callable[[], float]
) -> list[list[float]]:
    """Seconds of steps, those of the experiments by turns; all ranks begin each together."""
    states = [build_state(experiment, store, ranks) for experiment in experiments]
    found: list[list[float]] = [[] for _ in experiments]
    loader = RequestLoader(
        store,
        "train",
        requests_per_batch=experiments[0].requests_per_batch,
        history_length=HISTORY,
        rank=ranks.rank,
        world_size=ranks.world_size,
        prefetch=0,
    )
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    for batch in itertools.islice(epochs, STEPS):
        batch = batch.to(ranks.device)
        for state, experiment, seconds in zip(states, experiments, found, strict=True):
            dist.barrier()
            begin = now()
            losses = train_step(state, batch, experiment, ranks.world_size)
            float(losses.total())  # waits for the device
            seconds.append(now() - begin)
    return [seconds[STEPS // 3 :] for seconds in found]


def _measure(rank: int, ranks: int, cuda: bool, folder: Path) -> None:
    """In a process of its own; the first one writes what was found."""
    torch.set_num_threads(1)
    quiet_dependencies()
    keep_freed_memory()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=(folder / "meeting").as_uri(),
        rank=rank,
        world_size=ranks,
    )
    sent = torch.ones(SENT // FLOAT_BYTES // ranks * ranks, device=device)
    received = torch.empty_like(sent)
    exchange = median_seconds(
        lambda: dist.all_to_all_single(received, sent), device, now=time.perf_counter
    )
    steps = _steps(
        [_tiny(ranks, kind) for kind in KINDS],
        EventStore.open(folder / "store"),
        Ranks(rank, ranks, ranks, device),
        time.perf_counter,
    )
    if rank == 0:
        (folder / "found.json").write_text(json.dumps({"exchange": exchange, "steps": steps}))
    dist.barrier()
    dist.destroy_process_group()
