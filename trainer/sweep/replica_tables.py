"""The table of ``twofold sweep`` that is about searches in a copy of the keys."""

from __future__ import annotations

from trainer.sweep.rows import Row, SweepTable, flags_of

STEPS = (1, 9, 37, 111, 333)
"""Divisors of the 333 steps of an epoch on completejourney: at its end, where recall is measured,
each copy is as old as it gets; the oldest is of the start."""

REPLICA_TABLES: dict[str, SweepTable] = {
    "replica": SweepTable(
        sentence="How old and how coarse may the keys be that a search reads, against live ones?",
        axis="steps between two renewals of the copy",
        reference="live",
        # evaluation renews the copy: one at the end leaves training with its age
        flags=flags_of(history_length=400, evaluations_per_epoch=1),
        rows=(
            Row("live", "dare", line="live", x=1),
            *(
                Row(
                    f"{dtype}-{steps}",
                    "dare",
                    flags_of(replica_steps=steps, replica_dtype=dtype),
                    line=dtype,
                    x=steps,
                )
                for dtype in ("float32", "bfloat16", "int8")
                for steps in STEPS
            ),
        ),
    ),
}
