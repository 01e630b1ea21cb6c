"""What attention and representation ask of the same rows: pictures and sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.report import analysis_figures as figures
from trainer.report.analysis_parts import Analysis, Section, joined, percent
from trainer.report.figures import Series
from trainer.report.sections import Panel


def gradients(analyses: Sequence[Analysis]) -> Section | None:
    """Domination and conflict over the first steps."""
    known = [a for a in analyses if a.content["gradients"]]
    notes = [
        f"{a.name} did not record its gradients: train it with --record-gradients 100."
        for a in analyses
        if not a.content["gradients"]
    ]
    if not known:
        return Section("Gradients of attention and representation", notes[0], notes[1:], [])
    panels = [_norm_panel(a) for a in known]
    cosines = [a for a in known if a.content["gradients"]["conflicting_steps"] is not None]
    if cosines:
        panels += [_cosine_panel(cosines), _histogram_panel(cosines)]
    about = (
        "Of the first steps: the gradient that comes to a category's row through attention, and "
        "the one that comes through representation, summed over all lookups of the step. In a "
        "shared table the row gets their sum; in decoupled ones each goes to a row of its own, and "
        "the numbers say what the two tasks would do to each other."
    )
    return Section("Gradients of attention and representation", about, notes, [panels])


def _norm_panel(analysis: Analysis) -> Panel:
    content = analysis.content["gradients"]
    steps = np.arange(1, content["steps"] + 1)
    attention, representation = (
        np.array(content[f"{side}_norm"]) for side in ("attention", "representation")
    )
    svg = figures.lines(
        [Series("attention", analysis.color, steps, attention)],
        f"{analysis.name}: mean norms of gradients",
        x_label="training steps",
        from_zero=True,
        steps=True,
        dashed=[Series("representation", analysis.color, steps, representation)],
    )
    ratio = content["domination"]
    if ratio is None:
        verdict = "attention gets no gradient."
    elif ratio > 1.5:
        verdict = f"representation dominates: its gradient is {ratio:.1f} times as long on average."
    elif ratio < 1 / 1.5:
        verdict = f"attention dominates: its gradient is {1 / ratio:.1f} times as long on average."
    else:
        verdict = f"neither dominates: the ratio of the two is {ratio:.2f}."
    return Panel(f"{analysis.name}: domination", svg, f"{analysis.name}: {verdict}")


def _cosine_panel(analyses: Sequence[Analysis]) -> Panel:
    series, sentences = [], []
    for a in analyses:
        content = a.content["gradients"]
        mean = np.array(content["mean_cosine"], dtype=float)
        known = np.isfinite(mean)
        series.append(Series(a.name, a.color, np.flatnonzero(known) + 1.0, mean[known]))
        share = content["conflicting_steps"]
        verdict = "conflict" if share > 0.5 else "agreement"
        sentences.append(
            f"{a.name}: negative in {percent(share)} of the steps and in "
            f"{percent(content['conflicting_pairs'])} of all pairs of row and step: more often "
            f"{verdict}."
        )
    svg = figures.lines(
        series, "Mean cosine by step", x_label="training steps", steps=True, zero_line=True
    )
    return Panel("Conflict: mean cosine of the two gradients", svg, joined(sentences))


def _histogram_panel(analyses: Sequence[Analysis]) -> Panel:
    series, sentences = [], []
    for a in analyses:
        content = a.content["gradients"]
        shares = np.array(content["histogram"])
        series.append(Series(a.name, a.color, np.arange(len(shares)) / len(shares), shares))
        sentences.append(
            f"{a.name}: of {content['rows']:,} categories {percent(content['conflicting_rows'])} "
            "conflict in more than half of their steps."
        )
    svg = figures.histogram(
        series, "Categories by share of conflicting steps", x_label="share of conflicting steps"
    )
    return Panel("Conflict by category", svg, joined(sentences))
