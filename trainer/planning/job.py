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
from trainer.processes import Ranks


def plan_for_job(
    ranker: LifelongRanker, experiment: Experiment, store: EventStore, ranks: Ranks
) -> ShardingPlan:
    """The same on every rank, each of which plans for itself.

    Args:
        ranker: with its tables on the meta device; narrow ones held wide.
        experiment: whose ``sharding`` says what is allowed.
        store: whose lengths and frequencies count.
        ranks: who this process is.

    Raises:
        PlanError: nothing fits, or the settings name unknown tables.
    """
    device = ranks.device.type
    cluster = cluster_of_job(
        ranks.world_size,
        ranks.local_world_size,
        device,
        experiment.sharding.memory_gib,
        torch.cuda.get_device_name(ranks.device) if device == "cuda" else "",
    )
    return Situation.around(ranker, experiment, Log.of_store(store), cluster).search()
