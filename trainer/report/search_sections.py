"""What search and attention follow: pictures, and a sentence each, made from the numbers.

A function returns None where no analysis holds what its section needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trainer.report import analysis_figures as figures
from trainer.report.analysis_parts import Analysis, Json, Section, joined, percent
from trainer.report.figures import Series
from trainer.report.sections import Panel

MAPS = 2
"""Target categories that are drawn."""


def search(analyses: Sequence[Analysis]) -> Section | None:
    """What the search found before and in training."""
    panels = []
    for field in ("item", "category"):
        curves = [_curve(a, f"same_{field}_recall") for a in analyses]
        curves = [curve for curve in curves if len(curve.x)]
        if not curves:
            continue
        panels.append(
            Panel(
                f"Events of the candidate's {field} that the search finds",
                figures.lines(
                    curves,
                    f"Recall of same-{field} events by step",
                    x_label="training steps",
                    from_zero=True,
                ),
                joined([_recall_sentence(a, field) for a in analyses]),
            )
        )
    curves = [curve for a in analyses if len((curve := _curve(a, "attention_entropy")).x)]
    if curves:
        panels.append(
            Panel(
                "Entropy of the attention weights",
                figures.lines(
                    curves,
                    "Attention entropy by step",
                    x_label="training steps",
                    from_zero=True,
                    dashed=[_widest(analyses, curves)],
                ),
                joined([_entropy_sentence(a) for a in analyses]),
            )
        )
    if not panels:
        return None
    about = (
        "On the validation requests at each evaluation, and before the first step on the first "
        "few hundred of them. Recall: of the events of a history that have the candidate's item "
        "or category, the share among the K chosen ones, of at most K."
    )
    return Section("What the search finds", about, [], [panels])


def _curve(analysis: Analysis, key: str) -> Series:
    points = [(p["step"], p[key]) for p in analysis.content["training"] if p.get(key) is not None]
    x, y = np.array(points, dtype=float).reshape(-1, 2).T
    return Series(analysis.name, analysis.color, x, y)


def _widest(analyses: Sequence[Analysis], curves: Sequence[Series]) -> Series:
    """The entropy of K equal weights, over the steps of all curves."""
    steps = np.concatenate([curve.x for curve in curves])
    entropy = math.log(max(a.content["top_k"] for a in analyses))
    return Series("K equal", None, np.array([steps.min(), steps.max()]), np.full(2, entropy))


def _recall_sentence(analysis: Analysis, field: str) -> str:
    curve = _curve(analysis, f"same_{field}_recall")
    if not len(curve.x):
        return ""
    last = f"{percent(curve.y[-1], 1)} at the end"
    if curve.x[0] > 0:
        return f"{analysis.name}: {last}."
    verdict = (
        "its start alone points the search at them"
        if curve.y[0] > 0.8
        else "its start does not point the search at them"
        if curve.y[0] < 0.5
        else "its start finds a part of them"
    )
    change = curve.y[-1] - curve.y[0]
    learned = (
        "training adds to it"
        if change > 0.02
        else "training gives some of it up for other events"
        if change < -0.02
        else "training leaves it so"
    )
    return (
        f"{analysis.name}: {percent(curve.y[0], 1)} before the first step ({verdict}), {last} "
        f"({learned})."
    )


def _entropy_sentence(analysis: Analysis) -> str:
    curve = _curve(analysis, "attention_entropy")
    if not len(curve.x):
        return ""
    first, last = math.exp(curve.y[0]), math.exp(curve.y[-1])
    change = (
        "sharper than"
        if last < 0.95 * first
        else "wider than"
        if last > 1.05 * first
        else "about as"
    )
    return (
        f"{analysis.name}: weights as spread as over {last:.1f} equal events of "
        f"{analysis.content['top_k']}, {change} at first ({first:.1f})."
    )


def maps(analyses: Sequence[Analysis]) -> Section | None:
    """Learned attention against mutual information."""
    first = analyses[0].content["attention"]
    if not first["maps"]:
        return None
    groups = []
    for drawn in first["maps"][:MAPS]:
        learned = [panel for a in analyses for panel in _learned_panels(a, drawn["target"])]
        groups.append([_truth_panel(first, drawn), *learned])
    notes = [sentence for a in analyses if (sentence := _correlation_sentence(a))]
    about = (
        "For candidates of one category: how much the category of the event at a recency rank says "
        "about a click (mutual information over the training requests), and how much attention "
        "such an event gets. Each map from its least value, pale, to its greatest, full. Open "
        "cells have too few events."
    )
    return Section("Learned attention against mutual information", about, notes, groups)


def _array(cells: list[list[float | None]]) -> np.ndarray:
    return np.array(cells, dtype=float)


def _truth_panel(attention: Json, drawn: Json) -> Panel:
    values, names = _array(drawn["information"]), attention["categories"]
    target = drawn["target"]
    title = f"“{names[target]}”: mutual information"
    if not np.isfinite(values).any():
        return Panel(title, "", "No cell has enough events.")
    row, rank = np.unravel_index(np.nanargmax(values), values.shape)
    own = "its own category" if row == target else f"“{names[row]}”"
    share = np.nansum(values[target]) / np.nansum(values)
    svg = figures.heat_map(
        values, names, attention["ranks"], target, None, f"Mutual information for {names[target]}"
    )
    caption = (
        f"{drawn['candidates']:,} training candidates. What says most about a click is {own} at "
        f"rank {attention['ranks'][rank]}, {values[row, rank]:.4f} bits; its own category holds "
        f"{percent(share)} of all information in the map."
    )
    return Panel(title, svg, caption)


LEARNED = {
    "measured": (
        "attention given",
        "Mean weight of such an event, search and items included",
    ),
    "tables": (
        "category and recency alone",
        "Softmax over the map of the score without items, as the paper draws it",
    ),
}


def _learned_panels(analysis: Analysis, target: int) -> list[Panel]:
    attention = analysis.content["attention"]
    drawn = next((entry for entry in attention["maps"] if entry["target"] == target), {})
    names, panels = attention["categories"], []
    for key, (title, what) in LEARNED.items():
        values = _array(drawn[key]["attention"]) if key in drawn else np.full((1, 1), np.nan)
        if not np.isfinite(values).any():
            continue
        share = np.nansum(values[target]) / np.nansum(values)
        pearson = drawn[key]["pearson"]
        agreement = "" if pearson is None else f"; correlation with the information {pearson:.2f}"
        svg = figures.heat_map(
            values,
            names,
            attention["ranks"],
            target,
            analysis.color,
            f"{analysis.name}: {title} for {names[target]}",
        )
        caption = f"{what}: its own category gets {percent(share)}{agreement}."
        panels.append(Panel(f"{analysis.name}: {title}", svg, caption))
    return panels


def _correlation_sentence(analysis: Analysis) -> str:
    drawn = analysis.content["attention"]["maps"]

    def mean(key: str, what: str) -> float | None:
        values = [entry[key][what] for entry in drawn if key in entry]
        values = [value for value in values if value is not None]
        return float(np.mean(values)) if values else None

    pearson, spearman = mean("measured", "pearson"), mean("measured", "spearman")
    of_tables = mean("tables", "pearson")
    if pearson is None or spearman is None:
        return ""
    strength = "closely" if pearson > 0.8 else "roughly" if pearson > 0.5 else "hardly"
    sentence = (
        f"{analysis.name}: over {len(drawn)} target categories the attention given follows the "
        f"information {strength}: mean correlation {pearson:.2f}, of ranks {spearman:.2f}"
    )
    if of_tables is not None:
        sentence += f"; by category and recency alone {of_tables:.2f}"
    if spearman < 0.5 < pearson:
        sentence += ". It finds the few cells that matter most, and not the order of the others"
    return f"{sentence}."


def quality(analyses: Sequence[Analysis]) -> Section | None:
    """NDCG and recall against the order of the mutual information."""
    judged = [a for a in analyses if a.content["search_quality"]["judged"]["candidates"]]
    if not judged:
        return None
    content = judged[0].content["search_quality"]
    k = np.array(content["k"], dtype=float)
    panels = []
    for key, title in (("ndcg", "NDCG@k"), ("recall", "Recall of the best K")):
        series = [
            Series(a.name, a.color, k, _order(a, "score", key))
            for a in judged
            if a.content["search_quality"]["k"] == content["k"]
        ]
        references = [
            Series(name, None, k, _order(judged[0], name, key))
            for name in ("most recent", "random")
        ]
        svg = figures.lines(
            series, f"{title} of the search", x_label="k", from_zero=True, dashed=references
        )
        panels.append(Panel(title, svg, joined([_quality_sentence(a, key) for a in judged])))
    partial = [a for a in judged if "category and recency" in _orders(a)]
    if partial:
        panels.append(_published_panel(partial, k))
    notes = [_agreement_sentence(a) for a in analyses]
    share = content["judged"]["candidates"] / max(content["candidates"], 1)
    about = (
        "How near the order in which a model ranks a history comes to that of the mutual "
        "information. Judged: candidates of the most frequent categories with 700 training "
        f"candidates or more ({content['judged']['candidates']:,} of {content['candidates']:,}, "
        f"{percent(share)}); where an event's rank has too few counts, ranks around it are taken "
        "together. The ideal is that of length k at each k."
    )
    return Section(
        "The search against mutual information", about, [n for n in notes if n], [panels]
    )


def _orders(analysis: Analysis, judge: str = "judged") -> Json:
    return analysis.content["search_quality"][judge]["orders"]


def _order(analysis: Analysis, order: str, key: str) -> np.ndarray:
    return np.array(_orders(analysis)[order][key], dtype=float)


def _quality_sentence(analysis: Analysis, key: str) -> str:
    score, recent, chance = (
        float(_order(analysis, name, key)[-1]) for name in ("score", "most recent", "random")
    )
    last = analysis.content["search_quality"]["k"][-1]
    gained = (score - chance) / max(1 - chance, 1e-9)
    against = "above" if score > recent else "below"
    interval = _orders(analysis)["score"].get("ndcg_interval") if key == "ndcg" else None
    over_users = f" ({interval[0]:.3f} to {interval[1]:.3f} over users)" if interval else ""
    return (
        f"{analysis.name} at k = {last}: {score:.3f}{over_users}, {percent(gained)} of the way "
        f"from chance ({chance:.3f}) to the best order, and {against} simply taking the latest "
        f"({recent:.3f})."
    )


def _published_panel(analyses: Sequence[Analysis], k: np.ndarray) -> Panel:
    key = "category and recency"
    series = [Series(a.name, a.color, k, _order(a, key, "official")) for a in analyses]
    svg = figures.lines(series, "Published measure", x_label="k", from_zero=True)
    parts = []
    for a in analyses:
        alone, whole = (float(_order(a, name, "ndcg")[-1]) for name in (key, "score"))
        items = "adds" if whole > alone else "costs"
        rows = a.content["search_quality"]["published"]["candidates"]
        parts.append(
            f"{a.name}: {alone:.3f} at the end, where the item part {items} "
            f"{abs(whole - alone):.3f}; {rows:,} candidates pass the published filter."
        )
    return Panel(
        "As published: by category and recency alone",
        svg,
        joined(["DCG@k over the best DCG@K, so that only the last point is an NDCG.", *parts]),
    )


def _agreement_sentence(analysis: Analysis) -> str:
    content = analysis.content["search_quality"]
    share = content["agreement_with_exact"]
    if share is None:
        return f"{analysis.name} chooses no single events: there is no agreement to measure."
    if content["exact_search"]:
        return (
            f"{analysis.name} searches exactly: what it hands to attention is "
            f"{percent(share, 1)} of the K highest scores."
        )
    return (
        f"{analysis.name}'s search hands {percent(share, 1)} of the K highest scores to attention; "
        f"the other {percent(1 - share, 1)} are lost to its short cut."
    )
