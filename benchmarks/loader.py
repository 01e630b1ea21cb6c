"""How long does the loader take to make one batch, on one core?

    python -m benchmarks.loader

A store of long synthetic histories, in one partition and in many; batches of random requests,
made in the caller's thread. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from data.loader import RequestLoader
from data.prepare import prepare
from data.sources.synthetic import Synthetic
from data.store import EventStore

WARM_UP = 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests-per-batch", type=int, default=340)
    parser.add_argument("--partitions", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--history-lengths", type=int, nargs="+", default=[200, 800])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source = Synthetic(
        users=2500, events_per_user=1600, lengths="fixed", items=100_000, train_requests=40
    )
    print("| partitions | history | events per batch | median CPU ms | 95th percentile CPU ms |")
    print("|---|---|---|---|---|")
    for partitions in arguments.partitions:
        with tempfile.TemporaryDirectory() as folder:
            prepare(source, Path(folder) / "store", partitions=partitions)
            store = EventStore.open(Path(folder) / "store")
            for length in arguments.history_lengths:
                print(measure(store, arguments.requests_per_batch, length), flush=True)


def measure(store: EventStore, requests_per_batch: int, history_length: int) -> str:
    """The table's line for one store and history length."""
    loader = RequestLoader(
        store,
        "train",
        requests_per_batch=requests_per_batch,
        history_length=history_length,
        prefetch=0,
    )
    batches = iter(loader)
    milliseconds, events = [], []
    for _ in range(len(loader)):
        begin = time.thread_time()  # other processes on this core do not count
        batch = next(batches)
        milliseconds.append(1000 * (time.thread_time() - begin))
        events.append(int(batch.history_lengths.sum()))
    measured = milliseconds[WARM_UP:]  # the first ones bring the store into memory
    slow = statistics.quantiles(measured, n=20)[-1]
    return (
        f"| {len(store.partitions)} | {history_length} | {statistics.mean(events):,.0f} "
        f"| {statistics.median(measured):.2f} | {slow:.2f} |"
    )


if __name__ == "__main__":
    main()
