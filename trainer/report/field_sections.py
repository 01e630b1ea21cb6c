"""What fields are worth to a model: pictures, and a sentence each, made from the numbers.

A function returns None where no analysis holds what its section needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trainer import formats
from trainer.report import analysis_figures as figures
from trainer.report.analysis_parts import Analysis, Json, Section, Table, joined
from trainer.report.figures import Series
from trainer.report.sections import Panel

DRAWN = 40
"""Fields of a picture: those with the largest values."""


def importance(analyses: Sequence[Analysis]) -> Section | None:
    """What is lost when a field is permuted."""
    known = [a for a in analyses if a.content.get("importance")]
    if not known:
        return None
    names = list(dict.fromkeys(entry["field"] for a in known for entry in _by_loss(a)))
    drawn = names[:DRAWN]
    panels = []
    for key, title in (("auc_lost", "AUC lost"), ("logloss_lost", "Log loss added")):
        svg = figures.bars(
            drawn, [_losses(a, drawn, key) for a in known], f"{title} when a field is permuted"
        )
        sentences = [_importance_sentence(a, key) for a in known]
        if len(names) > DRAWN:
            sentences.append(f"Drawn are {DRAWN} of {len(names)} fields.")
        panels.append(Panel(f"{title} without a field", svg, joined(sentences)))
    first = known[0].content["importance"]
    about = (
        "Each field's values are dealt anew over all candidates of the split (fields of the "
        "candidate) or all its requests (fields around it), and the split is scored again: mean of "
        f"{first['permutations']} permutations, 95 % intervals of the AUC over "
        f"{first['resampled']}s. The model is not trained again, so of fields that say the same "
        "each one may seem worth more, or less, than leaving it out would cost."
    )
    return Section("What each field is worth", about, [], [panels])


def _by_loss(analysis: Analysis) -> list[Json]:
    fields = analysis.content["importance"]["fields"]
    return sorted(fields, key=lambda entry: -(entry["auc_lost"] or 0.0))


def _losses(analysis: Analysis, names: Sequence[str], key: str) -> Series:
    """Of a run, NaN for fields that it does not read."""
    entries = {entry["field"]: entry for entry in analysis.content["importance"]["fields"]}
    ends = f"{key}_interval"
    values = np.array([_number(entries.get(name, {}).get(key)) for name in names])
    band = np.array(
        [[_number(x) for x in entries.get(name, {}).get(ends, (None, None))] for name in names]
    ).T
    return Series(analysis.name, analysis.color, values, values, band)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _importance_sentence(analysis: Analysis, key: str) -> str:
    fields = [e for e in analysis.content["importance"]["fields"] if e[key] is not None]
    if not fields:
        return ""
    fields.sort(key=lambda entry: -entry[key])
    most = ", ".join(f"{e['field']} ({formats.signed(e[key])})" for e in fields[:3])
    least = f"{fields[-1]['field']} ({formats.signed(fields[-1][key])})"
    return f"{analysis.name}: most by {most}; least by {least}."


def pairs(analyses: Sequence[Analysis]) -> Section | None:
    """Norms of filters by pair of fields."""
    panels = []
    for a in analyses:
        content = a.content.get("pairs")
        if not content:
            continue
        sums = np.array(content["sums"])
        order = np.argsort(-sums, kind="stable")[:DRAWN]
        names = [content["fields"][place] for place in order]
        svg = figures.square_map(
            np.array(content["norms"])[np.ix_(order, order)],
            names,
            a.color,
            f"Norms of the filters of pairs of fields, {a.name}",
        )
        panels.append(Panel(f"Filters of {a.name}", svg, _pairs_sentence(a.name, content, order)))
    if not panels:
        return None
    about = (
        "Norm of all weights, over dimensions and maps, that the first crossing layer gives to the "
        "product of two fields, or of a field with itself; 0 is clear, the largest is full. Fields "
        "stand by the sum of their norms with the other fields. Norms begin at random values and "
        "say nothing of the length of the rows that they weigh."
    )
    return Section("Filters by pair of fields", about, [], [panels])


def _pairs_sentence(name: str, content: Json, order: np.ndarray) -> str:
    fields, sums = content["fields"], content["sums"]
    norms = np.tril(np.array(content["norms"]), -1)
    row, column = np.unravel_index(int(np.argmax(norms)), norms.shape)
    sentence = (
        f"{name}: from {norms[np.tril_indices(len(fields), -1)].min():.3g} to "
        f"{norms[row, column]:.3g} ({fields[column]} and {fields[row]}); sums from "
        f"{sums[order[-1]]:.3g} ({fields[order[-1]]}) to {sums[order[0]]:.3g} ({fields[order[0]]})."
    )
    if (rho := content.get("spearman")) is not None:
        sentence += (
            " Spearman's rank correlation of the sums with the AUC lost by permutation: "
            f"{formats.signed(rho, 2)}."
        )
    return sentence


def rarity(analyses: Sequence[Analysis]) -> Section | None:
    """Metrics by the rarest id of a row."""
    known = [a for a in analyses if a.content.get("rarity")]
    notes = [
        f"{a.name}: its store does not count ids (it was prepared with --hash-buckets, or has no "
        "columns of ids)."
        for a in analyses
        if "rarity" in a.content and not a.content["rarity"]
    ]
    if not (known or notes):
        return None
    about = (
        "Metrics of parts of the split by how often the rarest id of a row has come. The expected "
        "calibration error (ECE) is the mean distance of predicted and observed click rates in ten "
        "bins of probability of equal width; AUC with its 95 % interval over requests."
    )
    return Section("Rare ids", about, notes, [], [_rarity_table(a) for a in known])


def _rarity_table(analysis: Analysis) -> Table:
    content = analysis.content["rarity"]
    head = ["count", "rows", "positives", "AUC", "95 % interval", "log loss", "ECE", "calibration"]
    rows = [
        [
            part["count"],
            formats.count(part["samples"]),
            formats.count(part["positives"]),
            formats.decimal(part["auc"]),
            formats.interval(part["auc_interval"]),
            formats.decimal(part["logloss"]),
            formats.decimal(part["expected_calibration_error"]),
            formats.decimal(part["calibration"], 3),
        ]
        for part in content["bins"]
    ]
    return Table(analysis.name, head, rows, f"Count: {content['counted']}.")
