"""Two plans side by side: what became of settings, times, bytes and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import RenderableType

from data.errors import InputError
from sharding.proposals import CACHED
from trainer import formats
from trainer.planning.predict import MEMORY, TIME, Json
from trainer.planning.tables import cost, fullest, short, simple_table
from trainer.run_folder import leaves
from trainer.tables import rank_list

SAME = "the same"


def diff_tables(before: Json, after: Json) -> Iterator[RenderableType]:
    """What differs, as tables of the terminal.

    Raises:
        InputError: the two have no cluster in common, and not one each.
    """
    yield _settings(before, after)
    for old, new in _pairs(before, after):
        title = old["cluster"] if old["cluster"] == new["cluster"] else (
            f"{old['cluster']} -> {new['cluster']}"
        )  # fmt: skip
        if not (old["fits"] and new["fits"]):
            yield f"{title}: {_fits(old)} -> {_fits(new)}"
            continue
        yield _numbers(title, old, new)
        yield _tables(title, old, new)


def _pairs(before: Json, after: Json) -> list[tuple[Json, Json]]:
    """Plans of one cluster; of one cluster each, those two."""
    if len(before["plans"]) == len(after["plans"]) == 1:
        return [(before["plans"][0], after["plans"][0])]
    of_after = {plan["cluster"]: plan for plan in after["plans"]}
    pairs = [
        (plan, of_after[plan["cluster"]]) for plan in before["plans"] if plan["cluster"] in of_after
    ]
    if not pairs:
        names = [sorted(plan["cluster"] for plan in r["plans"]) for r in (before, after)]
        raise InputError(
            f"The two plans have no cluster in common: {names[0]} and {names[1]}. Plan both for "
            "the same cluster, or for one cluster each."
        )
    return pairs


def _fits(plan: Json) -> str:
    if plan["fits"]:
        return "fits"
    return f"does not fit, {short(plan)}"


def _settings(before: Json, after: Json) -> RenderableType:
    table = simple_table("Settings", ["setting"], ["before", "after"])
    old, new = (
        {"experiment": report["experiment"]}
        | leaves(report["config"])
        | leaves({"log": report["log"]})
        for report in (before, after)
    )
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            table.add_row(key, str(old.get(key)), str(new.get(key)))
    return table if table.row_count else f"Settings and log: {SAME}."


def _numbers(title: str, old: Json, new: Json) -> RenderableType:
    table = simple_table(title, [""], ["before", "after", "after / before"])

    def row(name: str, value: Callable[[Json], float], text: Callable[[float], str]) -> None:
        first, second = value(old), value(new)
        if first or second:
            ratio = f"{second / first:.2f}" if first else formats.MISSING
            table.add_row(name, text(first), text(second), ratio)

    row("samples/s", lambda plan: plan["samples_per_second"], formats.count)
    if old["epoch_cost"] is not None and new["epoch_cost"] is not None:
        row("cost of an epoch", lambda plan: plan["epoch_cost"], cost)
    row("step", lambda plan: plan["step"]["seconds"], _milliseconds)
    for part in TIME:
        row(
            f"  {part}, slowest",
            lambda plan, p=part: max(plan["step"]["parts"].get(p, [0.0])),
            _milliseconds,
        )
    row("fullest rank", fullest, formats.size)
    for part in MEMORY:
        row(
            f"  {part}, fullest", lambda plan, p=part: max(plan["memory"]["parts"][p]), formats.size
        )
    row("host memory, fullest", lambda plan: max(plan["memory"]["host"]), formats.size)
    return table


def _tables(title: str, old: Json, new: Json) -> RenderableType:
    table = simple_table(f"{title}: tables that changed", ["table"], [], ["before", "after"])
    before, after = ({entry["name"]: entry for entry in plan["tables"]} for plan in (old, new))
    for name in [*before, *(name for name in after if name not in before)]:
        first = _told(before.get(name), old["world_size"])
        second = _told(after.get(name), new["world_size"])
        if first != second:
            table.add_row(name, first, second)
    return table if table.row_count else f"{title}: tables {SAME}."


def _told(entry: Mapping[str, Any] | None, world_size: int) -> str:
    if entry is None:
        return "not there"
    cached = ", cached" if entry["compute_kernel"] == CACHED else ""
    return (
        f"{entry['rows']:,} x {entry['width']} {entry['sharding_type']}{cached} on "
        f"{rank_list(world_size, entry)}"
    )


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
