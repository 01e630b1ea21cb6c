"""What comes out of a model: pictures, and a sentence each, made from the numbers.

A function returns None where no analysis holds what its section needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trainer.report import analysis_figures as figures
from trainer.report.analysis_parts import Analysis, Json, Section, joined
from trainer.report.figures import Series
from trainer.report.sections import Panel


def discriminability(analyses: Sequence[Analysis]) -> Section | None:
    """Mutual information of clusters and labels."""
    panels = []
    for key, title in (("interest", "The interest h alone"), ("input", "The head's whole input")):
        known = [a for a in analyses if a.content["discriminability"][key]["clusters"]]
        if not known:
            continue
        series, chance = [], []
        for a in known:
            content = a.content["discriminability"][key]
            x = np.array(content["clusters"], dtype=float)
            band = np.array(content["bits_held_out_interval"], dtype=float).T
            y = np.array(content["bits_held_out"], dtype=float)
            series.append(Series(a.name, a.color, x, y, band))
            shuffled = np.array(content["bits_of_shuffled_labels"], dtype=float)
            chance.append(Series("shuffled labels", None, x, shuffled))
        svg = figures.lines(
            series,
            f"Bits about the click, {title}",
            x_label="clusters",
            log_x=True,
            from_zero=True,
            dashed=chance[:1],
        )
        panels.append(Panel(title, svg, joined([_bits_sentence(a, key) for a in known])))
    if not panels:
        return None
    about = (
        "Representations of half of the candidates are put into clusters by k-means; how many bits "
        "does the cluster of another candidate say about its click? Mean and range of five starts "
        "of k-means. Shuffled labels show what so many clusters seem to say by chance."
    )
    return Section("Discriminability", about, [], [panels])


def _bits_sentence(analysis: Analysis, key: str) -> str:
    content = analysis.content["discriminability"][key]
    best = int(np.argmax(content["bits_held_out"]))
    found, chance = content["bits_held_out"][best], content["bits_of_shuffled_labels"][best]
    return (
        f"{analysis.name}: at most {found:.4f} bits, with {content['clusters'][best]} clusters, of "
        f"which {chance:.4f} are chance; {content['bits_held_out'][0]:.4f} with "
        f"{content['clusters'][0]}."
    )


def parts(analyses: Sequence[Analysis]) -> Section | None:
    """AUC of parts of the split."""
    panels = []
    for name, first in analyses[0].content["parts"].items():
        labels = [entry["part"] for entry in first]
        same = [
            a for a in analyses if [e["part"] for e in a.content["parts"].get(name, ())] == labels
        ]
        series = []
        for a in same:
            entries = a.content["parts"][name]
            auc = np.array([_number(entry["auc"]) for entry in entries])
            band = np.array([[_number(x) for x in entry["auc_interval"]] for entry in entries]).T
            series.append(Series(a.name, a.color, auc, auc, band))
        svg = figures.rows(labels, series, f"AUC by {name}", reference=[])
        sentences = [_parts_sentence(a.name, a.content["parts"][name]) for a in same]
        sentences += [_lead_sentence(same[0], other, name) for other in same[1:]]
        panels.append(Panel(f"AUC by {name}", svg, joined(sentences)))
    about = (
        "AUC within parts of the split, with 95 % intervals over requests. Parts differ in how "
        "hard their negatives are: compare runs within a part rather than parts with each other."
    )
    return Section("Where the model is right", about, [], [panels]) if panels else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _parts_sentence(name: str, entries: list[Json]) -> str:
    known = [entry for entry in entries if entry["auc"] is not None]
    if not known:
        return ""
    best, worst = (pick(known, key=lambda entry: entry["auc"]) for pick in (max, min))
    apart = (best["auc_interval"][0] or 0) > (worst["auc_interval"][1] or 1)
    return (
        f"{name}: best in {best['part']} ({best['auc']:.3f}), worst in {worst['part']} "
        f"({worst['auc']:.3f}, {worst['samples']:,} candidates); their difference is "
        f"{'more' if apart else 'no more'} than chance."
    )


def _lead_sentence(first: Analysis, other: Analysis, name: str) -> str:
    pairs = zip(first.content["parts"][name], other.content["parts"][name], strict=True)
    leads = [
        (a["auc"] - b["auc"], a["part"])
        for a, b in pairs
        if a["auc"] is not None and b["auc"] is not None
    ]
    if not leads:
        return ""
    most = max(leads)
    ahead = sum(lead > 0 for lead, _ in leads)
    return (
        f"{first.name} is ahead of {other.name} in {ahead} of {len(leads)} parts, most in "
        f"{most[1]} ({most[0]:+.4f})."
    )


def lags(analyses: Sequence[Analysis]) -> Section | None:
    """Attention by age of the event."""
    known = [a for a in analyses if a.content["lags"]]
    if not known:
        return None
    series = []
    for a in known:
        content = a.content["lags"]
        learned, uniform = np.array(content["learned"]), np.array(content["uniform"])
        seen = uniform > 1e-4
        days = np.array(content["from_days"])[seen]
        series.append(
            Series(a.name, a.color, np.maximum(days, 1 / 48), learned[seen] / uniform[seen])
        )
    even = Series("as if equal", None, series[0].x, np.ones(len(series[0].x)))
    svg = figures.lines(
        series,
        "Attention by age of the event",
        x_label="age of the event from ... days",
        log_x=True,
        from_zero=True,
        dashed=[even],
    )
    about = (
        "Share of the attention that events of an age get, over the share that they would get if "
        "all events of a history weighed the same."
    )
    caption = joined([_lag_sentence(a, curve) for a, curve in zip(known, series, strict=True)])
    return Section("Attention by lag", about, [], [[Panel("Attention by lag", svg, caption)]])


def _lag_sentence(analysis: Analysis, curve: Series) -> str:
    newest, oldest = float(curve.y[0]), float(curve.y[-1])
    if newest > 1.1 * oldest:
        verdict = "attention fades with age"
    elif oldest > 1.1 * newest:
        verdict = "attention grows with age"
    else:
        verdict = "age hardly matters"
    top = int(np.argmax(curve.y))
    most = "the newest" if top == 0 else f"those from {curve.x[top]:.2g} days on"
    return (
        f"{analysis.name}: the newest events get {newest:.2f} times, the oldest {oldest:.2f} times "
        f"their equal share, most ({curve.y[top]:.2f}) {most}: {verdict}."
    )


def norms(analyses: Sequence[Analysis]) -> Section | None:
    """Lengths of rows by frequency."""
    panels = []
    for field in ("item", "category"):
        series, sentences = [], []
        for a in analyses:
            for table, content in a.content["norms"].items():
                attends = table.startswith(("attention", "shared")) and table.endswith(f"_{field}")
                if not (attends and content["deciles"]):
                    continue
                y = np.array([part["mean"] for part in content["deciles"]])
                spread = np.array([part["std"] for part in content["deciles"]])
                x = np.arange(1, len(y) + 1)
                name = a.name if len(analyses) > 1 else table
                series.append(Series(name, a.color, x, y, np.stack([y - spread, y + spread])))
                sentences.append(
                    f"{a.name}, {table}: {y[-1]:.3g} in the most frequent tenth, "
                    f"{y[-1] / max(y[0], 1e-12):.1f} times the rarest; over all rows "
                    f"{content['mean']:.3g} ± {content['std']:.2g}."
                )
        if series:
            svg = figures.lines(
                series, f"Norms of {field} rows", x_label="tenth by frequency (10 = most)"
            )
            panels.append(Panel(f"Attention rows of the field {field}", svg, joined(sentences)))
    about = (
        "Mean length of the rows that attention reads, by how often the log names them; band: "
        "standard deviation. Where the search is by dot product, longer rows win it."
    )
    return Section("Length of attention rows", about, [], [panels]) if panels else None
