"""Pictures of a plan, in the manner of :mod:`trainer.report.figures`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from trainer.report.figures import (
    _INK,
    _MUTED,
    COLORS,
    _beside,
    _figure,
    _run_color,
    _shorten,
    _spread,
    _svg,
)

LABEL_GAP = 15
"""Pixels between two lines of a legend."""
APART = 64
"""More ranks stand without gaps."""
FAINT = 0.45
"""Opacity of the parts for which there is no colour of their own."""


class Part(NamedTuple):
    """A layer of all bars."""

    name: str
    number: int
    """Its colour, the same on the whole page."""
    values: np.ndarray
    """(W,) of every rank."""
    label: str
    """Of its largest value."""


class Bar(NamedTuple):
    """One row."""

    name: str
    value: float
    label: str
    color: int | None


def stacked(
    parts: Sequence[Part], describe: str, *, unit: str, limit: float | None = None
) -> Markup:
    """One bar for each rank, its parts upon each other, each named at the right.

    Args:
        parts: from the ground up; those that are nothing anywhere are left out.
        describe: for those who cannot see it.
        unit: of the values.
        limit: a line across, of what there is.
    """
    parts = [part for part in parts if part.values.any()]
    ranks = len(parts[0].values)
    with _figure(height=max(250, 70 + LABEL_GAP * len(parts)), left=44, right=168) as (
        figure,
        axes,
    ):
        bottom = np.zeros(ranks)
        middles = []
        for part in parts:
            color, alpha = _part_color(part.number), _part_alpha(part.number)
            place, style = np.arange(ranks), {"color": color, "alpha": alpha, "linewidth": 0}
            if ranks <= APART:
                axes.bar(place, part.values, width=0.8, bottom=bottom, **style)
            else:
                edges = np.arange(ranks + 1) - 0.5
                axes.stairs(bottom + part.values, edges, baseline=bottom, fill=True, **style)
            middles.append(float((bottom + part.values / 2).mean()))
            bottom = bottom + part.values
        top = max(float(bottom.max()), limit or 0.0)
        axes.set_ylim(0, 1.06 * top)
        axes.set_xlim(-0.6, ranks - 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("rank")
        axes.set_ylabel(unit)
        if limit is not None:
            axes.axhline(limit, color=_INK, linewidth=1.25, linestyle=(0, (3, 3)))
        _legend(axes, parts, middles)
        return _svg(figure, describe)


def _legend(axes, parts: Sequence[Part], middles: Sequence[float]) -> None:
    height = axes.get_window_extent().height
    scale = height / axes.get_ylim()[1]
    at = np.array(middles) * scale
    placed = _spread(at, LABEL_GAP)
    placed += max(0.0, 4 - placed.min())
    placed -= max(0.0, placed.max() - height)
    for part, y in zip(parts, placed, strict=True):
        axes.annotate(
            f"{part.name}  {part.label}",
            (1, y / height),
            xycoords="axes fraction",
            xytext=(24, 0),
            textcoords="offset points",
            va="center",
            color=_INK,
            annotation_clip=False,
            parse_math=False,
        )
        axes.annotate(
            "■",
            (1, y / height),
            xycoords="axes fraction",
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            color=_part_color(part.number),
            alpha=_part_alpha(part.number),
            annotation_clip=False,
        )


def bars(rows: Sequence[Bar], describe: str) -> Markup:
    """Horizontal, from zero, each with its name and number."""
    count = len(rows)
    with _figure(height=40 + 30 * count, left=124, right=96, bottom=28, top=6) as (figure, axes):
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_ylim(count - 0.4, -0.6)
        axes.set_yticks(range(count), labels=["" for _ in rows])
        for number, row in enumerate(rows):
            color = _run_color(row.color)
            axes.barh(number, row.value, height=0.55, color=color, linewidth=0)
            _beside(axes, "left", number, _shorten(row.name, 20), _INK)
            _beside(axes, "right", number, row.label, _INK)
        axes.set_xlim(0, 1.04 * max(max(row.value for row in rows), 1e-30))
        axes.tick_params(labelbottom=False)
        return _svg(figure, describe)


def _part_color(number: int) -> str:
    return _MUTED if number < 0 else _run_color(number % COLORS)


def _part_alpha(number: int) -> float:
    return 1.0 if number < COLORS and number >= 0 else FAINT
