"""Recursive k-means once more, one history and one event at a time, in plain Python."""

from __future__ import annotations

import math

MAX_MEMBERS = 20
LLOYD_STEPS = 3

Point = list[float]


def recursive_k_means(points: list[Point]) -> list[list[int]]:
    """Members of each cluster, in the order in which parts are made; empty without points."""
    return _divide(points, list(range(len(points)))) if points else []


def _divide(points: list[Point], members: list[int]) -> list[list[int]]:
    if len(members) <= MAX_MEMBERS:
        return [members]
    parts = max(2, math.floor(len(members) ** 0.3))
    by_time = [place * parts // len(members) for place in range(len(members))]
    child = by_time
    for _ in range(LLOYD_STEPS):
        centroids = [_mean([points[m] for m, c in zip(members, child, strict=True) if c == part])
                     for part in range(parts)]  # fmt: skip
        child = [_nearest(points[m], centroids) for m in members]
    if len(set(child)) == 1:
        child = by_time
    groups = ([m for m, c in zip(members, child, strict=True) if c == p] for p in range(parts))
    return [cluster for group in groups if group for cluster in _divide(points, group)]


def _mean(points: list[Point]) -> Point | None:
    return [sum(axis) / len(points) for axis in zip(*points, strict=True)] if points else None


def _nearest(point: Point, centroids: list[Point | None]) -> int:
    distances = [
        math.inf if c is None else sum((a - b) ** 2 for a, b in zip(point, c, strict=True))
        for c in centroids
    ]
    return distances.index(min(distances))
