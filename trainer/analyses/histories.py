"""Models that read histories: what the search finds, what attention follows, where it is right."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np

from analysis.attention_map import AttentionByPlace, correlations, map_groups, place_attention
from analysis.attention_spread import AttentionSpread
from analysis.discriminability import HeadInputs, discriminability
from analysis.lags import AttentionByLag, seconds_of_unit
from analysis.mutual_information import Axes, InformationCounts
from analysis.norms import frequencies, norms_by_frequency, row_norms
from analysis.probes import SearchProbe
from analysis.scores import chooses_events, has_partial_scores
from analysis.search_quality import Enough, SearchQuality
from analysis.slices import name_of
from data.loader import RequestLoader
from sharding.apply import sharded_collections
from sharding.replicated import held_shards
from trainer.analyses.fields import filter_norms
from trainer.analyses.precision import precision
from trainer.analyses.subject import (
    Subject,
    Watcher,
    metrics_by_part,
    metrics_by_rarity,
    watch,
)
from trainer.processes import gather_rows
from trainer.progress import Display

TARGETS = 50
"""Most frequent target categories, whose mutual information is counted."""
MAPPED = 10
"""Most frequent target categories of a heat map, and about how many bins of ranks."""
MAP_EVENTS = 20
"""Events, clicked and not clicked each, from which on a cell of a heat map is drawn."""
DISCRIMINABILITY_REQUESTS = 4_000
"""About so many requests are quantised."""


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
    spread = AttentionSpread(ranker, device)
    watchers: list[Watcher] = [quality.update, probe.update, spread.update]
    if chooses_events(ranker):
        watchers.append(place.update)
    if lags:
        watchers.append(lags.update)
    with HeadInputs(ranker, every) as inputs:
        predictions = watch(subject, [inputs.update, *watchers], display)
    heads = gather_rows(inputs.rows()).cpu().numpy()
    result = {
        "search": probe.to_json(),
        "spread": spread.to_json(),
        "search_quality": quality.to_json(),
        "attention": _attention(subject, counts, place),
        "lags": lags.to_json() if lags else None,
        "norms": _norms(subject),
        "precision": precision(subject, predictions, display),
    }
    if subject.ranks.first:
        display.print("Clusters and parts ...")
        result["discriminability"] = _discriminability(heads, inputs.interest_width)
        result["parts"] = metrics_by_part(subject, predictions)
        result["pairs"] = filter_norms(subject)
        result["rarity"] = metrics_by_rarity(subject, predictions)
    return result


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
        state = bags.state_dict()
        held = held_shards(state, once=True)
        for name, weight in state.items():
            table = name.split(".")[-2]
            field = table.removeprefix(f"{collection}_")
            shards = [(rows, row) for of, rows, (row, _) in held if of == table]
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
