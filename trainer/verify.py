"""Is a checkpoint the same run at another world size and under another plan?

It is loaded as ``--resume`` would, on processes of this machine. Each number is compared with the
checkpoint's files read whole, by DCP alone; then a few steps are trained from there.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.multiprocessing import start_processes

from data.errors import InputError
from data.loader import RequestLoader
from data.store import EventStore
from sharding.plan import PlanError, ShardingConfig, ShardingKind
from trainer.checkpoint import Checkpoints, Link, Position
from trainer.checkpoint.safe_reading import SafePlanner
from trainer.experiment import Experiment
from trainer.planning.follow import read_plan
from trainer.processes import Ranks, quiet_dependencies
from trainer.run_folder import read_config
from trainer.state import TrainState, build_state, train_step


@dataclass(frozen=True, kw_only=True)
class Case:
    """How a checkpoint is to be loaded."""

    world_size: int
    kind: ShardingKind | None = None
    """Of all tables; None: as the run's settings or ``plan`` say."""
    plan: Path | None = None

    def __str__(self) -> str:
        return self.plan.name if self.plan else self.kind or "as the run"


@dataclass(kw_only=True)
class Finding:
    """What came of it, over all ranks."""

    tables: float = 0.0
    """Largest difference of a number of a table, or of a dense parameter; infinite where one of
    the two is NaN."""
    optimizers: float = 0.0
    """Of a number of an optimizer's state."""
    numbers: int = 0
    """Compared; a number that several ranks hold counts once for each."""
    losses: list[float] = dataclasses.field(default_factory=list)
    """Of the next steps, of the global batch."""
    refused: str = ""
    """Why it cannot be loaded so."""


def verify_checkpoint(
    run: Path, experiment: Experiment, data: Path, link: Link, cases: list[Case], steps: int
) -> list[Finding]:
    """Loads a checkpoint in each of the ways; on CPUs, one process for each rank.

    Args:
        run: folder of the run.
        experiment: of the run.
        data: its event store.
        link: which checkpoint.
        cases: the ways.
        steps: to train from there.
    """
    return [_on_ranks(run, experiment, data, link, case, steps) for case in cases]


def loss_difference(finding: Finding, first: Finding) -> float:
    """The largest, in parts of the loss itself; NaN where a loss is."""
    pairs = zip(finding.losses, first.losses, strict=True)
    # not Python's max, which passes over NaN
    relative = [abs(loss - other) / max(abs(other), 1e-12) for loss, other in pairs]
    return float(np.max(relative, initial=0.0))


def _on_ranks(
    run: Path, experiment: Experiment, data: Path, link: Link, case: Case, steps: int
) -> Finding:
    with tempfile.TemporaryDirectory() as folder:
        start_processes(
            _rank,
            args=(run, experiment, data, link, case, steps, Path(folder)),
            nprocs=case.world_size,
            start_method="fork",  # the libraries are loaded: a start takes a tenth of a second
        )
        return Finding(**json.loads((Path(folder) / "finding").read_text()))


def _rank(
    rank: int,
    run: Path,
    experiment: Experiment,
    data: Path,
    link: Link,
    case: Case,
    steps: int,
    folder: Path,
) -> None:
    torch.set_num_threads(1)
    quiet_dependencies()
    warnings.simplefilter("ignore")  # of DCP about reading alone
    meeting = (folder / "store").as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=case.world_size)
    ranks = Ranks(rank, case.world_size, case.world_size, torch.device("cpu"))
    try:
        finding = _examine(run, experiment, EventStore.open(data), link, case, steps, ranks)
    except (InputError, PlanError) as error:  # on all ranks alike
        finding = Finding(refused=str(error))
    if ranks.first:
        (folder / "finding").write_text(json.dumps(dataclasses.asdict(finding)))
    dist.barrier()
    dist.destroy_process_group()


