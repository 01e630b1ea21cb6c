"""Tables for the terminal: results, sharding plan, event store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Table

from trainer import formats


def results_table(summaries: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row per run.

    Args:
        summaries: name of the run -> its ``summary.json``
    """
    table = _table("Test metrics", ["model"], _RESULT_COLUMNS)
    aucs = [summary.get("auc") or 0.0 for summary in summaries.values()]
    for name, summary in summaries.items():
        leads = len(aucs) > 1 and summary.get("auc") == max(aucs)
        table.add_row(
            name,
            formats.decimal(summary.get("auc")),
            formats.interval(summary.get("auc_interval")),
            formats.decimal(summary.get("gauc")),
            formats.decimal(summary.get("logloss")),
            formats.decimal(summary.get("normalized_entropy")),
            formats.decimal(summary.get("calibration"), 3),
            formats.count(summary.get("samples_per_second")),
            style="bold" if leads else None,
        )
    table.caption = (
        "Interval: bootstrap over requests. GAUC: AUC within users.\n"
        "NE: normalized entropy. calib.: predicted over observed clicks."
    )
    return table


_RESULT_COLUMNS = ["AUC", "95 % interval", "GAUC", "log loss", "NE", "calib.", "samples/s"]


def importance_table(importance: Mapping[str, Any], most: int = 15) -> Table:
    """One row per field, the most important first.

    Args:
        importance: of an ``analysis-*.json``
        most: rows that are shown
    """
    fields = sorted(importance["fields"], key=lambda field: -(field["auc_lost"] or 0.0))
    table = _table("Lost when a field is permuted", ["field"], ["AUC", "95 % interval", "log loss"])
    for field in fields[:most]:
        low, high = map(formats.signed, field["auc_lost_interval"])
        table.add_row(
            field["field"],
            formats.signed(field["auc_lost"]),
            f"{low} to {high}",
            formats.signed(field["logloss_lost"]),
        )
    table.caption = (
        f"Mean of {importance['permutations']} permutations. Interval: bootstrap over "
        f"{importance['resampled']}s."
    )
    if len(fields) > most:
        table.caption += f"\n{len(fields) - most} fields that lose less are in the report."
    return table


def plan_table(plan: Mapping[str, Any]) -> Table:
    """One row per embedding table and a total.

    Args:
        plan: content of ``plan.json``
    """
    optimizers = ", ".join(sorted({entry["optimizer"] for entry in plan["tables"]}))
    table = _table(
        f"Sharding plan, {plan['world_size']} rank{'s' if plan['world_size'] > 1 else ''}, "
        f"fused optimizer {optimizers}",
        ["table"],
        ["rows", "width", "weights", "optimizer"],
        ["sharding", "ranks"],
    )
    for entry in plan["tables"]:
        table.add_row(
            entry["name"],
            formats.count(entry["rows"]),
            formats.count(entry["width"]),
            formats.size(entry["bytes"]),
            formats.size(_optimizer_bytes(entry)),
            _sharding(entry),
            rank_list(plan["world_size"], entry),
        )
    table.add_section()
    weights = sum(entry["bytes"] for entry in plan["tables"])
    states = sum(_optimizer_bytes(entry) for entry in plan["tables"])
    table.add_row("total", "", "", formats.size(weights), formats.size(states), style="dim")
    if plan["world_size"] > 1:
        held = bytes_by_rank(plan)
        fullest = max(range(len(held)), key=held.__getitem__)
        table.caption = (
            f"Tables and optimizer by rank: from {formats.size(min(held))} to "
            f"{formats.size(held[fullest])} (rank {fullest})."
        )
    return table


def _sharding(entry: Mapping[str, Any]) -> str:
    """Its kind, and the kernel where it is none of those that hold the table on the device."""
    kernel = entry["compute_kernel"]
    return entry["sharding_type"] + ("" if kernel in ("fused", "dense") else f", {kernel}")


