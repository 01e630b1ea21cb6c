"""What each section of the report says: plain values and pictures for the page template.

A function returns None (or an empty list) when the runs do not hold what its section needs.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from data.source import SPLITS
from trainer import formats
from trainer.metrics import Difference, binomial_interval
from trainer.report import figures
from trainer.report.figures import Estimate, Series
from trainer.tables import rank_list

Json = dict[str, Any]

PLAN_PIXELS = 240
"""Height of the fullest rank in the picture of a plan."""
LABEL_PIXELS = 18
"""Blocks of this height and more carry their name."""


@dataclass(frozen=True)
class Run:
    """What a run folder holds (docs/architecture.md). Files that are not there are empty."""

    name: str
    color: int
    """Index of its colour in every picture."""
    config: Json
    plan: Json
    metrics: list[Json]
    analysis: Json
    summary: Json


class Panel(NamedTuple):
    """A picture, and how to read it."""

    title: str
    svg: Markup
    caption: str


def headline(runs: Sequence[Run]) -> Json | None:
    """The best run by AUC, and those behind it in order."""
    ranked = [run for run in runs if run.summary.get("auc") is not None]
    ranked.sort(key=lambda run: -run.summary["auc"])
    return {"best": ranked[0], "others": ranked[1:]} if ranked else None


@dataclass(frozen=True)
class _ResultRow:
    label: str
    text: Callable[[Json], str]
    badness: Callable[[float], float] | None = None
    """Of the value ``key``; the run with the least is set in bold. None: nothing is better."""
    key: str = ""


def _loss_change(summary: Json) -> str:
    first, last = summary.get("loss_first"), summary.get("loss_last")
    return f"{formats.decimal(first, 3)} → {formats.decimal(last, 3)}"


def _waiting(summary: Json) -> str:
    shares = summary.get("time_shares")
    return f"{shares['input']:.0%}, {shares['communication']:.0%}" if shares else "–"


def _speed(summary: Json) -> str:
    predicted = summary.get("predicted_samples_per_second")
    beside = f" (predicted {formats.count(predicted)})" if predicted else ""
    return formats.count(summary.get("samples_per_second")) + beside


_RESULT_ROWS = (
    _ResultRow("AUC", lambda s: formats.decimal(s.get("auc")), lambda v: -v, "auc"),
    _ResultRow("95 % interval", lambda s: formats.interval(s.get("auc_interval"))),
    _ResultRow(
        "GAUC, within users", lambda s: formats.decimal(s.get("gauc")), lambda v: -v, "gauc"
    ),
    _ResultRow("Log loss", lambda s: formats.decimal(s.get("logloss")), lambda v: v, "logloss"),
    _ResultRow(
        "Normalized entropy",
        lambda s: formats.decimal(s.get("normalized_entropy")),
        lambda v: v,
        "normalized_entropy",
    ),
    _ResultRow("Calibration", lambda s: formats.decimal(s.get("calibration"), 3)),
    _ResultRow("Training loss", _loss_change),
    _ResultRow("Training samples", lambda s: formats.count(s.get("train_samples"))),
    _ResultRow("Training time", lambda s: formats.duration(s.get("train_seconds"))),
    _ResultRow("Samples per second", _speed),
    _ResultRow("Wait: input, ranks", _waiting),
    _ResultRow("Processes", lambda s: formats.count(s.get("world_size"))),
)


def results(runs: Sequence[Run], differences: Mapping[str, Difference]) -> Json | None:
    """Metrics as rows, runs as columns; and the intervals as pictures."""
    finished = [run for run in runs if run.summary]
    if not finished:
        return None
    rows = []
    for row in _RESULT_ROWS:
        values = {run.name: run.summary.get(row.key) for run in finished}
        known = [value for value in values.values() if value is not None]
        # equal values have no best
        best = min(map(row.badness, known)) if row.badness and len(set(known)) > 1 else None
        cells = [
            (
                row.text(run.summary),
                best is not None
                and values[run.name] is not None
                and row.badness(values[run.name]) == best,
            )
            for run in finished
        ]
        rows.append((row.label, cells))
    return {
        "runs": finished,
        "split": " and ".join(sorted({str(run.summary.get("split", "test")) for run in finished})),
        "rows": rows,
        "panels": _interval_panels(finished, differences),
    }


def _interval_panels(runs: Sequence[Run], differences: Mapping[str, Difference]) -> list[Panel]:
    estimates = [
        Estimate(run.name, run.color, run.summary["auc"], *run.summary["auc_interval"])
        for run in runs
        if _all_known(run.summary.get("auc"), *(run.summary.get("auc_interval") or [None]))
    ]
    panels = []
    if estimates:
        panels.append(
            Panel(
                "AUC with 95 % intervals",
                figures.intervals(estimates, "AUC of each run with its interval"),
                "Dots are the measured AUC. The line holds 95 % of the AUCs found when whole "
                "requests are drawn anew, so it shows how much the number owes to which requests "
                "happened to be in the split. It does not show the luck of the training seed.",
            )
        )
    if differences:
        pairs = [Estimate(name, None, d.auc, *d.interval) for name, d in differences.items()]
        panels.append(
            Panel(
                "Paired difference of AUC",
                figures.intervals(pairs, "Difference of AUC with its interval", signed=True),
                "Both models judged on the same draws of requests, so shared luck cancels. A line "
                "that stays clear of zero means that the order of the two would not change with "
                "other requests of the same kind.",
            )
        )
    return panels


def data(runs: Sequence[Run]) -> list[Json]:
    """Facts of every event store that the runs were trained on; one entry if they agree."""
    stores: dict[str, Json] = {}
    for run in runs:
        facts = run.config.get("data") or {}
        if facts:
            entry = stores.setdefault(str(facts.get("fingerprint")), {"facts": facts, "runs": []})
            entry["runs"].append(run)
    for entry in stores.values():
        requests = entry["facts"].get("requests") or {}
        entry["requests"] = [(split, requests[split]) for split in SPLITS if split in requests]
        entry["judged"] = entry["runs"][0].summary
    return list(stores.values())


def training(runs: Sequence[Run]) -> list[Panel]:
    """Curves over the training samples."""
    panels = [
        _curve(runs, "train", "loss", "Training loss", "{:.4f}", _LOSS_CAPTION),
        _curve(runs, "train", "auxiliary", "Auxiliary loss", "{:.4f}", _AUXILIARY_CAPTION),
        _curve(runs, "eval", "auc", "Validation AUC", "{:.4f}", _VALIDATION_CAPTION),
        _curve(
            runs,
            "eval",
            "replica_recall",
            "Found in the copy of the keys",
            "{:.4f}",
            _REPLICA_CAPTION,
        ),
        _curve(
            runs, "train", "samples_per_second", "Samples per second", "{:,.0f}", _SPEED_CAPTION
        ),
    ]
    return [panel for panel in panels if panel is not None]


_LOSS_CAPTION = (
    "Mean log loss of a step, all processes together; faint: every logged step, firm: their mean. "
    "A loss that goes on falling while validation AUC falls too is overfitting."
)
_AUXILIARY_CAPTION = (
    "The extra loss that trains the attention tables directly. Its scale differs from the training "
    "loss; only its direction matters."
)
_REPLICA_CAPTION = (
    "With --replica-steps, on the first few hundred validation requests: of the K events that live "
    "keys find, the share that searches find in the copy as training left it, before evaluation "
    "renews it. How old it was is replica_age of metrics.jsonl, in steps."
)
_VALIDATION_CAPTION = (
    "AUC on the validation requests, with its 95 % interval where it was computed. The checkpoint "
    "with the highest point is the one that is tested."
)
_SPEED_CAPTION = (
    "Candidates trained on per second, all processes together. A flat line is healthy; dips are "
    "evaluations, checkpoints or a machine that is shared."
)


def _curve(
    runs: Sequence[Run], kind: str, key: str, title: str, label: str, caption: str
) -> Panel | None:
    series = [_series(run, kind, key) for run in runs]
    series = [curve for curve in series if len(curve.x) and np.any(curve.y)]
    if not series:
        return None
    svg = figures.curves(
        series, f"{title} over training samples", label_format=label, points=kind == "eval"
    )
    return Panel(title, svg, caption)


def _series(run: Run, kind: str, key: str) -> Series:
    rows = [
        row
        for row in run.metrics
        if row.get("kind") == kind
        and (kind == "train" or row.get("split") == "val")
        and _all_known(row.get(key), row.get("step"))
    ]
    band = None
    bounds = [row.get(f"{key}_interval") or (None, None) for row in rows]
    if rows and all(_all_known(*pair) for pair in bounds):
        band = np.array(bounds, dtype=float).T
    x, y = _trained_samples(run, rows), np.array([row[key] for row in rows], dtype=float)
    return Series(run.name, run.color, x, y, band)


def _trained_samples(run: Run, rows: Sequence[Json]) -> np.ndarray:
    """(rows,) samples trained on until the step of each row.

    Interpolated between training rows: "samples" of an evaluation counts what it evaluated.
    """
    steps = [row["step"] for row in rows]
    known = {row["step"]: row["samples"] for row in run.metrics if row.get("kind") == "train"}
    if not known:
        return np.array(steps, dtype=float)
    return np.interp(steps, sorted(known), [known[step] for step in sorted(known)])


def plans(runs: Sequence[Run]) -> list[Json]:
    """Every different plan, with the runs that share it. All pictures have one scale."""
    different: list[Json] = []
    for run in runs:
        if not run.plan:
            continue
        same = [entry for entry in different if entry["plan"] == run.plan]
        if same:
            same[0]["runs"].append(run)
        else:
            different.append({"plan": run.plan, "runs": [run]})
    loads = [_ranks(entry["plan"]) for entry in different]
    fullest = max((rank["bytes"] for ranks in loads for rank in ranks), default=0)
    for entry, ranks in zip(different, loads, strict=True):
        for block in (block for rank in ranks for block in rank["blocks"]):
            block["pixels"] = round(PLAN_PIXELS * block["bytes"] / max(fullest, 1), 1)
            block["labelled"] = block["pixels"] >= LABEL_PIXELS
        entry["ranks"] = ranks
        entry["tables"] = [
            {**table, "ranks": rank_list(entry["plan"]["world_size"], table)}
            for table in entry["plan"]["tables"]
        ]
    return different


def _ranks(plan: Json) -> list[Json]:
    """What each rank holds: total bytes, and blocks, the largest first."""
    ranks = [{"rank": rank, "bytes": 0.0, "blocks": []} for rank in range(plan["world_size"])]
    for table in plan["tables"]:
        whole = {"offset": [0, 0], "size": [table["rows"], table["width"]]}
        # a table without shards is replicated
        shards = table.get("shards") or [{"rank": rank["rank"], **whole} for rank in ranks]
        for shard in shards:
            rows, width = shard["size"]
            share = rows * width / max(table["rows"] * table["width"], 1)
            block = {
                "table": table["name"],
                "sharding_type": table["sharding_type"],
                "rows": rows,
                "width": width,
                "bytes": table["bytes"] * share,
            }
            ranks[shard["rank"]]["blocks"].append(block)
            ranks[shard["rank"]]["bytes"] += block["bytes"]
    for rank in ranks:
        rank["blocks"].sort(key=lambda block: -block["bytes"])
    return ranks


def lookups(runs: Sequence[Run]) -> list[Json]:
    """Rows read per step from each table, as bars with one scale for all runs."""
    counted = [(run, run.analysis["lookups"]) for run in runs if run.analysis.get("lookups")]
    totals = [
        counts["with_gradient"] + counts["without_gradient"]
        for _, tables in counted
        for counts in tables.values()
    ]
    largest = max(totals, default=0) or 1
    return [
        {
            "run": run,
            "tables": [
                {
                    "name": name,
                    **counts,
                    "with_percent": round(100 * counts["with_gradient"] / largest, 2),
                    "without_percent": round(100 * counts["without_gradient"] / largest, 2),
                }
                for name, counts in tables.items()
            ],
        }
        for run, tables in counted
    ]


def attention(runs: Sequence[Run]) -> Panel | None:
    """Learned attention weight by recency."""
    learned, uniform = [], []
    for run in runs:
        curve = run.analysis.get("attention_by_recency")
        if curve and curve["recency"]:
            ranks, weight, equal = (
                np.array(curve[key], dtype=float) for key in ("recency", "weight", "uniform")
            )
            learned.append(Series(run.name, run.color, ranks, weight))
            uniform.append(Series("uniform", None, ranks, equal))
    if not learned:
        return None
    return Panel(
        "Attention by recency",
        figures.recency(learned, uniform, "Mean attention weight by recency rank"),
        "Mean weight that an event gets, by how many events ago it happened. Dashed: every event "
        "of a history weighs the same. Above the dashed line the model looks more closely than "
        "chance; how far right it stays there is how much history it uses.",
    )


def calibration(runs: Sequence[Run]) -> Panel | None:
    """Observed against predicted rate."""
    series, counts = [], []
    for run in runs:
        curve = run.analysis.get("calibration")
        if curve and curve["count"]:
            predicted, observed, count = (
                np.array(curve[key], dtype=float) for key in ("predicted", "observed", "count")
            )
            series.append(
                Series(run.name, run.color, predicted, observed, binomial_interval(observed, count))
            )
            counts.append(count)
    if not series:
        return None
    every = np.concatenate(counts)
    fewest, most = formats.count(every.min()), formats.count(every.max())
    # equal bins differ by one
    each = fewest if every.max() - every.min() <= 1 else f"{fewest} to {most}"
    return Panel(
        "Calibration",
        figures.calibration(series, "Observed click rate against predicted click rate"),
        f"Each of the {len(counts[0])} dots is {each} candidates of similar prediction. On the "
        "dashed line predictions come true; a dot below it promises too much. The lower picture "
        "enlarges the difference, with 95 % intervals: one that misses the dashed line is more "
        "than chance.",
    )


def provenance(run: Run) -> Json:
    """What is needed to get the same numbers again."""
    config, command = run.config, run.config.get("command")
    return {
        "run": run,
        "facts": {
            "Experiment": config.get("experiment"),
            "Seed": _find(config.get("config"), "seed"),
            "Commit": config.get("commit"),
            "Data fingerprint": (config.get("data") or {}).get("fingerprint"),
        },
        "command": shlex.join(command) if isinstance(command, list) else command,
        "versions": config.get("versions") or {},
        "config": config.get("config") or {},
    }


def _find(tree: Any, key: str) -> Any:
    """First value under ``key`` at any depth of nested dicts; the outermost wins."""
    if not isinstance(tree, dict):
        return None
    if key in tree:
        return tree[key]
    found = (_find(value, key) for value in tree.values())
    return next((value for value in found if value is not None), None)


def _all_known(*values: float | None) -> bool:
    return all(value is not None and np.isfinite(value) for value in values)
