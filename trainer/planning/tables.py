"""Plans as tables of the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from sharding.proposals import CACHED
from trainer import formats
from trainer.planning.predict import MEMORY, Json
from trainer.tables import plain_table, rank_list

SHOWN = 30
"""Tables of one plan: more are in the page."""


def report_tables(report: Json) -> Iterator[RenderableType]:
    """Everything that the terminal shows."""
    yield clusters_table(report)
    for plan in report["plans"]:
        if plan["fits"]:
            yield tables_table(plan)
        else:
            yield remedies_table(plan)


def clusters_table(report: Json) -> Table:
    """One row per cluster."""
    log, config = report["log"], report["config"]
    table = simple_table(
        f"{report['experiment']} on {log['name']}: {config['requests_per_batch']:,} requests a "
        f"batch, {log['candidates']:.3g} candidates each, history {log['history']['mean']:,.0f}",
        ["cluster"],
        ["memory", "step", "samples/s", "with copy", "epoch", "cost"],
    )
    for plan in report["plans"]:
        if not plan["fits"]:
            table.add_row(plan["cluster"], short(plan), *["–"] * 5, style="red")
            continue
        copy = plan["with_copy"]
        table.add_row(
            plan["cluster"],
            f"{formats.size(fullest(plan))}, {fullest(plan) / plan['memory']['capacity']:.0%}",
            f"{1e3 * plan['step']['seconds']:.3g} ms",
            formats.count(plan["samples_per_second"]),
            formats.count(copy["samples_per_second"]) if copy else formats.MISSING,
            formats.duration(plan["epoch"]["seconds"]),
            cost(plan["epoch_cost"]),
        )
    table.caption = (
        "Predicted from bytes and speeds: nothing was run. Memory: of the fullest rank.\n"
        "With copy: searches read a copy of the attention tables (--replica-steps).\n"
        "Cost: of an epoch, at --price of whole nodes."
    )
    return table


def tables_table(plan: Json) -> Table:
    """One row per embedding table, the slowest first."""
    tables = sorted(plan["tables"], key=lambda entry: -entry["seconds"])
    table = simple_table(
        f"{plan['cluster']}: tables, the busiest first",
        ["table"],
        ["bytes", "busiest"],
        ["sharding", "ranks"],
    )
    for entry in tables[:SHOWN]:
        table.add_row(
            entry["name"],
            formats.size(entry["bytes"]),
            f"{1e3 * entry['seconds']:.3g} ms",
            entry["sharding_type"] + (", cached" if entry["compute_kernel"] == CACHED else ""),
            rank_list(plan["world_size"], entry),
        )
    if len(tables) > SHOWN:
        table.caption = f"and {len(tables) - SHOWN:,} more"
    return table


def remedies_table(plan: Json) -> Table:
    """What would make it fit."""
    shortage = plan["shortage"]
    table = simple_table(
        f"{plan['cluster']}: does not fit, {short(plan)}",
        ["smallest change of its kind that fits"],
        ["samples/s", "epoch", "cost"],
        wrap=True,
    )
    for change in plan["remedies"]:
        how = change["flags"] or change["cost"]
        table.add_row(
            f"{change['change']}\n  {how}",
            formats.count(change["samples_per_second"]),
            formats.duration(change["epoch_seconds"]),
            cost(change["epoch_cost"]),
        )
    first = f"; {shortage['table']} is the first without room" if shortage["table"] else ""
    table.caption = (
        f"A rank has {formats.size(shortage['free'])} for tables and would need "
        f"{formats.size(shortage['needed'])}{first}."
        + ("" if plan["remedies"] else "\nNo single change that was tried makes it fit.")
    )
    return table


def short(plan: Json) -> str:
    """How much a cluster lacks on which nothing fits."""
    missing = plan["shortage"]["missing"]
    return f"{formats.size(missing)} short" if missing else "no placement found"


def cost(value: float | None) -> str:
    """1,234.50, 1.23, and of less than one two digits that are not zero: 0.0024."""
    return f"{value:.2g}" if value and value < 1 else formats.decimal(value, 2)


def fullest(plan: Json) -> int:
    """Bytes of the fullest rank, what is kept free included."""
    return max(
        sum(parts) for parts in zip(*(plan["memory"]["parts"][n] for n in MEMORY), strict=True)
    )


def simple_table(
    title: str,
    left: list[str],
    right: list[str],
    words: list[str] | None = None,
    *,
    wrap: bool = False,
) -> Table:
    """Names left, numbers right, words last. ``wrap``: names may take several lines."""
    table = plain_table(title)
    for name in left:
        table.add_column(name, no_wrap=not wrap)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    for name in words or []:
        table.add_column(name)
    return table
