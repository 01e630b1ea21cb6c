"""Pictures of the report: inline SVG whose colours are CSS variables of the page.

One figure serves light mode, dark mode and print: matplotlib draws with placeholder colours, which
:func:`_svg` turns into ``var(--...)``. Text stays text, in the font of the page. One unit of a
figure is one CSS pixel.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, ScalarFormatter

from trainer import formats

WIDTH, HEIGHT = 440, 250
COLORS = 6
"""Colours of the page for runs: var(--run-0) ..."""

_INK, _MUTED, _GRID, _SURFACE = "#0a0001", "#0a0002", "#0a0003", "#0a0004"
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _GRID: "--grid", _SURFACE: "--surface"} | {
    f"#0a01{i:02x}": f"--run-{i}" for i in range(COLORS)
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "twofold",
    "font.size": 11,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.left": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.linewidth": 1,
    "xtick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "xtick.minor.size": 0,
    "ytick.labelcolor": _MUTED,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.75,
    "lines.solid_capstyle": "round",
}
_LABEL_GAP = 14
"""Pixels between the baselines of two labels."""


class Series(NamedTuple):
    """One run in a picture."""

    name: str
    color: int | None
    """Index below :data:`COLORS`; None for a reference that is no run."""
    x: np.ndarray
    y: np.ndarray
    band: np.ndarray | None = None
    """(2, n) lower and upper ends of an interval of every ``y``."""


class Estimate(NamedTuple):
    """A number with its interval."""

    name: str
    color: int | None
    """None for a number that belongs to no single run."""
    value: float
    low: float
    high: float


def intervals(estimates: Sequence[Estimate], describe: str, *, signed: bool = False) -> Markup:
    """Dot and whisker, one row each.

    Args:
        signed: these are differences: show the sign, and where zero is
    """
    rows = len(estimates)
    with _figure(height=48 + 30 * rows, left=96, right=64, bottom=34, top=6) as (figure, axes):
        axes.grid(visible=False, axis="y")
        axes.set_ylim(rows - 0.4, -0.6)
        axes.set_yticks(range(rows), labels=["" for _ in estimates])
        for row, estimate in enumerate(estimates):
            color = _run_color(estimate.color)
            axes.plot([estimate.low, estimate.high], [row, row], color=color, linewidth=2.5)
            axes.plot(estimate.value, row, "o", color=color, markersize=8, mec=_SURFACE, mew=1.5)
            _beside(axes, "left", row, _shorten(estimate.name, 15), color)
            number = formats.signed if signed else formats.decimal
            _beside(axes, "right", row, number(estimate.value), _INK)
        axes.margins(x=0.08)
        if signed:
            axes.axvline(0, color=_MUTED, linewidth=1, zorder=1)
        axes.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=3))
        return _svg(figure, describe)


def curves(
    series: Sequence[Series], describe: str, *, label_format: str = "{:.4f}", points: bool = False
) -> Markup:
    """Lines over the training samples, each with its name and last value at its end.

    Args:
        points: mark every value (few evaluations); else draw means over values drawn faintly
    """
    drawn = list(series) if points else [_thinned(run, 48) for run in series]
    with _figure() as (figure, axes):
        for run, mean in zip(series, drawn, strict=True):
            color = _run_color(run.color)
            if run.band is not None:
                axes.fill_between(run.x, *run.band, color=color, alpha=0.14, linewidth=0)
            if not points:
                faint = _thinned(run, 600)
                axes.plot(faint.x, faint.y, color=color, alpha=0.22, linewidth=1)
            axes.plot(mean.x, mean.y, color=color, marker="o" if points else None, markersize=4)
        axes.set_xlim(left=0)
        axes.set_xlabel("training samples")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        _number_ticks(axes.yaxis)
        labels = [label_format.format(run.y[-1]) for run in drawn]
        if len(drawn) > 1:
            labels = [
                f"{_shorten(run.name, 9)} {label}" for run, label in zip(drawn, labels, strict=True)
            ]
        _label_ends(axes, drawn, labels)
        return _svg(figure, describe)


def recency(learned: Sequence[Series], uniform: Sequence[Series], describe: str) -> Markup:
    """Attention weight by recency rank, against equal weights; log scales."""
    learned, uniform = ([_log_binned(run) for run in runs] for runs in (learned, uniform))
    with _figure() as (figure, axes):
        for run in uniform:
            axes.plot(run.x, run.y, color=_MUTED, linestyle=(0, (3, 3)), linewidth=1.25)
        for run in learned:
            axes.plot(run.x, run.y, color=_run_color(run.color))
        weights = np.concatenate([run.y for run in (*learned, *uniform)])
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(_short_number))
        if weights.min() > 0 and weights.max() > 30 * weights.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(_short_number))
        else:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(5))
            _number_ticks(axes.yaxis)
        axes.set_xlabel("recency rank of the event (1 = most recent)")
        axes.margins(x=0.02)
        everything = [*learned, *uniform[:1]]
        _label_ends(axes, everything, [_shorten(run.name, 12) for run in everything])
        return _svg(figure, describe)


def calibration(series: Sequence[Series], describe: str) -> Markup:
    """Observed against predicted rate, and below it what is left of the difference."""
    limit = max(max(run.x.max(), run.y.max()) for run in series)
    limit = min(1.0, 1.06 * float(limit))
    dashed = {"color": _MUTED, "linestyle": (0, (3, 3)), "linewidth": 1.25}
    with _figure(height=380, bottom=162) as (figure, axes):
        place = axes.get_position()
        below = figure.add_axes((place.x0, 42 / 380, place.width, 96 / 380), sharex=axes)
        below.grid(visible=False, axis="x")
        axes.plot([0, limit], [0, limit], **dashed)
        below.axhline(0, **dashed)
        for run in series:
            color = _run_color(run.color)
            axes.plot(run.x, run.y, "o-", color=color, markersize=4.5, linewidth=1)
            if run.band is not None:
                below.vlines(run.x, *(run.band - run.x), color=color, alpha=0.4, linewidth=2)
            below.plot(run.x, run.y - run.x, "o", color=color, markersize=4.5)
        axes.set_xlim(0, limit)
        axes.set_ylim(0, limit)
        axes.tick_params(labelbottom=False)
        below.set_xlabel("predicted click rate")
        for axis, ticks in ((axes.xaxis, 5), (axes.yaxis, 5), (below.yaxis, 4)):
            axis.set_major_locator(MaxNLocator(ticks))
            _number_ticks(axis)
        _label_ends(axes, series, [_shorten(run.name, 12) for run in series])
        for panel, row in ((axes, limit / 2), (below, 0)):
            _beside(
                panel,
                "right",
                row,
                "observed" if panel is axes else "observed\n− predicted",
                _MUTED,
            )
        return _svg(figure, describe)


@contextmanager
def _figure(
    height: int = HEIGHT, *, left: int = 48, right: int = 104, bottom: int = 42, top: int = 10
) -> Iterator[tuple[Figure, Axes]]:
    """A panel with margins in pixels; the right one is for labels."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's matplotlibrc says
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        box = (left, bottom, WIDTH - left - right, height - bottom - top)
        axes = figure.add_axes(tuple(np.divide(box, (WIDTH, height, WIDTH, height))))
        axes.grid(visible=False, axis="x")
        yield figure, axes


