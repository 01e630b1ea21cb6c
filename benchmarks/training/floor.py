"""What a step of ``none`` must at least move and multiply, at the rates of this machine, now.

    python -m benchmarks.training.floor floor STORE HISTORY REQUESTS WARM_UP STEPS

Counted for real batches of the log; one thread. Rows are gathered by the batch's own ids into a
buffer that is there already; products and copies are measured in the sizes that the step has.

Shapes: S candidates, N events of all histories, K attended, W width of a row of one table.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.training.step import ATTENDED, Clock
from data.loader import RequestLoader
from data.store import EventStore

WIDTH, FIELDS, HIDDEN = 16, ("item", "category", "recency"), (200, 80)
EVENTS_AT_ONCE = 65_536
SIDES = 2
"""Attention and representation."""


def main() -> None:
    _, store_path, *numbers = sys.argv[1:]
    length, requests, _, steps = map(int, numbers)
    torch.set_num_threads(1)
    store = EventStore.open(Path(store_path))
    sizes = dict(store.fields) | {"recency": length + 1}
    tables = {name: torch.zeros(rows, WIDTH) for name, rows in sizes.items()}
    loader = RequestLoader(
        store, "train", requests_per_batch=requests, history_length=length, seed=1
    )
    samples, parts = 0, dict.fromkeys(("ids", "search", "scores", "attention", "update", "head"), 0)
    clock = Clock()
    for batch in itertools.islice(iter(loader), 3 + steps):
        candidates = len(batch.labels)
        events = {name: batch.history[name].values() for name in FIELDS}
        count = len(events["item"])
        pairs = int((batch.history_lengths * batch.candidate_counts).sum())
        chosen = torch.randint(count, (candidates * ATTENDED,))
        found = {name: ids[chosen] for name, ids in events.items()}
        gathered = sum(_gather(tables[name], found[name]) for name in FIELDS)
        parts["ids"] += _copy(4 * count * len(FIELDS))
        parts["search"] += sum(_gather(tables[name], events[name]) for name in FIELDS)
        # a request's candidates share its keys: one product each, then the best K of each row
        parts["scores"] += _multiply_batched(requests, length, candidates) + _copy(4 * pairs)
        parts["attention"] += SIDES * (gathered + _copy(4 * candidates * ATTENDED * WIDTH * 3))
        parts["update"] += SIDES * sum(_update(tables[name], found[name]) for name in FIELDS)
        parts["head"] += 3 * _network(candidates)  # forward, and two products backward
        samples += candidates
    used = clock.seconds()
    total = float(sum(parts.values()))
    print(json.dumps(used | {"cpu": total, "wall": total, "samples": samples, "sent": 0,
                             "loss": 0.0, "parts": parts}))  # fmt: skip


def _seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """CPU seconds of ``work``, the best of some times."""
    taken = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return min(taken)


def _gather(table: Tensor, ids: Tensor) -> float:
    out = torch.zeros(len(ids), WIDTH)  # written once: its pages are there
    return _seconds(lambda: torch.index_select(table, 0, ids, out=out))


def _update(table: Tensor, ids: Tensor) -> float:
    """Reads and writes each distinct row once."""
    distinct = ids.unique()
    rows = torch.ones(len(distinct), WIDTH)
    return _gather(table, distinct) + _seconds(lambda: table.index_copy_(0, distinct, rows))


def _copy(size: int) -> float:
    source = torch.zeros(max(1, size // 4))
    target = torch.zeros_like(source)
    return _seconds(lambda: target.copy_(source))


def _multiply_batched(requests: int, length: int, candidates: int) -> float:
    """(R, C, 3 W) by (R, 3 W, L), in parts that fit the cache as the step's do."""
    at_once = max(1, min(requests, EVENTS_AT_ONCE // length))
    queries = torch.ones(at_once, candidates // requests, WIDTH * len(FIELDS))
    keys = torch.ones(at_once, length, WIDTH * len(FIELDS)).transpose(1, 2)
    out = torch.zeros(at_once, candidates // requests, length)
    return _seconds(lambda: torch.bmm(queries, keys, out=out)) * requests / at_once


def _network(candidates: int) -> float:
    widths = (3 * WIDTH * len(FIELDS), *HIDDEN, 1)
    total = 0.0
    for below, above in itertools.pairwise(widths):
        rows, weight = torch.ones(candidates, below), torch.ones(below, above)
        out = torch.zeros(candidates, above)
        total += _seconds(lambda r=rows, w=weight, o=out: torch.mm(r, w, out=o))
    return total


if __name__ == "__main__":
    main()
