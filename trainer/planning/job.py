"""The plan of a job that was given none, chosen as ``twofold plan`` would."""

from __future__ import annotations

import torch
from torchrec.distributed.types import ShardingPlan

from data.store import EventStore
from modules.ranker import LifelongRanker
from sharding.catalogue import cluster_of_job
from trainer.experiment import Experiment
from trainer.planning.log import Log
from trainer.planning.predict import Situation
from trainer.processes import Ranks, gather_lines


def plan_for_job(
    ranker: LifelongRanker, experiment: Experiment, store: EventStore, ranks: Ranks
) -> ShardingPlan:
    """The same on every rank: each plans for itself, for the hosts that all have told. Collective.

    Args:
        ranker: with its tables on the meta device; narrow ones held wide.
        experiment: whose ``sharding`` says what is allowed.
        store: whose lengths and frequencies count.
        ranks: who this process is.

    Raises:
        PlanError: nothing fits, or the settings name unknown tables.
    """
    device = ranks.device.type
    name = torch.cuda.get_device_name(ranks.device) if device == "cuda" else ""
    told = gather_lines([f"{ranks.local_world_size} {name}"], ranks.device)
    sizes = {int(line.split()[0]) for line in told}
    cluster = cluster_of_job(
        ranks.world_size,
        sizes.pop() if len(sizes) == 1 else 1,  # unequal hosts: every rank as far away as another
        device,
        experiment.sharding.memory_gib,
        told[0].partition(" ")[2],
    )
    return Situation.around(ranker, experiment, Log.of_store(store), cluster).search()
