"""The page of twofold plan: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainer import formats
from trainer.planning.tables import cost, fullest, short
from trainer.report.figures import COLORS
from trainer.report.plan_figures import Bar, Part, bars, stacked
from trainer.report.sections import Panel
from trainer.report.templates import environment
from trainer.tables import rank_list

Json = Mapping[str, Any]

MEMORY = {
    "weights": "weights", "optimizer": "optimizer state", "inputs": "input buffers",
    "outputs": "output buffers", "activations": "activations", "copy": "copy of keys",
    "dense": "dense part", "reserve": "reserve",
}  # fmt: skip
TIME = {
    "lookup": "lookups", "rows_exchange": "rows sent", "ids_exchange": "ids sent",
    "gradients_exchange": "gradients sent", "update": "updates", "dense": "dense part",
    "search": "search, attention", "all_reduce": "dense gradients", "copy": "copy of keys",
    "calls": "calls of collectives", "overhead": "overhead",
}  # fmt: skip
MOST_TABLES = 60
"""Tables of one cluster that the page lists; plan.json has all."""
MOST_REASONS = 12
"""Tables of which it says what was rejected."""


def write_plan_page(path: Path, report: Json) -> None:
    """Writes the page of a plan.json; replaced only when the new one is complete."""
    pages = environment()
    for name in ("count", "decimal", "size", "duration"):
        pages.filters[name] = getattr(formats, name)
    pages.filters["ranks"] = lambda entry, plan: rank_list(plan["world_size"], entry)
    plans = report["plans"]
    colors = {plan["cluster"]: number % COLORS for number, plan in enumerate(plans)}
    html = pages.get_template("plan.html.j2").render(
        title=f"Twofold: plan of {report['experiment']}",
        report=report,
        fitting=[plan for plan in plans if plan["fits"]],
        failing=[plan for plan in plans if not plan["fits"]],
        best=_best(plans),
        colors=colors,
        panels=_clusters(plans, colors),
        pictures={p["cluster"]: [_memory(p), _step(p)] for p in plans if p["fits"]},
        busiest=_busiest,
        most_tables=MOST_TABLES,
        most_reasons=MOST_REASONS,
        fullest=fullest,
        short=short,
        cost=cost,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.partial")
    unfinished.write_text(html, encoding="utf-8")
    unfinished.replace(path)


def _best(plans: list[Json]) -> dict[str, Json]:
    """The fastest, and where prices are known the cheapest."""
    fitting = [plan for plan in plans if plan["fits"]]
    priced = [plan for plan in fitting if plan["epoch_cost"] is not None]
    found = {}
    if fitting:
        found["fastest"] = max(fitting, key=lambda plan: plan["samples_per_second"])
    if priced:
        found["cheapest"] = min(priced, key=lambda plan: plan["epoch_cost"])
    return found


def _clusters(plans: list[Json], colors: Mapping[str, int]) -> list[Panel]:
    """Side by side: samples/s, and the cost of an epoch."""
    fitting = [plan for plan in plans if plan["fits"]]
    if not fitting:
        return []

    def panel(title: str, key: str, label: Any, caption: str) -> Panel | None:
        rows = [
            Bar(plan["cluster"], plan[key], label(plan[key]), colors[plan["cluster"]])
            for plan in fitting
            if plan[key] is not None
        ]
        return Panel(title, bars(rows, title), caption) if rows else None

    panels = [
        panel(
            "Samples per second",
            "samples_per_second",
            formats.count,
            "Candidates of all ranks together, predicted. A step ends when its slowest rank does.",
        ),
        panel(
            "Cost of an epoch",
            "epoch_cost",
            cost,
            "At the prices given of a whole node for an hour, though a cluster use fewer of its "
            "devices; training alone, without evaluation.",
        ),
    ]
    return [panel for panel in panels if panel is not None]


def _memory(plan: Json) -> Panel:
    parts = _parts(plan["memory"]["parts"], MEMORY, 1 / 2**30, formats.size, 1.0)
    title = "Memory of each rank"
    svg = stacked(parts, title, unit="GiB", limit=plan["memory"]["capacity"] / 2**30)
    host = max(plan["memory"]["host"])
    beside = f" Beside it {formats.size(host)} of the host's memory." if host else ""
    return Panel(
        title,
        svg,
        "Dashed: what the device has. Numbers: of the fullest rank in that part. Reserve is left "
        "free for the driver, communication and fragmentation." + beside,
    )


def _step(plan: Json) -> Panel:
    parts = _parts(plan["step"]["parts"], TIME, 1e3, lambda ms: f"{ms:.3g} ms", 1e3)
    title = "Time of a step on each rank"
    imbalance, calls = plan["step"]["imbalance"], plan["step"]["calls"]
    made = f"{calls['all_to_all']} all-to-alls and {calls['all_reduce']} all-reduces"
    return Panel(
        title,
        stacked(parts, title, unit="ms"),
        "Parts one after the other, none hidden behind another. The slowest rank takes "
        f"{imbalance:.2f} times the mean. Collectives of a step: {made}.",
    )


def _parts(
    values: Mapping[str, list[float]],
    names: Mapping[str, str],
    scale: float,
    label: Any,
    label_scale: float,
) -> list[Part]:
    """In the order of ``names``; what is left and always there, last and without a colour."""
    found = []
    for number, (key, name) in enumerate(names.items()):
        of_ranks = np.array(values[key], dtype=float)
        plain = key in ("reserve", "overhead")
        found.append(
            Part(
                name,
                -1 if plain else number,
                scale * of_ranks,
                label(label_scale * of_ranks.max()),
            )
        )
    return found


def _busiest(plan: Json) -> list[Json]:
    return sorted(plan["tables"], key=lambda entry: -entry["seconds"])
