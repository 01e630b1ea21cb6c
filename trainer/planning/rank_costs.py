"""What every rank holds and does beside the tables' shards: activations, dense part, search.

Shapes: R requests, S candidates, N events of all histories, of one rank; K chosen events;
A attention width, V representation width (sums over the fields).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torchrec import EmbeddingBagCollection

from modules.jagged import BLOCK_EVENTS, BLOCK_SCORES
from modules.ranker import LifelongRanker
from sharding.catalogue import GB, Cluster
from sharding.cluster_plan import RESERVE
from sharding.collectives import Calls, calls_of_dense
from sharding.costs import FLOAT_BYTES, ID_BYTES, Lookup, TableLoad
from sharding.plan import collections
from sharding.search_tables import SCALE_BYTES
from trainer.experiment import Experiment
from trainer.planning.load import RankBatch

DENSE_COPIES = 4
"""Of each dense parameter: itself, its gradient, and two of Adam's."""
SAMPLE = 64
"""Candidates of the pass through the heads that is counted."""
SCORED = ("exact", "simhash", "soft", "clusters")
"""Searches that score every event; clusters are taken to be as many as events."""
ONE_LOOKUP = ("decoupled", "shared")
"""Sharings that look up keys and queries together, without maps."""
WALK = 3
"""Work of forward and backward as a multiple of forward: products of a linear layer."""


@dataclass(frozen=True)
class RankCost:
    """The same on every rank."""

    dense: int
    """Bytes of dense parameters, gradients, Adam's state, DDP's buckets."""
    activations: int
    """Bytes of the batch's ids, of rows that arrive, of search, attention and heads."""
    copy: int
    """Bytes of the attention tables' copy that searches read."""
    reserve: int
    """Bytes that are left free."""
    search_seconds: float
    dense_seconds: float
    all_reduce_seconds: float
    copy_seconds: float
    """Of renewals of the copy, a step's share."""
    overhead_seconds: float
    calls: Calls
    """Collectives beside those of tables."""
    calls_seconds: float

    @property
    def fixed_bytes(self) -> int:
        """What no table may have."""
        return self.dense + self.activations + self.copy + self.reserve

    @property
    def seconds(self) -> float:
        """Of a step."""
        return (
            self.search_seconds
            + self.dense_seconds
            + self.all_reduce_seconds
            + self.copy_seconds
            + self.overhead_seconds
            + self.calls_seconds
        )


def rank_cost(
    ranker: LifelongRanker,
    experiment: Experiment,
    loads: dict[str, TableLoad],
    batch: RankBatch,
    cluster: Cluster,
) -> RankCost:
    """Of one rank of a cluster."""
    node, ranks = cluster.node, cluster.world_size
    parameters = dense_parameters(ranker)
    heads = _heads(ranker, batch)
    copies = DENSE_COPIES + (ranks > 1)
    keys = _copy_bytes(ranker, experiment)
    memory_speed = node.memory_gbs * GB
    stock_speed = node.stock * memory_speed
    events = _event_work(ranker, experiment, batch, node.device)
    activations = (
        _batch_bytes(ranker, batch)
        + _arriving_bytes(ranker, loads, ranks)
        + _attention_bytes(ranker, experiment, batch)
        + heads.bytes
    )
    calls = calls_of_dense(ranker, parameters) if ranks > 1 else Calls()
    renewals = 1 / experiment.replica_steps if experiment.replica_steps and ranks > 1 else 0.0
    return RankCost(
        dense=FLOAT_BYTES * copies * parameters,
        activations=round(activations),
        copy=keys,
        reserve=round(RESERVE * cluster.memory),
        search_seconds=events.flops / node.tflops / 1e12
        + events.searched / (node.search * memory_speed)
        + events.moved / stock_speed
        + events.added / memory_speed,
        dense_seconds=WALK * (heads.flops / node.tflops / 1e12 + heads.moved / stock_speed)
        + 2 * DENSE_COPIES * FLOAT_BYTES * parameters / memory_speed,
        all_reduce_seconds=cluster.all_reduce_seconds(FLOAT_BYTES * parameters),
        copy_seconds=renewals * cluster.exchange_seconds(keys * ranks),
        overhead_seconds=node.overhead_ms / 1e3,
        calls=calls,
        calls_seconds=calls.seconds(cluster),
    )


def dense_parameters(ranker: nn.Module) -> int:
    """Numbers outside of tables."""
    of_tables = {
        id(parameter)
        for module in ranker.modules()
        if isinstance(module, EmbeddingBagCollection)
        for parameter in module.parameters()
    }
    return sum(p.numel() for p in ranker.parameters() if id(p) not in of_tables)


