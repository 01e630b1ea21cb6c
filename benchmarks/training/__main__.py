"""What does a training step cost: samples per CPU second, memory, bytes between ranks?

    python -m benchmarks.training
    python -m benchmarks.training --histories 200 --variants plain full --rounds 1

A log as large as Taobao's in items, requests of three candidates, 2,049 candidates a batch, K 20,
16 floats a field on both sides. Each variant runs in processes of its own, all variants by turns
in every round, input included: loader, forward, backward, update. Compared are medians over the
rounds of what one round gives, so that a machine that others use too says something.

``plain`` is the straightforward design in plain PyTorch (plain.py). ``floor`` is what a step of
``none`` has to move and to multiply, at the rates of this machine in this run (floor.py). Prints
Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.training.workload import ZipfLog
from data.prepare import prepare
from trainer.provenance import commit, versions
from trainer.sweep.report import hardware

REQUESTS_PER_BATCH = 683
VARIANTS = (
    "plain",
    "full",
    "sampled",
    "sampled 20 others",
    "none",
    "full x2",
    "sampled x2",
    "none x2",
    "sampled replica x2",
    "none replica x2",
)
"""x2: two ranks of one thread each; all else one process. ``sampled`` draws as many others as the
experiment does."""
MIXED = "mixed"
"""Histories from 50 to 5,000, log-uniform."""
STEPS = {"plain": (1, 4), "full": (5, 15), "sampled": (15, 40), "none": (15, 60)}
"""Not measured: a process takes its memory in the first steps. Measured."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--histories", nargs="+", default=["200", "1000", "5000", MIXED])
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--stores", type=Path, help="where the logs are, or will be, prepared")
    arguments = parser.parse_args()
    print(f"Hardware: {hardware()}; versions: {versions()}; commit {commit()}; "
          f"threads of a process: {arguments.threads}; rounds: {arguments.rounds}\n")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for history in arguments.histories:
            stores = arguments.stores or Path(folder)
            print(table(history, _store(stores, history), arguments), flush=True)


def _store(folder: Path, history: str) -> Path:
    """The log of a table; those of one length share the longest."""
    store = folder / ("mixed" if history == MIXED else "long")
    if not store.exists():
        log = ZipfLog(lengths="log_uniform" if history == MIXED else "fixed")
        prepare(log, store, partitions=1)
    return store


def table(history: str, store: Path, arguments: argparse.Namespace) -> str:
    """All variants on histories of one length."""
    length = 5000 if history == MIXED else int(history)
    wanted = [v for v in arguments.variants if not (v == "plain" and length > 1000)]
    rounds = [
        {name: measure(name, length, store, arguments.threads) for name in ["floor", *wanted]}
        for _ in range(arguments.rounds)
    ]
    lines = [
        f"### History {history}",
        "",
        "| variant | samples per CPU s | samples per s | times `plain` | times the floor of `none` "
        "| peak MiB of a process | KiB sent per sample | loss |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]

    def median(name: str, key: str) -> float:
        return statistics.median(results[name][key] for results in rounds)

    for name in wanted:
        costs = [r[name]["cpu"] / r["floor"]["cpu"] for r in rounds]
        gains = [r["plain"]["cpu"] / r[name]["cpu"] for r in rounds] if "plain" in wanted else []
        lines.append(
            f"| {name} | {1 / median(name, 'cpu'):,.0f} | {1 / median(name, 'wall'):,.0f} "
            f"| {f'{statistics.median(gains):.1f}' if gains else '–'} "
            f"| {statistics.median(costs):.2f} | {median(name, 'peak'):,.0f} "
            f"| {median(name, 'sent') / 1024:.2f} | {median(name, 'loss'):.4f} |"
        )
    parts = rounds[0]["floor"]["parts"]
    told = ", ".join(f"{name} {1e6 * seconds:.1f}" for name, seconds in parts.items())
    floor = 1e6 * median("floor", "cpu")
    lines.append(f"\nFloor of `none`: {floor:.1f} µs of CPU a sample (first round: {told}).\n")
    return "\n".join(lines)


def measure(variant: str, length: int, store: Path, threads: int) -> dict[str, Any]:
    """One run: CPU and wall seconds per sample, MiB, bytes and loss; summed or worst of ranks."""
    name, _, ranks = variant.partition(" x")
    world_size = int(ranks or 1)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    warm_up, steps = STEPS.get(name.split()[0], (0, 1))
    module = name if name in ("plain", "floor") else "step"
    words = [
        sys.executable,
        "-m",
        f"benchmarks.training.{module}",
        name,
        store,
        length,
        REQUESTS_PER_BATCH,
        warm_up,
        steps,
    ]
    shared = {
        "OMP_NUM_THREADS": str(threads),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
    }
    processes = [
        subprocess.Popen(
            [str(word) for word in words],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{variant} failed at history {length}; its message is above.")
    results = [json.loads(text.splitlines()[-1]) for text in printed]
    samples = sum(result["samples"] for result in results)
    return {
        "cpu": sum(result["cpu"] for result in results) / samples,
        "wall": max(result["wall"] for result in results) / samples,
        "peak": max(result["peak"] for result in results),
        "sent": sum(result["sent"] for result in results) / samples,
        "loss": statistics.mean(result["loss"] for result in results),
        "parts": {k: s / samples for k, s in results[0].get("parts", {}).items()},
    }


if __name__ == "__main__":
    main()
