"""Analysing a trained run: what its search finds, what its attention follows, where it is right."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.attention_map import AttentionByPlace, correlations, map_groups, place_attention
from analysis.discriminability import HeadInputs, discriminability
from analysis.lags import AttentionByLag, seconds_of_unit
from analysis.mutual_information import Axes, InformationCounts
from analysis.norms import frequencies, norms_by_frequency, row_norms
from analysis.probes import SearchProbe
from analysis.scores import chooses_events, has_partial_scores
from analysis.search_quality import Enough, SearchQuality
from analysis.slices import name_of, slices
from data.batch import RankingBatch
from data.errors import InputError
from data.loader import RequestLoader
from data.source import Split
from data.store import EventStore
from modules.ranker import LifelongRanker, RankerOutput
from sharding.apply import sharded_collections
from trainer.checkpoint import Checkpoints, Link, Position
from trainer.evaluate import open_store_of
from trainer.experiment import Experiment
from trainer.metrics import Predictions, evaluate
from trainer.predict import predict
from trainer.processes import Ranks, gather_rows, on_first_rank
from trainer.progress import Display
from trainer.report.analysis_page import write_analysis_report
from trainer.report.page import load_runs
from trainer.run_folder import RunFolder, read_config, read_experiment
from trainer.state import TrainState, build_state

TARGETS = 50
"""Most frequent target categories, whose mutual information is counted."""
MAPPED = 10
"""Most frequent target categories of a heat map, and about how many bins of ranks."""
MAP_EVENTS = 20
"""Events, clicked and not clicked each, from which on a cell of a heat map is drawn."""
DISCRIMINABILITY_REQUESTS = 4_000
"""About so many requests are quantised."""


@dataclass(frozen=True)
class Subject:
    """A trained model and its data."""

    experiment: Experiment
    store: EventStore
    state: TrainState
    position: Position
    ranks: Ranks
    split: Split

    @property
    def ranker(self) -> LifelongRanker:
        """The model itself, its tables sharded."""
        return self.state.model.module


def analyze_run(
    run: Path,
    data: Path | None,
    out: Path | None,
    checkpoint: Link,
    split: Split,
    others: tuple[Path, ...],
    ranks: Ranks,
) -> None:
    """Writes ``analysis-<checkpoint>.json`` and ``.html``.

    Args:
        run: its folder.
        data: the run's store; None: as its command said.
        out: folder for the two files; None: the run's.
        checkpoint: which.
        split: which requests are judged; mutual information is always of the training ones.
        others: ``analysis-*.json`` files to draw beside this one.
        ranks: this process.

    Raises:
        InputError: no run or checkpoint there, a model that reads no history, another store than
            the run's, nowhere to write to, or no analysis where ``others`` say.
    """
    config = read_config(run)
    experiment = read_experiment(config)
    if experiment.model.pooling == "none":
        raise InputError(
            f"{run} is of {config['experiment']}, which reads no history: analyze is about "
            "searches and attention. Its metrics are in summary.json and report.html."
        )
    store = open_store_of(run, config, data or _store_of_command(run, config))
    on_first_rank(ranks, lambda: _make_folder(out or run))
    state = build_state(experiment, store, ranks)
    position = Checkpoints(run, ranks).load(state, checkpoint)
    subject = Subject(experiment, store, state, position, ranks, split)
    with Display(shown=ranks.first) as display:
        content = {
            "model": config["experiment"],
            "run": run.resolve().name,
            "checkpoint": checkpoint,
            "step": position.step,
            "split": split,
            "top_k": experiment.model.top_k,
            "world_size": ranks.world_size,
            "data": {"source": store.info.source, "fingerprint": store.info.fingerprint},
            **measure(subject, display),
            **_of_training(run),
        }
        if not ranks.first:
            return
        folder = RunFolder(out or run)
        folder.write(f"analysis-{checkpoint}.json", content)
        page = folder.path / f"analysis-{checkpoint}.html"
        write_analysis_report(page, [page.with_suffix(".json"), *others])
        display.print(f"Analysis: {page}")


def _of_training(run: Path) -> dict[str, Any]:
    """What the run itself recorded of its search and of its gradients."""
    gradients = run / "gradients.json"
    keys = ("step", "same_item_recall", "same_category_recall", "attention_entropy")
    return {
        "gradients": json.loads(gradients.read_text()) if gradients.exists() else None,
        "training": [
            {key: record.get(key) for key in keys}
            for record in load_runs([run])[0].metrics
            if record.get("kind") in ("search", "eval") and record.get("split") == "val"
        ],
    }


def _store_of_command(run: Path, config: dict[str, Any]) -> Path:
    """Where the run's own command found its store."""
    words = config.get("command") or []
    for flag, value in zip(words, [*words[1:], ""], strict=True):
        path = Path(flag.removeprefix("--data=") if flag.startswith("--data=") else value)
        if flag.partition("=")[0] == "--data" and (path / "store.json").exists():
            return path
    raise InputError(f"Where is the store that {run} was trained on? Give --data STORE.")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made: {error}. Give another --out.") from error