def _widths(ranker: LifelongRanker) -> tuple[int, int]:
    """A, V; zero where the model has no events."""
    attention = sum(f.attention_dim for f in ranker.fields)
    return attention, sum(f.representation_dim for f in ranker.fields)


def _batch_bytes(ranker: LifelongRanker, batch: RankBatch) -> float:
    """Ids on the device: those of this batch, and of the next one, which is on its way."""
    fields = len(ranker.fields)
    context = len(ranker.context.names) if ranker.context is not None else 0
    ids = fields * (batch.most_events + batch.candidates) + context * batch.requests
    return 2 * ID_BYTES * ids


def _arriving_bytes(ranker: LifelongRanker, loads: dict[str, TableLoad], ranks: int) -> float:
    """Rows or sums that come from the owners, joined to one tensor, and their gradients."""

    def of_use(use: Lookup, width: int) -> float:
        if use.local:
            return 0.0
        copies = (1 + (ranks > 1)) * (1 + use.gradient)
        return copies * use.bags * width * FLOAT_BYTES

    return sum(
        of_use(use, table.embedding_dim)
        for _, bags in collections(ranker)
        for table in bags.embedding_bag_configs()
        for use in loads[table.name].lookups
    )


def _attention_bytes(ranker: LifelongRanker, experiment: Experiment, batch: RankBatch) -> float:
    """A block's gathered keys and scores, and what attention keeps for its backward pass."""
    model = experiment.model
    if model.pooling == "none":
        return 0.0
    a, v = _widths(ranker)
    per_request = batch.candidates / batch.requests
    block = min(batch.most_events, max(BLOCK_EVENTS, batch.longest))
    scores = min(BLOCK_SCORES, max(block * per_request, batch.longest * per_request))
    searched = FLOAT_BYTES * (block * a + 3 * scores)
    if model.searches_first:
        kept = model.attended
        held = batch.candidates * kept * (2 * a + (0 if ranker.tables.sums_rows else 2 * v))
        return searched + FLOAT_BYTES * (held + 4 * batch.candidates * (kept + v))
    if model.pooling == "self_attention":
        maps = batch.most_events * (4 * v + 2 * batch.longest)
        return searched + FLOAT_BYTES * 2 * maps
    # every event keeps its key, its value and a score for each candidate
    return searched + FLOAT_BYTES * 2 * batch.most_events * (a + v + 2 * per_request)


@dataclass(frozen=True)
class _Work:
    """Forward and backward."""

    flops: float = 0.0
    moved: float = 0.0
    """Bytes that torch's own operations move."""
    added: float = 0.0
    """Bytes of plain sums, at the speed of the memory."""
    searched: float = 0.0
    """Bytes of an exact search, as :func:`search_bytes` counts them."""

    def __add__(self, other: _Work) -> _Work:
        return _Work(
            self.flops + other.flops,
            self.moved + other.moved,
            self.added + other.added,
            self.searched + other.searched,
        )


def _event_work(
    ranker: LifelongRanker, experiment: Experiment, batch: RankBatch, device: str
) -> _Work:
    """Of searching histories and attending to events."""
    model = experiment.model
    if model.pooling == "none":
        return _Work()
    a, v = _widths(ranker)
    scores = batch.events * batch.candidates / batch.requests
    chosen = batch.candidates * (model.short_window if model.search == "all" else model.attended)
    to_all = model.search == "all" or (model.auxiliary == "full" and not model.searches_first)
    fused = _searches_fused(experiment, device)
    joint = model.searches_first and model.score != "mlp" and model.sharing in ONE_LOOKUP
    work = _Work()
    if model.search in SCORED:
        moved = search_bytes(batch.events, scores, a)
        work += _Work(2.0 * scores * a, **{"searched" if fused else "moved": moved})
    if to_all:
        work += _attention_work(batch.events, scores, a + v, a + v)
    if chosen:
        width = a if ranker.tables.sums_rows else a + v
        if joint:
            work += _joint_work(chosen, width, a + v, a * (model.score == "cosine"))
        else:
            work += _attention_work(chosen, chosen, width, a + v)
    if to_all and chosen:  # gradients of the same rows, of two uses
        work += _Work(added=FLOAT_BYTES * 3 * batch.events * (a + v))
    if model.score == "cosine":  # rows over their lengths; a kernel has them at hand
        searched = batch.events * (model.search in SCORED and not fused)
        learned = chosen * (not joint) if model.searches_first else batch.events
        work += _Work(moved=FLOAT_BYTES * a * (searched + 2 * WALK * learned))
    if model.pooling == "self_attention":
        work += _Work(WALK * 4.0 * batch.events * batch.longest * v)
    return work


