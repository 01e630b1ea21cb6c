"""The tables of ``twofold sweep`` that measure steps: how cost grows with ids and with fields."""

from __future__ import annotations

from typing import get_args

from trainer.steps.table_step import TableKind
from trainer.sweep.rows import Row, SweepTable, flags_of

IDS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
WIDTHS = (12, 16, 64)
"""FBGEMM's rows are multiples of 4 floats: 12 stands for a width of 10."""
FIELDS = (10, 20, 39, 80, 160)
NETWORKS = {
    "secn_b": (),
    "secn_a1": (),
    # a step of 4,096 rows and 160 fields takes 5 seconds, or four minutes
    "cross_v2": flags_of(batch=1024),
    "secn_a": flags_of(batch=256, repeats=2),
}
"""Networks of the table, with flags of their own."""


STEP_TABLES: dict[str, SweepTable] = {
    "ids": SweepTable(
        sentence="What does a table's step cost as its ids grow, by its optimizer? Needs no store.",
        axis="ids of the table",
        kind="step",
        reference="rowwise-adagrad-16-1000000",
        rows=tuple(
            Row(
                f"{table}-{width}-{ids}",
                "table",
                flags_of(table=table, width=width, ids=ids),
                f"rowwise-adagrad-{width}-{ids}",
                line=table,
                x=ids,
                panel=f"width {width}",
            )
            for width in WIDTHS
            for table in get_args(TableKind)
            for ids in IDS
        ),
    ),
    "fields": SweepTable(
        sentence="What does a crossing network's step cost as its fields grow? Needs no store.",
        axis="fields",
        kind="step",
        reference="secn_b-39",
        rows=tuple(
            Row(
                f"{network}-{fields}",
                "network",
                (*flags_of(network=network, fields=fields), *flags),
                f"secn_b-{fields}",
                line=network,
                x=fields,
            )
            for network, flags in NETWORKS.items()
            for fields in FIELDS
        ),
    ),
}
"""Name -> table."""
