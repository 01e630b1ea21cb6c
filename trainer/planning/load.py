"""How often a training step looks up each table: the model's path through them, told in numbers.

Shapes: R requests, S candidates, N events of all histories, of one rank; K chosen events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modules.ranker import LifelongRanker
from modules.tables import ATTENTION_ROLES, EVENT_ROLES, Role
from sharding.costs import Lookup, TableLoad
from sharding.frequency import RowFrequency
from sharding.plan import collections
from trainer.experiment import Experiment
from trainer.planning.log import Log


@dataclass(frozen=True)
class RankBatch:
    """Sizes of one rank's share of a global batch."""

    requests: float
    """R."""
    candidates: float
    """S."""
    events: float
    """N, the mean."""
    most_events: float
    """N of an unusually long batch: three standard deviations above."""
    longest: int
    """Events of the longest history."""

    @classmethod
    def of(cls, experiment: Experiment, log: Log, world_size: int) -> RankBatch:
        """The mean rank's."""
        requests = experiment.requests_per_batch / world_size
        kept = log.kept(experiment.history_length)
        if not len(kept) or experiment.model.pooling == "none":
            return cls(requests, requests * log.candidates, 0.0, 0.0, 0)
        events = requests * kept.mean()
        most = min(events + 3 * np.sqrt(requests) * kept.std(), requests * kept.max())
        return cls(requests, requests * log.candidates, events, float(most), int(kept.max()))


def searches_by_rows(experiment: Experiment) -> bool:
    """Whether the search reads an attention row of every event, without gradient."""
    model = experiment.model
    return model.searches_first and model.search in ("exact", "simhash")


def reads_locally(experiment: Experiment, world_size: int) -> bool:
    """Whether it reads them where they are whole: in a world of one, or in a copy."""
    return world_size == 1 or experiment.replica_steps > 0


def table_loads(
    ranker: LifelongRanker, experiment: Experiment, log: Log, batch: RankBatch, world_size: int
) -> dict[str, TableLoad]:
    """Lookups of every table of a model, by name.

    Candidates and chosen events are taken to be as frequent as events are.
    """
    local = reads_locally(experiment, world_size)
    loads: dict[str, TableLoad] = {}
    frequencies: dict[tuple[bool, str, int], RowFrequency] = {}
    for path, bags in collections(ranker):
        of_requests = path.startswith("context.")
        for table in bags.embedding_bag_configs():
            (name,), rows = table.feature_names, table.num_embeddings
            key = (of_requests, name, rows)
            if key not in frequencies:
                frequencies[key] = (
                    log.context_frequency(name, rows)
                    if of_requests
                    else log.frequency(name, rows, experiment.history_length)
                )
            loads[table.name] = TableLoad(
                lookups=_lookups(ranker, experiment, batch, path, local),
                frequency=frequencies[key],
            )
    return loads


def _lookups(
    ranker: LifelongRanker, experiment: Experiment, batch: RankBatch, path: str, local: bool
) -> tuple[Lookup, ...]:
    parts = path.split(".")
    if parts[0] == "context":
        return (Lookup(batch.requests),)
    if parts[0] == "first_order":
        return (Lookup(batch.candidates),)
    roles = ranker.tables.roles[parts[1]]
    if experiment.model.pooling == "none":
        return (Lookup(batch.candidates),) if "targets" in roles else ()
    if not experiment.model.searches_first:
        return (Lookup(_each_role(roles, batch.events, batch.candidates)),)
    searched = ()
    if searches_by_rows(experiment) and {*ATTENTION_ROLES} & {*roles}:
        wanted = tuple(role for role in roles if role in ATTENTION_ROLES)
        count = _each_role(wanted, batch.events, batch.candidates)
        searched = (Lookup(count, gradient=False, local=local),)
    return (*searched, *_attended(ranker, experiment, batch, roles))


def _each_role(roles: tuple[Role, ...], events: float, candidates: float) -> float:
    """Rows of one call: events once if any role wants them, and candidates."""
    of_events = bool({*EVENT_ROLES} & {*roles})
    of_candidates = bool({*roles} - {*EVENT_ROLES})
    return of_events * events + of_candidates * candidates


def _attended(
    ranker: LifelongRanker, experiment: Experiment, batch: RankBatch, roles: tuple[Role, ...]
) -> tuple[Lookup, ...]:
    """What is looked up with gradient after a search."""
    model, candidates = experiment.model, batch.candidates
    if not ranker.tables.sums_rows or {*ATTENTION_ROLES} & {*roles}:
        return (Lookup(_each_role(roles, candidates * model.attended, candidates)),)
    found = []
    if "values" in roles:
        summed = [model.top_k]
        if model.short_window:
            summed.append(model.short_window)
        if model.auxiliary == "sampled":
            summed.append(model.top_k + model.auxiliary_others)
        found += [Lookup(candidates, rows=k, weighted=True) for k in summed]
    if "targets" in roles:
        found.append(Lookup(candidates, weighted=True))
    return tuple(found)
