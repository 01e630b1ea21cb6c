"""How do tables grow with their ids, and crossing networks with their fields?

    python -m benchmarks.crossing_scale
    python -m benchmarks.crossing_scale --quick

First (X4): a step of one table that looks up ``batch * fields`` ids, pushes a gradient back and
updates, by dense Adam, by Adam of the rows looked up, and by this project's fused row-wise
Adagrad. Then (X4b): forward and backward of form B, form A and DCN-V2 for more and more fields.
Variants take turns. With one thread the clock is the thread's own. Memory is resident memory,
of a second pass in a process of its own. Prints Markdown tables.

Shapes: S candidates, F fields, N ids, D width.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv

from modules.crossing.cross import CrossNetV2
from modules.crossing.separation import Separation
from sharding.apply import TableOptimizer
from sharding.plan import FusedBagSharder, ShardingConfig, choose_plan

LEARNING_RATE = 0.01
COMPRESSION = 10
"""Ids for each row of the hashed and of the remainder tables."""


class PlainTable:
    """``nn.Embedding`` with an optimizer of torch's."""

    def __init__(self, table: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.table, self.optimizer = table, optimizer

    def step(self, ids: Tensor, gradient: Tensor) -> None:
        """(n,) ids and the (n, D) gradient of their rows."""
        self.optimizer.zero_grad()
        self.table(ids).backward(gradient)
        self.optimizer.step()


class FusedTable:
    """A table as the trainer has it, on a plan for one rank: updated within the backward pass."""

    def __init__(self, ids: int, width: int) -> None:
        table = EmbeddingBagConfig(
            name="table", num_embeddings=ids, embedding_dim=width, feature_names=["id"]
        )
        bags = nn.Sequential(EmbeddingBagCollection(tables=[table], device=torch.device("meta")))
        plan = choose_plan(
            bags,
            world_size=1,
            local_world_size=1,
            device_type="cpu",
            lookups_per_rank=4096,
            config=ShardingConfig(),
        )
        self.model = DistributedModelParallel(
            bags,
            env=ShardingEnv.from_process_group(dist.GroupMember.WORLD),
            plan=plan,
            sharders=[FusedBagSharder(fused_params=TableOptimizer().fused_params("cpu"))],
            device=torch.device("cpu"),
        )

    def step(self, ids: Tensor, gradient: Tensor) -> None:
        """(n,) ids and the (n, D) gradient of their rows."""
        keyed = KeyedJaggedTensor(keys=["id"], values=ids, lengths=torch.ones_like(ids))
        self.model(keyed).wait().values().backward(gradient)


class TwoHashes(nn.Module):
    """An id is the sum of two rows of a table with a tenth of the rows."""

    def __init__(self, ids: int, width: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(ids // COMPRESSION, width, sparse=True)

    def forward(self, ids: Tensor) -> Tensor:
        """(n,) -> (n, D)."""
        buckets = self.rows.num_embeddings
        # two odd multipliers, high bits: multiply-shift hashing
        first, second = ((ids * odd % 2**31) * buckets >> 31 for odd in (0x9E3779B1, 0x85EBCA77))
        return self.rows(first) + self.rows(second)


class QuotientRemainder(nn.Module):
    """An id is the product of a row of its remainder and one of its quotient
    (https://arxiv.org/abs/1909.02107).
    """

    def __init__(self, ids: int, width: int) -> None:
        super().__init__()
        self.remainders = nn.Embedding(ids // COMPRESSION, width, sparse=True)
        self.quotients = nn.Embedding(COMPRESSION + 1, width, sparse=True)

    def forward(self, ids: Tensor) -> Tensor:
        """(n,) -> (n, D)."""
        buckets = self.remainders.num_embeddings
        return self.remainders(ids % buckets) * self.quotients(ids // buckets)


def _sparse(table: nn.Module) -> PlainTable:
    return PlainTable(table, torch.optim.SparseAdam(list(table.parameters()), lr=LEARNING_RATE))


def _dense(ids: int, width: int, *, fused: bool) -> PlainTable:
    table = nn.Embedding(ids, width)
    adam = torch.optim.Adam(table.parameters(), lr=LEARNING_RATE, fused=fused)
    return PlainTable(table, adam)


TABLES: dict[str, Callable[[int, int], PlainTable | FusedTable]] = {
    "dense Adam": lambda n, d: _dense(n, d, fused=False),
    "dense Adam, one kernel": lambda n, d: _dense(n, d, fused=True),
    "Adam of rows": lambda n, d: _sparse(nn.Embedding(n, d, sparse=True)),
    "fused row-wise Adagrad": FusedTable,
    "two hashes, Adam of rows": lambda n, d: _sparse(TwoHashes(n, d)),
    "quotient-remainder, Adam of rows": lambda n, d: _sparse(QuotientRemainder(n, d)),
}
"""Name -> how to make it for N ids and width D."""

# rows of a batch, relative to --batch: full filters of 160 fields take minutes otherwise
NETWORKS: dict[str, tuple[float, Callable[[int, int], nn.Module]]] = {
    "B": (1, lambda f, d: Separation(f, d, 3, form="cross", residual=True, layer_bias=True)),
    "DCN-V2": (1, lambda f, d: CrossNetV2(f, d, 3)),
    "A": (1 / 16, lambda f, d: Separation(f, d, 3)),
}
PREDICTED = {"B": "2", "DCN-V2": "2", "A": "3, as H = F"}


@dataclass(frozen=True)
class Sizes:
    """What is swept."""

    batch: int
    fields: int
    ids: list[int]
    widths: list[int]
    field_counts: list[int]
    rounds: int

    def lookups(self, ids: int) -> Tensor:
        """(S F,) ids, log-uniform within each field's share of all, as Zipf's law has it."""
        share = ids // self.fields
        draws_SF = share ** torch.rand(self.batch, self.fields, dtype=torch.float64)
        return (draws_SF.long() - 1 + share * torch.arange(self.fields)).flatten()


FULL = Sizes(
    4096, 39, [10_000, 30_000, 100_000, 300_000, 1_000_000], [12, 16, 64], [10, 20, 39, 80, 160], 3
)
QUICK = Sizes(512, 39, [10_000, 100_000], [16], [10, 20], 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, in half a minute")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    sizes = QUICK if arguments.quick else FULL
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    if arguments.memory:
        print(json.dumps(all_memory(sizes)))
    else:
        clock = time.thread_time if arguments.threads == 1 else time.perf_counter
        report_tables(sizes, clock, _memory_in_child(arguments))
        report_fields(sizes, clock)
    dist.destroy_process_group()


def report_tables(sizes: Sizes, clock: Callable[[], float], memory: dict[str, dict]) -> None:
    """X4: a line for each width and variant, a column for each number of ids."""
    header = "".join(f"| {n:,} ids " for n in sizes.ids)
    seconds = {
        width: {n: time_tables(sizes, n, width, clock) for n in sizes.ids} for width in sizes.widths
    }
    distinct = "".join(f"| {len(sizes.lookups(n).unique()):,} " for n in sizes.ids)
    print(f"Rows looked up, different ones: {distinct}|\n")
    print(
        f"Milliseconds of a step\n\n| width | table {header}| slope | slope of the last two "
        "| rows/s at the most ids |"
    )
    print("|---" * (len(sizes.ids) + 5) + "|")
    for width in sizes.widths:
        for name in TABLES:
            steps = [statistics.median(seconds[width][n][name]) for n in sizes.ids]
            cells = "".join(f"| {1e3 * step:.1f} " for step in steps)
            print(
                f"| {width} | {name} {cells}| {slope(sizes.ids, steps):.2f} "
                f"| {slope(sizes.ids[-2:], steps[-2:]):.2f} | {sizes.batch / steps[-1]:,.0f} |"
            )
    for what in ("resident", "peak"):
        print(f"\nMB, {what}\n\n| width | table {header}| slope of the last two |")
        print("|---" * (len(sizes.ids) + 3) + "|")
        for width in sizes.widths:
            for name in TABLES:
                used = [memory[f"{name} {n} {width}"][what] for n in sizes.ids]
                cells = "".join(f"| {of / 1e6:.1f} " for of in used)
                print(f"| {width} | {name} {cells}| {slope(sizes.ids[-2:], used[-2:]):.2f} |")


def time_tables(
    sizes: Sizes, ids: int, width: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Variant -> seconds of a step, for each round."""
    tables = {name: make(ids, width) for name, make in TABLES.items()}
    seconds: dict[str, list[float]] = {name: [] for name in tables}
    for turn in range(sizes.rounds + 1):
        looked_up = sizes.lookups(ids)
        gradient = torch.randn(len(looked_up), width)
        for name, table in tables.items():
            begin = clock()
            table.step(looked_up, gradient)
            if turn:  # the first makes the optimizers' states
                seconds[name].append(clock() - begin)
    return seconds


def all_memory(sizes: Sizes) -> dict[str, dict[str, int]]:
    """Variant, ids, width -> bytes that a table and its optimizer hold, and those of a step."""
    used = {}
    for width in sizes.widths:
        for ids in sizes.ids:
            looked_up = sizes.lookups(ids)
            gradient = torch.randn(len(looked_up), width)
            for name, make in TABLES.items():
                make(100, width).step(torch.arange(100), gradient[:100])  # libraries' own memory
                gc.collect()
                start = _resident("VmRSS")
                table = make(ids, width)
                table.step(looked_up, gradient)
                if isinstance(table, PlainTable):
                    table.optimizer.zero_grad()
                gc.collect()
                held = _resident("VmRSS") - start
                Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
                table.step(looked_up, gradient)
                peak = _resident("VmHWM") - start
                used[f"{name} {ids} {width}"] = {"resident": held, "peak": peak}
                del table
                gc.collect()
    return used


def _memory_in_child(arguments: argparse.Namespace) -> dict[str, dict[str, int]]:
    command = [sys.executable, "-m", "benchmarks.crossing_scale", "--memory"]
    command += [f"--threads={arguments.threads}", *(["--quick"] if arguments.quick else [])]
    # every tensor is then memory of its own, which goes back to the system when it is freed
    malloc = {"MMAP_MAX": 2**20, "MMAP_THRESHOLD": 2**16, "TRIM_THRESHOLD": 2**17}
    environment = os.environ | {f"MALLOC_{key}_": str(value) for key, value in malloc.items()}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _resident(what: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if what in line)
    return 1024 * int(line.split()[1])


def report_fields(sizes: Sizes, clock: Callable[[], float]) -> None:
    """X4b: milliseconds of forward and backward, and the slope in the fields."""
    header = "".join(f"| {fields} fields " for fields in sizes.field_counts)
    print(
        f"\nMilliseconds of forward and backward for 1,000 rows, width 16\n\n"
        f"| network | rows {header}| slope | slope of the last two | predicted |"
    )
    print("|---" * (len(sizes.field_counts) + 5) + "|")
    for name, (share, make) in NETWORKS.items():
        rows = int(share * sizes.batch)
        steps = []
        for fields in sizes.field_counts:
            network, x = make(fields, 16), torch.randn(rows, fields, 16, requires_grad=True)
            steps.append(1e6 / rows * _time_network(network, x, sizes.rounds, clock))
        cells = "".join(f"| {step:.1f} " for step in steps)
        last = slope(sizes.field_counts[-2:], steps[-2:])
        print(
            f"| {name} | {rows:,} {cells}| {slope(sizes.field_counts, steps):.2f} | {last:.2f} "
            f"| {PREDICTED[name]} |",
            flush=True,
        )


def _time_network(network: nn.Module, x: Tensor, rounds: int, clock: Callable[[], float]) -> float:
    """Median seconds of forward and backward."""
    seconds = []
    for turn in range(rounds + 1):
        network.zero_grad()
        x.grad = None
        begin = clock()
        network(x).sum().backward()
        if turn:
            seconds.append(clock() - begin)
    return statistics.median(seconds)


def slope(sizes: list[int], values: list[float]) -> float:
    """Least squares of the logarithms."""
    x, y = ([math.log(max(value, 1e-9)) for value in side] for side in (sizes, values))
    return statistics.linear_regression(x, y).slope


if __name__ == "__main__":
    main()