def _svg(figure: Figure, describe: str) -> Markup:
    """The figure as an element that takes its size, font and colours from the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every figure of the page
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r"#0a0[01][0-9a-f]{2}", lambda color: f"var({_VARIABLES[color[0]]})", svg)
    opening = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}"').format(
        WIDTH, round(figure.get_figheight() * 72), describe
    )
    namespaces = ' xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    # matplotlib has escaped every text
    return opening + Markup(namespaces + svg[svg.index(">") :])  # noqa: S704


def _run_color(index: int | None) -> str:
    return _MUTED if index is None else f"#0a01{index:02x}"


def _label_ends(axes: Axes, series: Sequence[Series], labels: Sequence[str]) -> None:
    """Names the lines at the right edge, moved apart where they would overlap."""
    if not series:
        return
    axes.autoscale_view()
    x_end = axes.get_xlim()[1]
    at = np.array([axes.transData.transform((x_end, run.y[-1]))[1] for run in series])
    moved = _spread(at, _LABEL_GAP) - at
    for run, label, shift in zip(series, labels, moved, strict=True):
        axes.annotate(
            label,
            (1, run.y[-1]),
            xycoords=("axes fraction", "data"),
            xytext=(8, shift),
            textcoords="offset points",
            va="center",
            color=_run_color(run.color),
            annotation_clip=False,
            parse_math=False,
        )


def _beside(axes: Axes, side: str, row: int, text: str, color: str) -> None:
    """A word left or right of a row."""
    axes.annotate(
        text,
        (0 if side == "left" else 1, row),
        xycoords=("axes fraction", "data"),
        xytext=(-10 if side == "left" else 10, 0),
        textcoords="offset points",
        ha="right" if side == "left" else "left",
        va="center",
        color=color,
        annotation_clip=False,
        parse_math=False,
    )


def _spread(at: np.ndarray, gap: float) -> np.ndarray:
    """Positions at least ``gap`` apart, in the same order and as near as one shift allows."""
    order = np.argsort(at, kind="stable")
    placed = at[order].astype(float)
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    placed -= (placed - at[order]).mean()
    moved = np.empty_like(placed)
    moved[order] = placed
    return moved


def _thinned(run: Series, limit: int) -> Series:
    """At most ``limit`` points, each the mean of equally many neighbours."""
    if len(run.x) <= limit:
        return run
    edges = np.arange(limit) * len(run.x) // limit
    counts = np.diff(np.append(edges, len(run.x)))
    x, y = (np.add.reduceat(values, edges) / counts for values in (run.x, run.y))
    return run._replace(x=x, y=y, band=None)


def _log_binned(run: Series, bins_per_decade: int = 16) -> Series:
    """Means over bins of equal width on a log axis: far ranks are many and each is noisy."""
    bins = np.floor(np.log10(run.x) * bins_per_decade).astype(int)
    _, index, counts = np.unique(bins, return_inverse=True, return_counts=True)
    x, y = (np.bincount(index, weights=values) / counts for values in (run.x, run.y))
    return run._replace(x=x, y=y)


def _number_ticks(axis: Axis) -> None:
    """Ticks of one precision (0.60, 0.65), thousands as 8k."""
    if max(map(abs, axis.get_data_interval())) >= 1000:
        axis.set_major_formatter(EngFormatter(sep=""))
    else:
        axis.set_major_formatter(ScalarFormatter(useOffset=False))
        axis.get_major_formatter().set_scientific(False)


def _short_number(value: float, _: int | None = None) -> str:
    """Tick label: 0.72, 0.005, 12k."""
    return EngFormatter(sep="").format_eng(value) if abs(value) >= 1000 else f"{value:.6g}"


def _shorten(text: str, length: int) -> str:
    """Names of a sweep differ at their ends: what is left out is the middle."""
    tail = (length - 1) // 2
    return text if len(text) <= length else f"{text[: length - 1 - tail]}…{text[-tail:]}"