def _searches_fused(experiment: Experiment, device: str) -> bool:
    """Whether a training's searches run in one kernel: ``modules.kernels.choice`` of the tables
    that this experiment makes. That tables lie whole is taken for granted.
    """
    model = experiment.model
    copied = experiment.replica_steps and experiment.replica_dtype != "float32"
    float32 = experiment.tables.dtype == "float32" and not copied
    return (
        model.search == "exact"
        and model.searches_first
        and model.score != "mlp"
        and model.sharing != "projected"
        and (device == "cuda" or float32)
    )


def _attention_work(rows: float, scores: float, width: int, multiplied: int) -> _Work:
    """Of attention to ``rows``, gathered ``width`` wide: products, softmax, weighted sum."""
    return _Work(
        flops=2.0 * scores * multiplied * WALK,
        moved=WALK * attention_bytes(rows, scores, width),
    )


def _joint_work(rows: float, width: int, multiplied: int, normalized: int) -> _Work:
    """The same of ``modules.joint_rows``: rows are read, read again and their gradient is written,
    at the speed of plain sums, and as often those columns that a cosine normalizes.
    """
    return _Work(
        flops=2.0 * rows * multiplied * WALK, added=FLOAT_BYTES * 3 * rows * (width + normalized)
    )


def attention_bytes(rows: float, scores: float, width: int) -> float:
    """Moved forward to gather rows of so many floats, to write scores and make weights of them."""
    return FLOAT_BYTES * 2 * (rows * width + scores)


def search_bytes(events: float, scores: float, width: int) -> float:
    """Moved to gather keys of so many floats, to write their scores and to choose from these."""
    return FLOAT_BYTES * (2 * events * width + 4 * scores)


def _copy_bytes(ranker: LifelongRanker, experiment: Experiment) -> int:
    """Of the searches' copy on every rank: what it takes, and what a renewal brings."""
    if not (ranker.reads_history and experiment.replica_steps):
        return 0
    kind = experiment.replica_dtype

    def row_bytes(width: int) -> int:
        if kind == "float32":
            return 4 * width
        return width + SCALE_BYTES if kind == "int8" and width > SCALE_BYTES else 2 * width

    return sum(
        f.num_embeddings * row_bytes(f.attention_dim)
        for roles in ranker.tables.roles.values()
        if {"keys", "queries"} & {*roles}
        for f in ranker.fields
    )


@dataclass(frozen=True)
class _Pass:
    """Of the heads, forward."""

    flops: float
    bytes: float
    """Of all outputs."""
    moved: float
    """Of those that are written and read again; a product's speed has its own in it."""


def _memory(tensor: torch.Tensor) -> int:
    """The same for all views of a tensor; below autograd none says that it is one."""
    return tensor.untyped_storage()._cdata


_PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm}


class _Outputs(TorchDispatchMode):
    """Adds up the bytes of everything that is computed, and of what is no product."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.moved = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Counts what ``func`` makes anew."""
        out = func(*args, **(kwargs or {}))
        held = {_memory(leaf) for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and _memory(leaf) not in held:  # no view
                size = leaf.numel() * leaf.element_size()
                self.bytes += size
                self.moved += size * (func.overloadpacket not in _PRODUCTS)
        return out


def _heads(ranker: LifelongRanker, batch: RankBatch) -> _Pass:
    """Counted in one pass on the meta device, which takes no memory and no time."""
    _, v = _widths(ranker)
    interests = ranker.config.interests
    beside: dict[str, torch.Tensor] = {}
    if ranker.context is not None:
        context = ranker.context
        vectors = len(context.names) if context.context is not None else 0
        if context.numbers is not None and context.numbers.has_vectors:
            vectors += context.numbers.vectors.shape[0]
        beside["context"] = torch.empty(SAMPLE, vectors, context.width, device="meta")
    if ranker.config.head == "crossing":
        beside["first_order"] = torch.empty(SAMPLE, device="meta")
    rows = [torch.empty(SAMPLE, v, device="meta") for _ in range(1 + interests)]
    head = copy.deepcopy(ranker.head).to("meta")
    outputs, flops = _Outputs(), FlopCounterMode(display=False)
    with torch.no_grad(), flops, outputs:
        head(*rows, **beside)
        if ranker.config.auxiliary != "none":
            copy.deepcopy(ranker.auxiliary_head).to("meta")(*rows[:2])
    scale = batch.candidates / SAMPLE
    return _Pass(
        scale * flops.get_total_flops(), 2 * scale * outputs.bytes, 2 * scale * outputs.moved
    )
