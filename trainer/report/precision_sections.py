"""How far attention spreads, and what fewer bits change: sentences and tables from the numbers.

A function returns None where no analysis holds what its section needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainer import formats
from trainer.report.analysis_parts import Analysis, Section, Table

SPREADS = {"target": "candidate over history", "self": "events over each other"}


def spread(analyses: Sequence[Analysis]) -> Section | None:
    """Entropy of attention over ln n, by the history's length."""
    tables = [_spread_table(a) for a in analyses if any((a.content.get("spread") or {}).values())]
    if not tables:
        return None
    about = (
        "Entropy of attention over the logarithm of the number of events: 1 where every event "
        "weighs the same, 0 where one has all the weight. The candidate's is over its whole "
        "history, also where a search chooses a few of it: by the score that chooses them."
    )
    return Section("Over how much of the history attention spreads", about, [], [], tables)


def _spread_table(analysis: Analysis) -> Table:
    found = {name: of for name, of in analysis.content["spread"].items() if of}
    by_length = {
        name: {entry["events"]: entry for entry in of["by_length"]} for name, of in found.items()
    }
    lengths = sorted({length for of in by_length.values() for length in of})
    rows = [
        [
            f"{length}\N{EN DASH}{2 * length - 1}",
            *(_spread_cell(of.get(length)) for of in by_length.values()),
        ]
        for length in lengths
    ]
    rows.append(["all", *(_spread_cell(of) for of in found.values())])
    caption = "Mean over queries; in brackets how many. Histories of one event are left out."
    return Table(analysis.name, ["events", *(SPREADS[name] for name in found)], rows, caption)


def _spread_cell(entry: dict | None) -> str:
    if entry is None:
        return formats.MISSING
    return f"{formats.decimal(entry['spread'], 3)} ({formats.count(entry['queries'])})"


def precision(analyses: Sequence[Analysis]) -> Section | None:
    """Float32 beside bfloat16."""
    known = [a for a in analyses if a.content.get("precision")]
    if not known:
        return None
    first = known[0].content["precision"]["gradients"]["float32"]
    about = (
        "The split scored under autocast to bfloat16, and "
        f"{len(first['gradient_norm'])} training batches forward and backward in both types, at "
        "the checkpoint. Tables keep float32. Gradients are those of all other parameters; a "
        "norm that is not small, or far above its mean in some batch, wants a smaller learning "
        "rate."
    )
    notes = [_precision_sentence(a) for a in known]
    return Section("Numbers: gradients, and sixteen bits", about, notes, [], [_table(known)])


def _precision_sentence(analysis: Analysis) -> str:
    content = analysis.content["precision"]
    other = content["gradients"]["bfloat16"]
    bad = other["not_finite_logits"] + other["not_finite_gradients"]
    numbers = other["logits"] + other["gradients"]
    lost = (
        "all numbers stay finite"
        if not bad
        else f"{formats.count(bad)} of {formats.count(numbers)} numbers are no longer finite"
    )
    exact, rounded = content["auc"]
    change = formats.signed(rounded - exact) if None not in (exact, rounded) else formats.MISSING
    return f"{analysis.name}: in bfloat16 {lost}, and the AUC changes by {change}."


def _table(analyses: Sequence[Analysis]) -> Table:
    head = [
        "model", "type", "AUC", "log loss", "gradient norm, mean", "largest", "not finite",
        "distance of a logit", "cosine of the gradient",
    ]  # fmt: skip
    rows = []
    for analysis in analyses:
        content = analysis.content["precision"]
        for place, (dtype, found) in enumerate(content["gradients"].items()):
            norms = found["gradient_norm"]
            rows.append(
                [
                    analysis.name,
                    dtype,
                    formats.decimal(content["auc"][place]),
                    formats.decimal(content["logloss"][place]),
                    formats.decimal(math.fsum(norms) / len(norms)),
                    formats.decimal(max(norms)),
                    formats.count(found["not_finite_logits"] + found["not_finite_gradients"]),
                    formats.decimal(found.get("logit_difference"), 5),
                    formats.decimal(found.get("gradient_cosine"), 5),
                ]
            )
    caption = "Distance and cosine are to float32's, means over candidates and over batches."
    return Table("Beside each other", head, rows, caption)
