"""Pictures of a sweep, drawn with the means of the run report (trainer/report/figures.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from trainer import formats
from trainer.metrics import Interval
from trainer.report import figures
from trainer.report.figures import Series

ROW_PIXELS = 26
LABEL = 26
"""Letters of a name that are shown."""


class Dot(NamedTuple):
    """A mean over seeds, and how sure it is."""

    name: str
    color: int | None
    value: float
    seeds: np.ndarray
    """(seeds,) what it is the mean of."""
    by_request: Interval | None = None
    by_user: Interval | None = None


def dots(rows: Sequence[Dot], describe: str, *, signed: bool) -> Markup:
    """One row each: a dot, its seeds as ticks, intervals by requests (thick) and users (thin)."""
    height = 44 + ROW_PIXELS * len(rows)
    with figures._figure(height, left=168, right=64, bottom=30, top=6) as (figure, axes):
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), labels=["" for _ in rows])
        for y, row in enumerate(rows):
            color = figures._run_color(row.color)
            for bounds, width in ((row.by_user, 1.25), (row.by_request, 3.5)):
                if bounds is not None:
                    axes.plot(bounds, [y, y], color=color, linewidth=width)
            axes.plot(row.seeds, np.full(len(row.seeds), y), "|", color=color, markersize=9)
            axes.plot(row.value, y, "o", color=color, markersize=8, mec=figures._SURFACE, mew=1.5)
            figures._beside(axes, "left", y, figures._shorten(row.name, LABEL), color)
            number = formats.signed if signed else formats.decimal
            figures._beside(axes, "right", y, number(row.value), figures._INK)
        axes.margins(x=0.08)
        if signed:
            axes.axvline(0, color=figures._MUTED, linewidth=1, zorder=1)
        axes.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=3))
        return figures._svg(figure, describe)


def lines(
    series: Sequence[Series], axis: str, describe: str, *, logarithmic: bool = False
) -> Markup:
    """A metric over a numeric axis, one line per model, bands of one standard deviation.

    Args:
        logarithmic: the metric's axis; the other one is where its ticks lie far apart.
    """
    longest = max(len(run.name) for run in series)
    ticks = sorted({float(x) for run in series for x in run.x})
    with figures._figure(right=40 + 6 * min(longest, LABEL)) as (figure, axes):
        for run in series:
            color = figures._run_color(run.color)
            if run.band is not None:
                axes.fill_between(run.x, *run.band, color=color, alpha=0.14, linewidth=0)
            axes.plot(run.x, run.y, "o-", color=color, markersize=4)
        log = ticks[0] > 0 and ticks[-1] > 8 * ticks[0]
        if log:
            axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(_apart(ticks, log)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(figures._short_number))
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(figures._short_number))
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
            figures._number_ticks(axes.yaxis)
        axes.set_xlabel(axis)
        axes.margins(x=0.03)
        labels = [figures._shorten(run.name, LABEL) for run in series]
        figures._label_ends(axes, series, labels)
        return figures._svg(figure, describe)


def _apart(ticks: Sequence[float], log: bool) -> list[float]:
    """Those whose labels do not touch, of ascending ticks."""
    place = np.log(ticks) if log else np.array(ticks)
    kept: list[int] = []
    for index in range(len(ticks)):
        if not kept or place[index] - place[kept[-1]] > 0.08 * (place[-1] - place[0]):
            kept.append(index)
    return [ticks[index] for index in kept]
