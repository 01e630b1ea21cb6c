"""Losses and time of training, from line to line of metrics.jsonl."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from data.batch import RankingBatch
from modules.loss import Losses
from trainer.checkpoint import Position
from trainer.processes import Ranks


class Meter:
    """What training lost and where its time went, between two lines of metrics.jsonl.

    Losses are summed on the device and read when a line is written, not in each step.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.restart_clock()
        self._clear()

    def _clear(self) -> None:
        self.sums = torch.zeros(len(Losses._fields), device=self.ranks.device)
        self.waited = torch.zeros(2, dtype=torch.float64)
        """Seconds for input, and in steps."""
        self.steps = self.samples = 0

    def restart_clock(self) -> None:
        """Leaves out the time since the last record."""
        self.since = time.perf_counter()

    def waiting_for(self, batches: Iterable[RankingBatch]) -> Iterator[RankingBatch]:
        """The same; the time until each is there is time spent on input."""
        remaining = iter(batches)
        while True:
            begin = time.perf_counter()
            batch = next(remaining, None)
            self.waited[0] += time.perf_counter() - begin
            if batch is None:
                return
            yield batch

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around a training step: a CPU that stands still within it waits for other ranks."""
        begin, worked = time.perf_counter(), time.thread_time()
        yield
        if self.ranks.world_size > 1 and self.ranks.device.type == "cpu":
            wall, work = time.perf_counter() - begin, time.thread_time() - worked
            self.waited[1] += max(0.0, wall - work)

    def add(self, losses: Losses, batch: RankingBatch) -> None:
        """One step."""
        self.sums += torch.stack([*losses])
        self.steps += 1
        self.samples += batch.global_candidates

    def record(self, position: Position) -> dict[str, Any]:
        """Means over the steps since the last record, of all ranks; adds them to ``position``."""
        dist.all_reduce(self.sums)
        waited = self.waited.to(self.ranks.device)
        dist.all_reduce(waited)
        of_input, in_steps = (waited / self.ranks.world_size).tolist()
        position.input_seconds += of_input
        position.communication_seconds += in_steps
        main, auxiliary, l2 = (self.sums / (self.steps * self.ranks.world_size)).tolist()
        seconds = time.perf_counter() - self.since
        position.samples += self.samples
        position.seconds += seconds
        position.loss_first = main if position.loss_first is None else position.loss_first
        position.loss_last = main
        record = {
            "kind": "train",
            "step": position.step,
            "epoch": position.epoch,
            "samples": position.samples,
            "seconds": position.seconds,
            "samples_per_second": self.samples / seconds,
            "loss": main,
            "auxiliary": auxiliary,
            "l2": l2,
        }
        self._clear()
        self.restart_clock()
        return record


def bound_by(position: Position) -> dict[str, Any]:
    """What held training up, for summary.json: ``time_shares``, which sum to 1, and ``bound``, a
    sentence about them. A step that stands still for want of a core waits too: with more threads
    than cores communication looks worse than it is. On GPUs, which work while the host goes on,
    what they wait for counts as compute.
    """
    seconds = max(position.seconds, 1e-9)
    waited = {"input": position.input_seconds, "communication": position.communication_seconds}
    whole = max(seconds, sum(waited.values()))
    shares = {name: part / whole for name, part in waited.items()}
    shares["compute"] = 1 - sum(shares.values())
    most = max(shares, key=lambda name: shares[name])
    told = {
        "compute": "{:.0%} of training was computing",
        "input": "{:.0%} waiting for input",
        "communication": "{:.0%} waiting for other ranks",
    }
    parts = ", ".join(text.format(shares[name]) for name, text in told.items())
    return {"time_shares": shares, "bound": f"Bound by {most}: {parts}."}