def measure(subject: Subject, display: Display) -> dict[str, Any]:
    """All measurements: collective. The numbers are whole on rank 0 only."""
    counts = _count_information(subject, display)
    device, ranker = subject.ranks.device, subject.ranker
    quality = SearchQuality(ranker, counts, Enough(), device)
    place = AttentionByPlace(_map_axes(counts.axes)[0], device)
    probe = SearchProbe(ranker, device)
    seconds = seconds_of_unit(subject.store)
    lags = (
        AttentionByLag(subject.store, subject.split, seconds, device)
        if seconds and chooses_events(ranker)
        else None
    )
    requests = subject.store.info.requests[subject.split]
    every = math.ceil(requests / DISCRIMINABILITY_REQUESTS)
    watchers: list[Callable[[RankerOutput, RankingBatch], None]] = [quality.update, probe.update]
    if chooses_events(ranker):
        watchers.append(place.update)
    if lags:
        watchers.append(lags.update)
    with HeadInputs(ranker, every) as inputs:
        predictions = _watch(subject, [inputs.update, *watchers], display)
    heads = gather_rows(inputs.rows()).cpu().numpy()
    result = {
        "search": probe.to_json(),
        "search_quality": quality.to_json(),
        "attention": _attention(subject, counts, place),
        "lags": lags.to_json() if lags else None,
        "norms": _norms(subject),
    }
    if subject.ranks.first:
        display.print("Clusters and parts ...")
        result["discriminability"] = _discriminability(heads, inputs.interest_width)
        result["parts"] = _parts(subject, predictions)
    return result


def _watch(
    subject: Subject,
    watchers: list[Callable[[RankerOutput, RankingBatch], None]],
    display: Display,
) -> Predictions:
    def each_batch(output: RankerOutput, batch: RankingBatch) -> None:
        for watch in watchers:
            watch(output, batch)

    return predict(
        subject.state.model,
        subject.store,
        subject.split,
        subject.experiment,
        subject.ranks,
        each_batch=each_batch,
        progress=lambda done, total: display.update(subject.split, done, total),
    )


def _count_information(subject: Subject, display: Display) -> InformationCounts:
    """Over all training requests."""
    length, ranks = subject.experiment.history_length, subject.ranks
    counts = InformationCounts(Axes.of(subject.store, length, TARGETS), ranks.device)
    loader = RequestLoader(
        subject.store,
        "train",
        requests_per_batch=subject.experiment.requests_per_batch,
        history_length=length,
        rank=ranks.rank,
        world_size=ranks.world_size,
        shuffle=False,
    )
    for done, batch in enumerate(loader, start=1):
        counts.update(batch.to(ranks.device))
        display.update("train", done, len(loader))
    counts.reduce()
    return counts


def _map_axes(axes: Axes) -> tuple[Axes, np.ndarray]:
    """Those of the heat maps, and the column that each bin of the counts falls into."""
    groups = map_groups(axes.edges, MAPPED)
    first = np.flatnonzero(np.diff(groups, prepend=-1))
    edges = np.append(axes.edges[first], axes.edges[-1])
    categories = axes.targets[np.isin(axes.targets, axes.events)][:MAPPED]
    return replace(axes, targets=categories, events=categories, edges=edges), groups


