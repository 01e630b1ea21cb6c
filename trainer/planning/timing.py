"""Clocks of the calibration."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

REPEATS = 7


def clock(device: torch.device) -> Callable[[], float]:
    """Of one thread its own time: on a machine that is shared, what others take does not count."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone else time.perf_counter


def median_seconds(
    work: Callable[[], object], device: torch.device, now: Callable[[], float] | None = None
) -> float:
    """Of a few runs, after two to warm up; ``now`` instead of :func:`clock`."""
    now, found = now or clock(device), []
    for _ in range(REPEATS + 2):
        begin = now()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(now() - begin)
    return statistics.median(found[2:])
