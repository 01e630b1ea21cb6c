"""Why a table is not sharded otherwise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sharding.cluster_plan import CUTTABLE, LARGEST_REPLICA, PlacedTable, cut
from sharding.errors import PlanError
from sharding.plan import allowed_kinds
from sharding.proposals import CACHED
from sharding.replicated import DATA_PARALLEL, DENSE
from trainer import formats

if TYPE_CHECKING:
    from trainer.planning.predict import Situation

ALTERNATIVES = (
    ("table_wise", "fused"), ("row_wise", "fused"), ("column_wise", "fused"),
    (DATA_PARALLEL, DENSE), ("row_wise", CACHED), ("table_wise", CACHED),
)  # fmt: skip
COLUMN_WIDTH = 128
"""TorchRec cuts no narrower columns."""


def rejected(
    situation: Situation, table: PlacedTable, *, host: bool, cuttable: set[str]
) -> list[dict[str, str]]:
    """Sharding type, kernel and reason, of every way that was not taken.

    Args:
        situation: what was planned.
        table: in the plan.
        host: tables were allowed in the host's memory.
        cuttable: tables that might have been cut.
    """
    return [
        {"sharding_type": kind, "compute_kernel": kernel, "reason": reason}
        for kind, kernel in ALTERNATIVES
        if (kind, kernel) != (table.kind, table.kernel)
        and (reason := _reason(situation, table, kind, kernel, host=host, cuttable=cuttable))
    ]


def _reason(
    situation: Situation,
    table: PlacedTable,
    kind: str,
    kernel: str,
    *,
    host: bool,
    cuttable: set[str],
) -> str | None:
    cluster, config = situation.cluster, situation.sharding
    if kernel == CACHED and cluster.node.device != "cuda":
        return None
    if kernel == CACHED and not host:
        return "it fits without the host's memory, which is slower"
    if cluster.world_size == 1 and kind != "table_wise":
        return "one rank holds it whole"
    if kind == "column_wise" and (table.width <= COLUMN_WIDTH or table.width % 4):
        return f"TorchRec cuts no columns narrower than {COLUMN_WIDTH}"
    per_rank = math.ceil(table.rows / cluster.world_size)
    if kind == "row_wise" and per_rank * (cluster.world_size - 1) >= table.rows:
        return f"{table.rows} rows over {cluster.world_size} ranks would leave one without a row"
    try:
        allowed = allowed_kinds(table.name, table.rows, cluster.world_size, config)
    except PlanError as error:
        return str(error)
    if kind == DATA_PARALLEL and not situation.experiment.tables.replicable:
        return "only for float32 tables without Adam and weight decay"
    if kind not in allowed:
        return "not among --sharding.kinds"
    size = 4 * table.rows * table.width
    if kind == DATA_PARALLEL and size > LARGEST_REPLICA:
        return (
            f"each step would make a gradient of {formats.size(size)}; above "
            f"{formats.size(LARGEST_REPLICA)} --sharding.table-kinds has to ask for it"
        )
    if kind != "table_wise" and table.name not in cuttable:
        return f"not rated: neither of the {CUTTABLE} largest nor of the {CUTTABLE} busiest tables"
    shards = [
        situation.costs.shard(table.name, kind, kernel, *shard)
        for shard in cut(kind, (table.rows, table.width), situation.costs)
    ]
    largest, slowest = max(s.device_bytes for s in shards), max(s.seconds for s in shards)
    if largest > situation.free:
        return (
            f"a rank would hold {formats.size(largest)} of it and has "
            f"{formats.size(situation.free)} for tables"
        )
    chosen = max(shard.cost.seconds for shard in table.shards)
    if kind == DATA_PARALLEL:
        return (
            f"every rank would sum a gradient of {formats.size(size)} with all others: "
            f"{1e3 * slowest:.3g} ms on each, instead of {1e3 * chosen:.3g} on the busiest"
        )
    if slowest > chosen:
        return f"slower: {1e3 * slowest:.3g} ms on its busiest rank instead of {1e3 * chosen:.3g}"
    return (
        f"{1e3 * slowest:.3g} ms on its busiest rank instead of {1e3 * chosen:.3g}, but no "
        "rated plan with it ends sooner on the busiest rank"
    )
