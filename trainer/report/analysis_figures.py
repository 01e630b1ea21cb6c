"""Pictures of an analysis, in the manner of :mod:`trainer.report.figures`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from trainer.report.figures import (
    _GRID,
    _INK,
    _MUTED,
    _SURFACE,
    WIDTH,
    Series,
    _beside,
    _figure,
    _label_ends,
    _number_ticks,
    _run_color,
    _short_number,
    _shorten,
    _svg,
)

DASHED = (0, (3, 3))
NAME_LENGTH = 15
ROW_NAME_LENGTH = 18


def lines(
    series: Sequence[Series],
    describe: str,
    *,
    x_label: str,
    log_x: bool = False,
    from_zero: bool = False,
    dashed: Sequence[Series] = (),
    steps: bool = False,
    zero_line: bool = False,
) -> Markup:
    """Lines named at their ends.

    Args:
        series: one a run.
        describe: for those who cannot see it.
        x_label: under the axis.
        log_x: of the x axis.
        from_zero: the y axis begins at 0.
        dashed: references, named too.
        steps: many values: no dots.
        zero_line: marks y = 0.
    """
    with _figure() as (figure, axes):
        for run in series:
            color = _run_color(run.color)
            if run.band is not None:
                axes.fill_between(run.x, *run.band, color=color, alpha=0.14, linewidth=0)
            marker = None if steps else "o"
            axes.plot(run.x, run.y, color=color, marker=marker, markersize=4)
        for run in dashed:
            axes.plot(run.x, run.y, color=_run_color(run.color), linestyle=DASHED, linewidth=1.25)
        if zero_line:
            axes.axhline(0, color=_MUTED, linewidth=1, zorder=1)
        if log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(_short_number))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if from_zero:
            axes.set_ylim(0, 1.05 * max(axes.dataLim.y1, 1e-12))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        _number_ticks(axes.yaxis)
        axes.set_xlabel(x_label)
        everything = [*series, *dashed]
        _label_ends(axes, everything, [_shorten(run.name, NAME_LENGTH) for run in everything])
        return _svg(figure, describe)


def heat_map(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    marked: int,
    color: int | None,
    describe: str,
) -> Markup:
    """Cells by category and recency rank, as opaque as their value between the least and the most.

    Args:
        values: (rows, columns); NaN is left open.
        rows: categories.
        columns: recency ranks, "3–5"; the first one is written.
        marked: the row of the candidate's own category.
        color: of the run; None of no run.
        describe: for those who cannot see it.
    """
    height = 19
    with _figure(height=48 + height * len(rows), left=150, right=8, bottom=42, top=4) as (
        figure,
        axes,
    ):
        least, most = np.nanmin(values), np.nanmax(values)
        shares = (values - least) / max(most - least, 1e-300)
        for (row, rank), share in np.ndenumerate(shares):
            known = np.isfinite(share)
            axes.add_patch(
                Rectangle(
                    (rank + 0.52, row - 0.48),
                    0.96,
                    0.96,
                    facecolor=_run_color(color) if known else "none",
                    alpha=0.05 + 0.95 * float(share) if known else None,
                    edgecolor="none" if known else _GRID,
                    linewidth=0 if known else 0.7,
                )
            )
        axes.set_xlim(0.5, len(columns) + 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False)
        axes.set_yticks(range(len(rows)), labels=["" for _ in rows])
        axes.set_xticks(range(1, len(columns) + 1), labels=[c.split("–")[0] for c in columns])
        axes.set_xlabel("recency rank from (1 = most recent)")
        for row, name in enumerate(rows):
            ink = _INK if row == marked else _MUTED
            _beside(axes, "left", row, _shorten(name, ROW_NAME_LENGTH), ink)
        return _svg(figure, describe)


def square_map(
    values: np.ndarray, names: Sequence[str], color: int | None, describe: str
) -> Markup:
    """Cells by two of the same things, as opaque as their value between 0 and the most.

    Args:
        values: (n, n), symmetric: what is above the diagonal is not drawn.
        names: n of them.
        color: of the run; None of no run.
        describe: for those who cannot see it.
    """
    left, below = 144, 104  # for names
    size = len(names) * min(22, (WIDTH - left - 8) / len(names))
    with _figure(
        height=round(size) + below + 8,
        left=left,
        right=round(WIDTH - left - size),
        bottom=below,
        top=8,
    ) as (figure, axes):
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(visible=False)
        for row, column in zip(*np.tril_indices(len(names)), strict=True):
            axes.add_patch(
                Rectangle(
                    (column - 0.47, row - 0.47),
                    0.94,
                    0.94,
                    facecolor=_run_color(color),
                    alpha=0.03 + 0.97 * float(values[row, column] / max(values.max(), 1e-300)),
                    linewidth=0,
                )
            )
        axes.set_yticks(range(len(names)), labels=["" for _ in names])
        short = [_shorten(name, NAME_LENGTH) for name in names]
        axes.set_xticks(range(len(names)), labels=short, rotation=90)
        for row, name in enumerate(names):
            _beside(axes, "left", row, _shorten(name, ROW_NAME_LENGTH), _MUTED)
        return _svg(figure, describe)


def bars(names: Sequence[str], series: Sequence[Series], describe: str) -> Markup:
    """A row for each name, a bar from 0 with its interval for each run.

    Args:
        names: of the rows.
        series: ``x`` the values, ``band`` their intervals; NaN where there is none.
        describe: for those who cannot see it.
    """
    row_height = 8 + 11 * len(series)
    height = 52 + row_height * len(names)
    right = 92 if len(series) > 1 else 24
    with _figure(height=height, left=150, right=right, bottom=34, top=8) as (figure, axes):
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), labels=["" for _ in names])
        thick = 9 / row_height
        for number, run in enumerate(series):
            at = np.arange(len(names)) + (number - (len(series) - 1) / 2) * 11 / row_height
            axes.barh(at, run.x, thick, color=_run_color(run.color), alpha=0.45, linewidth=0)
            if run.band is not None:
                axes.hlines(at, *run.band, color=_run_color(run.color), linewidth=2)
        axes.axvline(0, color=_MUTED, linewidth=1)
        for row, name in enumerate(names):
            _beside(axes, "left", row, _shorten(name, ROW_NAME_LENGTH), _MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        _number_ticks(axes.xaxis)
        if len(series) > 1:
            _legend(axes, series)
        return _svg(figure, describe)


def histogram(series: Sequence[Series], describe: str, *, x_label: str) -> Markup:
    """Shares in ten equal bins from 0 to 1, runs side by side."""
    with _figure() as (figure, axes):
        width = 0.09 / len(series)
        for number, run in enumerate(series):
            left = run.x + 0.005 + number * width
            axes.bar(left, run.y, width, align="edge", color=_run_color(run.color), linewidth=0)
        axes.axvline(0.5, color=_MUTED, linewidth=1, linestyle=DASHED)
        axes.set_xlim(0, 1)
        axes.set_xlabel(x_label)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        _number_ticks(axes.yaxis)
        _legend(axes, series)
        return _svg(figure, describe)


def rows(
    names: Sequence[str], series: Sequence[Series], describe: str, *, reference: Sequence[Series]
) -> Markup:
    """A row for each part, a dot with its interval for each run.

    Args:
        names: of the parts.
        series: ``x`` the values, ``band`` their intervals, NaN where there is none.
        describe: for those who cannot see it.
        reference: vertical lines: the value of all parts together.
    """
    row_height = 14 + 11 * len(series)
    height = 52 + row_height * len(names)
    with _figure(height=height, left=150, right=92, bottom=34, top=8) as (figure, axes):
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), labels=["" for _ in names])
        for run in reference:
            axes.axvline(
                float(run.x[0]), color=_run_color(run.color), linestyle=DASHED, linewidth=1.25
            )
        gap = 11 / row_height
        for number, run in enumerate(series):
            color = _run_color(run.color)
            shift = (number - (len(series) - 1) / 2) * gap
            for row, value in enumerate(run.x):
                if not np.isfinite(value):
                    continue
                at = row + shift
                if run.band is not None and np.isfinite(run.band[:, row]).all():
                    axes.plot(run.band[:, row], [at, at], color=color, linewidth=2)
                axes.plot(value, at, "o", color=color, markersize=6, mec=_SURFACE, mew=1)
        for row, name in enumerate(names):
            _beside(axes, "left", row, _shorten(name, ROW_NAME_LENGTH), _MUTED)
        axes.margins(x=0.06)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        _number_ticks(axes.xaxis)
        _legend(axes, series)
        return _svg(figure, describe)


def _legend(axes: Axes, series: Sequence[Series]) -> None:
    """Names in the right margin, from the top."""
    for number, run in enumerate(series):
        axes.annotate(
            _shorten(run.name, NAME_LENGTH),
            (1, 1),
            xycoords="axes fraction",
            xytext=(10, -10 - 15 * number),
            textcoords="offset points",
            color=_run_color(run.color),
            annotation_clip=False,
            parse_math=False,
        )
