"""The report of one run, or of several side by side: one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2

from data.errors import InputError
from trainer import formats
from trainer.metrics import Difference
from trainer.report import sections
from trainer.report.figures import COLORS
from trainer.report.sections import Json, Run
from trainer.report.templates import environment


def write_report(
    path: Path,
    runs: Sequence[Path],
    title: str,
    *,
    differences: Mapping[str, Difference] | None = None,
) -> None:
    """Writes one self-contained page: no scripts, no links; light, dark and print.

    Args:
        path: the HTML file; replaced only when the new one is complete
        runs: run folders (docs/architecture.md); only ``config.json`` must be there, a section
            whose file is missing is left out
        title: heading of the page
        differences: name, e.g. "dare − twin" -> :func:`trainer.metrics.paired_difference`

    Raises:
        InputError: not a run folder, or a file in it that cannot be read.
    """
    loaded = load_runs(runs)
    html = _template().render(
        title=title,
        runs=loaded,
        headline=sections.headline(loaded),
        results=sections.results(loaded, differences or {}),
        data=sections.data(loaded),
        training=sections.training(loaded),
        plans=sections.plans(loaded),
        lookups=sections.lookups(loaded),
        attention=sections.attention(loaded),
        calibration=sections.calibration(loaded),
        provenance=[sections.provenance(run) for run in loaded],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.partial")
    unfinished.write_text(html, encoding="utf-8")
    unfinished.replace(path)


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads run folders. One run is called by its model, several are called by their folders."""
    runs = []
    for index, (folder, name) in enumerate(zip(folders, _folder_names(folders), strict=True)):
        summary = _read(folder / "summary.json")
        config = _read(folder / "config.json")
        if not config:
            raise InputError(
                f"{folder} is no run folder: it has no config.json. "
                "`twofold train EXPERIMENT --data STORE --out RUN` makes one."
            )
        runs.append(
            Run(
                name=str(summary.get("model") or name) if len(folders) == 1 else name,
                color=index % COLORS,
                config=config,
                plan=_read(folder / "plan.json"),
                metrics=_read_lines(folder / "metrics.jsonl"),
                analysis=_read(folder / "analysis.json"),
                summary=summary,
            )
        )
    return runs


def _folder_names(folders: Sequence[Path]) -> list[str]:
    """Last part of each path, or the last two where that does not tell them apart."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) == len(names):
        return names
    return ["/".join(folder.resolve().parts[-2:]) for folder in folders]


def _read(path: Path) -> Json:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}). Restore it, or train again.") from error


def _read_lines(path: Path) -> list[Json]:
    """Rows of a file that may still be growing: a last line cut short is left out."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise InputError(f"{path}, line {number}, is not JSON ({error}).") from error
    return rows


def _unbroken(text: Callable[..., str], *args: Any) -> str:
    """A number that stays on one line with its unit."""
    return text(*args).replace(" ", "\N{NO-BREAK SPACE}")


def _template() -> jinja2.Template:
    pages = environment()
    for name in ("count", "decimal", "interval", "size", "duration"):
        pages.filters[name] = partial(_unbroken, getattr(formats, name))
    pages.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    return pages.get_template("report.html.j2")
