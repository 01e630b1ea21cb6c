"""What a step must at least move and multiply, and how fast this machine does either.

The counts follow the kernel stage by stage, without overlap, all rows distinct and none in a cache:
the sum of the stages is the floor that the ratios of the benchmark are against.

Shapes: B candidates, N events of each history, K attended, A and R widths of a row in attention
and representation tables, all fields together.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

Mode = Literal["search", "serve", "none", "full"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a step."""

    candidates: int
    """B, each of a request of its own."""
    history: int
    """N."""
    top_k: int = 20
    attention_dim: int = 48
    representation_dim: int = 48
    bytes_per_number: int = 4
    """Of a table that is searched or looked up."""
    bytes_per_event: int = 24
    """Its ids: three fields of int64."""
    hidden: tuple[int, ...] = (144, 200, 80, 2)
    """Widths of the head's layers."""


class Ceilings(NamedTuple):
    """Rates of this machine in this run."""

    copy: float
    """Bytes read and written in a second."""
    multiply: float
    """FLOP in a second of a float32 product, as the head multiplies."""
    multiply_bfloat16: float


def seconds(mode: Mode, shape: Shape, ceilings: Ceilings) -> float:
    """The floor of a step."""
    moved, moved_by_head, multiplied = counts(mode, shape)
    head = max(moved_by_head / ceilings.copy, multiplied / ceilings.multiply)
    return moved / ceilings.copy + head


def counts(mode: Mode, shape: Shape) -> tuple[int, int, int]:
    """Bytes of search, attention and update; bytes of the head; FLOP of the head."""
    b, n, k = shape.candidates, shape.history, shape.top_k
    a, r, s = shape.attention_dim, shape.representation_dim, shape.bytes_per_number
    search = b * n * (shape.bytes_per_event + a * s) + 8 * b * k
    if mode == "search":
        return search, 0, 0
    pooled = n if mode == "full" else k
    serve = search + b * pooled * r * s
    numbers = b * s * sum(shape.hidden)
    products = 2 * b * sum(w * v for w, v in itertools.pairwise(shape.hidden))
    if mode == "serve":
        return serve, 2 * numbers, products
    weight_gradient = b * pooled * (r * s + 8)
    sort = 64 * b * pooled
    update = b * pooled * (2 * (a + r) * s + 16)
    return serve + weight_gradient + sort + update, 6 * numbers, 3 * products


def measure_ceilings(device: torch.device, size: int) -> Ceilings:
    """Of a copy of ``size`` bytes and of square products of up to 8192."""
    source = torch.zeros(max(1, size // 4), device=device)
    target = torch.empty_like(source)
    copied = 2 * 4 * source.numel() / median_seconds(lambda: target.copy_(source), device)
    width = 8192 if device.type == "cuda" else 256
    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.ones(width, width, device=device, dtype=dtype)
        taken = median_seconds(lambda square=square: square @ square, device)
        rates.append(2 * width**3 / taken)
    return Ceilings(copied, *rates)


def median_seconds(
    work: Callable[[], object], device: torch.device, repeats: int = 10, warm_up: int = 3
) -> float:
    """From the start of one call on the device to the start of the next, gaps included."""
    for _ in range(warm_up):
        work()
    if device.type != "cuda":
        taken = []
        for _ in range(repeats):
            begin = time.perf_counter()
            work()
            taken.append(time.perf_counter() - begin)
        return statistics.median(taken)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks)) / 1000
