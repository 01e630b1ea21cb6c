"""The report of an analysis, alone or beside others: one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from data.errors import InputError
from trainer.report import (
    field_sections,
    gradient_sections,
    outcome_sections,
    precision_sections,
    search_sections,
)
from trainer.report.analysis_parts import Analysis
from trainer.report.figures import COLORS
from trainer.report.templates import environment

KEYS = ("model", "run", "split", "data", "parts")
"""What tells an analysis from another JSON file."""
OF_HISTORIES = (
    search_sections.search,
    precision_sections.spread,
    search_sections.maps,
    search_sections.quality,
    gradient_sections.gradients,
    outcome_sections.discriminability,
    outcome_sections.lags,
    outcome_sections.norms,
)
"""Sections about models that read histories; all others are about any model."""


def write_analysis_report(path: Path, files: Sequence[Path]) -> None:
    """Writes one page: no scripts, no links; light, dark and print.

    Args:
        path: the HTML file; replaced only when the new one is complete.
        files: ``analysis-*.json``; the first one is what the page is about.

    Raises:
        InputError: a file is missing, or no analysis.
    """
    analyses = load_analyses(files)
    readers = [analysis for analysis in analyses if "search" in analysis.content]
    sections = [
        field_sections.importance(analyses),
        field_sections.pairs(analyses),
        *(section(readers) for section in OF_HISTORIES if readers),
        outcome_sections.parts(analyses),
        field_sections.rarity(analyses),
        precision_sections.precision(analyses),
    ]
    html = (
        environment()
        .get_template("analysis.html.j2")
        .render(
            title=f"Twofold: analysis of {analyses[0].name}",
            analyses=analyses,
            sections=[section for section in sections if section is not None],
            warnings=_warnings(analyses),
        )
    )
    unfinished = path.with_name(f"{path.name}.partial")
    unfinished.write_text(html, encoding="utf-8")
    unfinished.replace(path)


def load_analyses(files: Sequence[Path]) -> list[Analysis]:
    """Called by their models, or by model and run folder where that does not tell them apart."""
    contents = []
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(
                f"There is no analysis {file}. `twofold analyze RUN` writes RUN/analysis-best.json."
            ) from error
        except ValueError as error:
            raise InputError(f"{file} is not JSON ({error}). Analyse its run again.") from error
        if not isinstance(content, dict) or not set(KEYS) <= content.keys():
            raise InputError(f"{file} is no analysis: give an analysis-*.json of twofold analyze.")
        contents.append(content)
    models = [content["model"] for content in contents]
    return [
        Analysis(
            content["model"]
            if models.count(content["model"]) == 1
            else f"{content['model']} {content['run']}",
            number % COLORS,
            content,
        )
        for number, content in enumerate(contents)
    ]


def _warnings(analyses: Sequence[Analysis]) -> list[str]:
    """What forbids to compare them."""
    first = analyses[0].content
    warnings = []
    if any(a.content["data"] != first["data"] for a in analyses):
        warnings.append("These runs were trained on different event stores: compare no numbers.")
    if any(a.content["split"] != first["split"] for a in analyses):
        warnings.append("These analyses are of different splits: compare no numbers.")
    return warnings
