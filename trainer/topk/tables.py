"""Tables of top-K metrics for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from trainer import formats
from trainer.tables import plain_table
from trainer.topk.metrics import CUTOFFS, METRICS

NAMES = {"precision": "Prec.", "recall": "Recall", "ndcg": "NDCG"}


def metrics_table(summaries: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row per run and metric.

    Args:
        summaries: name of the run -> its ``summary.json``
    """
    first = next(iter(summaries.values()))
    table = plain_table(f"Test metrics, full ranking of {formats.count(first['catalogue'])} items")
    table.caption = (
        f"Means over {formats.count(first['users'])} users, 95 % bootstrap intervals over users; "
        f"candidates: {first['candidates']}."
    )
    for name in ("model", ""):
        table.add_column(name, no_wrap=True)
    for k in CUTOFFS:
        table.add_column(f"at {k}", no_wrap=True)
    for model, summary in summaries.items():
        for name, shown in NAMES.items():
            cells = [
                f"{formats.decimal(summary[metric])} "
                f"[dim]{formats.interval(summary['intervals'][metric], 3)}[/]"
                for metric in (f"{name}@{k}" for k in CUTOFFS)
            ]
            table.add_row(model if name == METRICS[0].split("@")[0] else "", shown, *cells)
    return table