def bytes_by_rank(plan: Mapping[str, Any]) -> list[int]:
    """(world_size,) bytes of tables and optimizer states."""
    held = [0] * plan["world_size"]
    for entry in plan["tables"]:
        bytes_per_number = entry["bytes"] // (entry["rows"] * entry["width"])
        for shard in _shards(entry, plan["world_size"]):
            rows, columns = shard["size"]
            held[shard["rank"]] += bytes_per_number * rows * columns
            held[shard["rank"]] += _state_bytes(entry["optimizer"], rows, columns)
    return held


def _optimizer_bytes(entry: Mapping[str, Any]) -> int:
    """Of all shards; of a replicated table one replica's, as ``bytes`` is."""
    return sum(_state_bytes(entry["optimizer"], *shard["size"]) for shard in _shards(entry, 1))


def _state_bytes(optimizer: str, rows: int, columns: int) -> int:
    from sharding.costs import state_bytes  # twofold status does not wait for torch

    return state_bytes(optimizer, rows, columns)


def _shards(entry: Mapping[str, Any], world_size: int) -> list[dict[str, Any]]:
    """A table without shards in the plan is replicated: every rank holds it whole."""
    whole = [{"rank": r, "size": [entry["rows"], entry["width"]]} for r in range(world_size)]
    return entry.get("shards") or whole


def rank_list(world_size: int, entry: Mapping[str, Any]) -> str:
    """Ranks that hold a part of a table: ``0``, ``0–3``, ``0, 2``.

    A table without shards in the plan is replicated: every rank holds it.
    """
    ranks = sorted({shard["rank"] for shard in entry.get("shards") or ()}) or range(world_size)
    if len(ranks) > 2 and ranks[-1] - ranks[0] == len(ranks) - 1:
        return f"{ranks[0]}–{ranks[-1]}"
    return ", ".join(map(str, ranks))


def store_table(store: Mapping[str, Any]) -> Table:
    """What a log became: sizes, history lengths and requests.

    Args:
        store: content of ``store.json``
    """
    table = _table(f"Event store from {store['source']}", [""], ["total", "train", "val", "test"])
    for name in ("users", "events", "items", "categories"):
        table.add_row(name, formats.count(store[name]))
    history = store["history"]
    table.add_row("history length, median", formats.count(history["p50"]))
    for quantile in ("p90", "p99", "max"):
        table.add_row(f"history length, {quantile}", formats.count(history[quantile]))
    table.add_section()
    for name in ("requests", "candidates", "positives"):
        by_split = [store[name][split] for split in ("train", "val", "test")]
        table.add_row(name, *map(formats.count, (sum(by_split), *by_split)))
    table.add_section()
    if (store.get("log_events") or store["events"]) > store["events"]:
        table.add_row("events left out", formats.count(store["log_events"] - store["events"]))
    if store.get("duplicates"):
        table.add_row("duplicate events, kept", formats.count(store["duplicates"]))
    for reason, count in (store.get("left_out") or {}).items():
        table.add_row(f"no request: {reason}", formats.count(count))
    table.add_row("partitions", formats.count(len(store["partitions"])))
    table.add_row("size", formats.size(store["bytes"]))
    if store.get("best_auc") is not None:
        table.add_row("best reachable AUC", formats.decimal(store["best_auc"]))
    if store.get("fingerprint"):
        table.add_row("fingerprint", store["fingerprint"][:12])
    return table


def plain_table(title: str) -> Table:
    """A table without columns, in the style of all others."""
    return Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def _table(
    title: str, left: Iterable[str], right: Iterable[str], left_again: Iterable[str] = ()
) -> Table:
    """An empty table; columns of words stand left, columns of numbers right."""
    table = plain_table(title)
    for justify, names in (("left", left), ("right", right), ("left", left_again)):
        for name in names:
            table.add_column(name, justify=justify, no_wrap=True)
    return table