def _examine(
    run: Path,
    experiment: Experiment,
    store: EventStore,
    link: Link,
    case: Case,
    steps: int,
    ranks: Ranks,
) -> Finding:
    if case.kind:
        kinds = ShardingConfig(kinds=(case.kind,), memory_gib=experiment.sharding.memory_gib)
        experiment = experiment.changed(sharding=kinds)
    given = None
    if case.plan:
        given = read_plan(case.plan, ranks, read_config(run)["experiment"], experiment)
    state = build_state(experiment, store, ranks, given)
    checkpoints = Checkpoints(run, ranks)
    position = checkpoints.load(state, link)
    finding = _compare(state, checkpoints, link)
    finding.losses = _next_losses(state, experiment, store, position, steps, ranks)
    return finding


def _compare(state: TrainState, checkpoints: Checkpoints, link: Link) -> Finding:
    """Of all ranks. Each reads the tensors of which it holds something, one after the other."""
    name = checkpoints.storage.target(link)
    content = state.to_save()
    differences, numbers = {"model": 0.0, "optimizer": 0.0}, 0
    for part, of_part in (("model", content["model"]), ("optimizer", _slots(content["optimizer"]))):
        prefix = "model." if part == "model" else "optimizer.state."
        for key, tensor in of_part.items():
            whole = torch.empty(tuple(tensor.size()), dtype=tensor.dtype)
            reader = checkpoints.storage.reader(name)
            dcp.load(
                {f"{prefix}{key}": whole},
                storage_reader=reader,
                planner=SafePlanner(),
                no_dist=True,
            )
            for held, there in _held(tensor, whole):
                differences[part] = max(differences[part], _difference(held, there))
                numbers += held.numel()
    found = torch.tensor([*differences.values()], dtype=torch.float64)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    counted = torch.tensor(numbers)
    dist.all_reduce(counted)
    tables, optimizers = found.tolist()
    return Finding(tables=tables, optimizers=optimizers, numbers=int(counted))


def _difference(held: Tensor, there: Tensor) -> float:
    """The largest of a number; infinite where one of the two alone is not finite. No NaN, over
    which maxima of Python and of gloo pass.
    """
    same = (held == there) | (held.isnan() & there.isnan())
    apart = (held.double() - there.double()).abs().masked_fill(same, 0.0)
    return float(apart.nan_to_num(nan=math.inf, posinf=math.inf).max())


def _slots(optimizer: dict) -> dict[str, Tensor]:
    return {
        f"{parameter}.{slot}": value
        for parameter, slots in optimizer["state"].items()
        for slot, value in slots.items()
        if isinstance(value, Tensor | ShardedTensor)
    }


def _held(tensor: Tensor | ShardedTensor, whole: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What this rank holds of a tensor, and the same part of the whole."""
    if not isinstance(tensor, ShardedTensor):
        if tensor.numel():
            yield tensor, whole
        return
    for shard in tensor.local_shards():
        metadata = shard.metadata
        place = tuple(
            slice(offset, offset + size)
            for offset, size in zip(metadata.shard_offsets, metadata.shard_sizes, strict=True)
        )
        if shard.tensor.numel():
            yield shard.tensor, whole[place]


def _next_losses(
    state: TrainState,
    experiment: Experiment,
    store: EventStore,
    position: Position,
    steps: int,
    ranks: Ranks,
) -> list[float]:
    """Main loss of each of the steps that follow the checkpoint."""
    loader = RequestLoader(
        store,
        "train",
        requests_per_batch=experiment.requests_per_batch,
        history_length=experiment.history_length,
        time_gap=experiment.time_gap,
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=experiment.seed,
    )
    loader.load_state_dict({"epoch": position.epoch, "batch": position.batch})
    state.scale_learning_rates(experiment, position.learning_rate_scale)
    losses = []
    for batch in itertools.islice(loader, steps):
        loss = train_step(state, batch, experiment, ranks.world_size).main.double()
        dist.all_reduce(loss)
        losses.append(float(loss) / ranks.world_size)
    return losses


def differs(finding: Finding, first: Finding, tolerance: float) -> bool:
    """Is it not the same run? Losses may differ by rounding: ranks add in another order."""
    if finding.refused or finding.tables or finding.optimizers:
        return True
    difference = loss_difference(finding, first)
    return not math.isfinite(difference) or difference > tolerance