def _attention(
    subject: Subject, counts: InformationCounts, place: AttentionByPlace
) -> dict[str, Any]:
    """Maps of the most frequent target categories: mutual information, attention measured, and
    attention by what the tables say of category and recency.
    """
    axes, groups = _map_axes(counts.axes)
    targets, events = (
        [int(np.flatnonzero(ids == category)[0]) for category in axes.targets]
        for ids in (counts.axes.targets, counts.axes.events)
    )
    wider = counts.merged(groups)
    truth, sure = (
        values[targets][:, events].cpu().numpy()
        for values in (wider.information(), wider.certain(MAP_EVENTS))
    )
    truth = np.where(sure, truth, np.nan)
    candidates = counts.candidates[targets].sum(dim=1).cpu().numpy()
    learned = {"measured": place.mean(MAP_EVENTS)}
    if has_partial_scores(subject.ranker):
        learned["tables"] = place_attention(subject.ranker, axes, subject.ranks.device)
    maps = []
    for number in np.flatnonzero(candidates >= Enough().candidates):
        entry: dict[str, Any] = {
            "target": int(number),
            "candidates": int(candidates[number]),
            "information": _nullable(truth[number]),
        }
        for name, values in learned.items():
            pearson, spearman = correlations(values[number], truth[number])
            cells = int((np.isfinite(values[number]) & np.isfinite(truth[number])).sum())
            entry[name] = {
                "attention": _nullable(values[number]),
                "cells": cells,
                "pearson": pearson,
                "spearman": spearman,
            }
        maps.append(entry)
    originals = subject.store.originals("category")
    return {
        "categories": [name_of(originals[int(category)].as_py()) for category in axes.targets],
        "ranks": [rank_range(*ends) for ends in itertools.pairwise(axes.edges)],
        "maps": maps,
    }


def rank_range(first: int, end: int) -> str:
    """A bin of ranks as people read it.

    >>> rank_range(3, 4), rank_range(3, 6)
    ('3', '3–5')
    """
    return str(first) if end - first == 1 else f"{first}–{end - 1}"


def _nullable(values: np.ndarray) -> list[list[float | None]]:
    return [[float(x) if np.isfinite(x) else None for x in row] for row in values]


def _norms(subject: Subject) -> dict[str, Any]:
    """Of every table. Collective."""
    known = {name for name, _ in subject.store.fields}
    result = {}
    for path, bags in sharded_collections(subject.state.model):
        collection = path.split(".")[-1]
        for name, weight in bags.state_dict().items():
            table = name.split(".")[-2]
            field = table.removeprefix(f"{collection}_")
            shards = [
                (shard.tensor, shard.metadata.shard_offsets[0]) for shard in weight.local_shards()
            ]
            norms = row_norms(shards, weight.size(0), subject.ranks.device)
            frequency = frequencies(subject.store, field) if field in known else None
            result[table] = norms_by_frequency(norms, frequency)
    return result


def _discriminability(heads: np.ndarray, width: int) -> dict[str, Any]:
    """Of the interest alone, and of the head's whole input."""
    heads = heads[np.argsort(heads[:, 0], kind="stable")]
    request, label, features = heads[:, 0].astype(np.int64), heads[:, 1].astype(int), heads[:, 2:]
    return {
        "interest": discriminability(features[:, :width], label, request).to_json(),
        "input": discriminability(features[:, width:], label, request).to_json(),
    }


def _parts(subject: Subject, predictions: Predictions) -> dict[str, list[dict[str, Any]]]:
    """Metrics of parts of the split."""
    columns = [getattr(predictions, name) for name in Predictions.__dataclass_fields__]
    return {
        name: [
            {
                "part": part.label,
                **evaluate(
                    Predictions(*(column[part.chosen] for column in columns)),
                    bootstrap=subject.experiment.bootstrap,
                ).to_json(),
            }
            for part in parts
        ]
        for name, parts in slices(subject.store, subject.split).items()
    }
