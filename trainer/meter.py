"""Losses and time of training, from line to line of metrics.jsonl."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data.batch import RankingBatch
from modules.loss import Losses
from trainer import formats
from trainer.checkpoint import Position
from trainer.processes import Ranks, gather_rows


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
        self.finite = torch.zeros((), dtype=torch.int64, device=self.ranks.device)
        """Steps before the first whose loss is not finite, on this rank."""
        self.steps = self.samples = 0

    def restart_clock(self) -> None:
        """Leaves out the time since the last record."""
        self.since = time.perf_counter()
        self._paused_at: float | None = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time within."""
        self._paused_at = time.perf_counter()
        yield
        self.since += time.perf_counter() - self._paused_at
        self._paused_at = None

    def _elapsed(self) -> float:
        return (self._paused_at or time.perf_counter()) - self.since

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
        self.finite += self.sums.isfinite().all()
        self.steps += 1
        self.samples += batch.global_candidates

    def first_bad_step(self) -> int | None:
        """How many steps after the last record this rank's loss was first not finite."""
        finite = int(self.finite)
        return None if finite == self.steps else finite + 1

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint between two records keeps. Collective."""
        own = torch.cat([self.sums.double(), self.waited.to(self.sums.device)])
        return {
            "steps": self.steps,
            "samples": self.samples,
            "seconds": self._elapsed(),
            "sums": gather_rows(own[None]).tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there; ranks may be more or fewer: they share what the others had summed."""
        self.restart_clock()
        self._clear()
        if not state:
            return
        by_rank = torch.tensor(state["sums"], dtype=torch.float64)
        if len(by_rank) != self.ranks.world_size:  # what is logged are means over ranks
            by_rank = by_rank.mean(dim=0, keepdim=True).expand(self.ranks.world_size, -1)
        losses, waited = by_rank[self.ranks.rank].split([len(self.sums), len(self.waited)])
        self.sums.copy_(losses)
        self.waited.copy_(waited)
        self.steps, self.samples = state["steps"], state["samples"]
        self.finite.fill_(self.steps)
        self.since -= state["seconds"]

    def record(self, position: Position) -> dict[str, Any]:
        """Means over the steps since the last record, of all ranks; adds them to ``position``."""
        dist.all_reduce(self.sums)
        waited = self.waited.to(self.ranks.device)
        dist.all_reduce(waited)
        memory = torch.tensor(held_memory(self.ranks.device), device=self.ranks.device)
        dist.all_reduce(memory, op=dist.ReduceOp.MAX)
        of_input, in_steps = (waited / self.ranks.world_size).tolist()
        position.input_seconds += of_input
        position.communication_seconds += in_steps
        main, auxiliary, l2 = (self.sums / (self.steps * self.ranks.world_size)).tolist()
        seconds = self._elapsed()
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
            "input_share": of_input / seconds,
            "memory": memory.item(),
            "loss": main,
            "auxiliary": auxiliary,
            "l2": l2,
        }
        self._clear()
        self.restart_clock()
        return record


def summary_line(record: dict[str, Any]) -> str:
    """What a user sees of a record: loss, speed, share of the time waiting for input, memory."""
    return (
        f"loss {record['loss']:.4f}  {record['samples_per_second']:,.0f} samples/s  "
        f"input {record['input_share']:.0%}  {formats.size(record['memory'])}"
    )


def held_memory(device: torch.device) -> int:
    """Bytes: of a GPU the most that tensors have held since the last call, else of this process.

    Pages of the event store's files, which the kernel may drop at any time, are not in it where
    the system tells them apart.
    """
    if device.type == "cuda":
        held = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return held
    try:
        words = Path("/proc/self/status").read_text().split()
        return 1024 * sum(int(words[words.index(name) + 1]) for name in ("RssAnon:", "RssShmem:"))
    except (OSError, ValueError):  # another system: the most there has been
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


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
