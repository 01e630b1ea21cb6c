"""How far from its floor is a step on this GPU?

    python -m benchmarks.gpu
    python -m benchmarks.gpu --rehearse        # small, on a CPU too

Copy and product rates of this machine in this run, the floors that follow (floor.py), and then the
search alone, serving, and training steps without auxiliary and with the full one: with stock
operations and with the search kernel, tables of several types, heads in CUDA graphs or not. The
model is sharded in a world of one, as the trainer would; batches lie on the device. Every line is
a measurement of its own: one that fails says why and the others go on. Prints Markdown, a line at
a time, so that a run which is cut short has told what it knows.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import platform
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchrec

from benchmarks.gpu.floor import Ceilings, Mode, Shape, measure_ceilings, median_seconds, seconds
from benchmarks.gpu.workload import ITEMS, Step, make_batch, stock_search, world_of_one
from modules.kernels.choice import kernel_on

SHAPES = tuple(Shape(candidates=4096, history=history) for history in (1000, 200))
REHEARSED = (Shape(candidates=6, history=30, top_k=5),)
TARGETS: dict[Mode, float] = {"serve": 2.0, "none": 2.5, "full": 3.0}
"""Times the floor."""
TILES = (32, 64, 128)
BEGIN = time.perf_counter()
LATEST_START = 300.0
"""Seconds from the beginning after which no line is begun, so that a call of ten minutes ends."""


class Table:
    """Lines of one shape."""

    def __init__(self, shape: Shape, ceilings: Ceilings, device: torch.device) -> None:
        self.shape, self.ceilings, self.device = shape, ceilings, device
        print(f"\n### {shape.candidates:,} candidates, history {shape.history:,}\n")
        print("| step | search | floor ms | ms | times the floor | target | peak MiB |")
        print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")

    def line(self, mode: Mode, how: str, work: Callable[[], object], number: int = 4) -> None:
        """Measures ``work``; ``number``: bytes of one number of the tables that it searches."""
        told = f"| {mode} | {how} "
        if time.perf_counter() - BEGIN > LATEST_START:
            print(told + "| – | not begun: out of time | | | |", flush=True)
            return
        shape = dataclasses.replace(self.shape, bytes_per_number=number)
        floor = seconds(mode, shape, self.ceilings)
        try:
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            taken = median_seconds(work, self.device)
        except Exception as error:
            traceback.print_exc()
            print(told + f"| {1e3 * floor:.3f} | {reason(error)} | | | |", flush=True)
            return
        peak = torch.cuda.max_memory_allocated() / 2**20 if self.device.type == "cuda" else 0.0
        print(
            told + f"| {1e3 * floor:.3f} | {1e3 * taken:.3f} | {taken / floor:.2f} "
            f"| {TARGETS.get(mode, '')} | {peak:,.0f} |",
            flush=True,
        )


def reason(error: Exception) -> str:
    """One cell."""
    return f"{type(error).__name__}: {error}".replace("\n", " ").replace("|", "/")[:160]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes, to see that it runs")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    items = 1000 if arguments.rehearse else ITEMS
    ceilings = measure_ceilings(device, 2**20 if arguments.rehearse else 2**32)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    runs = kernel_on(device) == "triton"
    kernel = "" if runs else "; the GPU's search kernel does not run here"
    print(f"Hardware: {name}; torch {torch.__version__}, torchrec {torchrec.__version__}{kernel}")
    print(
        f"\nCopy {ceilings.copy / 1e12:.3f} TB/s, product {ceilings.multiply / 1e12:.2f} TFLOP/s "
        f"(bfloat16 {ceilings.multiply_bfloat16 / 1e12:.2f})."
    )
    with world_of_one(device):
        for shape in REHEARSED if arguments.rehearse else SHAPES:
            table = Table(shape, ceilings, device)
            batch, labels = make_batch(shape, device, items)
            measure_searches(table, batch, items)
            measure_steps(table, batch, labels, items)
    print(f"\n{time.perf_counter() - BEGIN:.0f} s in all.")


def measure_searches(table: Table, batch: dict[str, Any], items: int) -> None:
    """Alone, in tables of each type; the kernel also with other tiles."""
    for replica, number in ((None, 4), ("bfloat16", 2), ("int8", 1)):
        with step(table, items, replica=replica) as of_type:
            kind = replica or "float32"
            for how, context in both():
                with context:
                    table.line("search", f"{how}, {kind}", lambda: of_type.search(batch), number)
            if replica is None and kernel_on(table.device) == "triton":
                measure_tiles(table, of_type, batch)


def measure_tiles(table: Table, of_type: Step, batch: dict[str, Any]) -> None:
    """What the constant of the kernel should be."""
    from modules.kernels import top_k_search

    usual = top_k_search.TILE
    for tile in TILES:
        top_k_search.TILE = tile
        table.line("search", f"kernel, {tile} events a tile", lambda: of_type.search(batch))
    top_k_search.TILE = usual


def measure_steps(table: Table, batch: dict[str, Any], labels: torch.Tensor, items: int) -> None:
    """Serving and training, heads in graphs or not."""
    with step(table, items) as trained:
        trained.model.eval()
        for how, context in both():
            with context:
                table.line("serve", how, lambda: trained.serve(batch))
        with_graphs(table, "serve", trained, lambda: trained.serve(batch))
    for auxiliary in ("none", "full"):
        with step(table, items, auxiliary=auxiliary) as trained:
            for how, context in both():
                with context:
                    table.line(auxiliary, how, lambda: trained.train(batch, labels))
            tell_waits(table, auxiliary, lambda: trained.train(batch, labels))
            with_graphs(table, auxiliary, trained, lambda: trained.train(batch, labels))


def both() -> list[tuple[str, contextlib.AbstractContextManager[Any]]]:
    """Stock operations, and the kernel where it runs."""
    return [("stock", stock_search()), ("kernel", contextlib.nullcontext())]


@contextlib.contextmanager
def step(table: Table, items: int, **settings: Any) -> Iterator[Step]:
    """A model, whose memory is given back."""
    made = Step(table.shape, table.device, items=items, **settings)
    yield made
    del made
    gc.collect()
    if table.device.type == "cuda":
        torch.cuda.empty_cache()


def with_graphs(table: Table, mode: Mode, of: Step, work: Callable[[], object]) -> None:
    """The same with heads in CUDA graphs."""
    if table.device.type != "cuda":
        return
    try:
        of.graph_heads()
    except Exception as error:
        traceback.print_exc()
        print(f"| {mode} | kernel, heads in graphs | | {reason(error)} | | | |", flush=True)
        return
    table.line(mode, "kernel, heads in graphs", work)


def tell_waits(table: Table, mode: Mode, work: Callable[[], object]) -> None:
    """Where the host waits for the device within a step."""
    if table.device.type != "cuda":
        return
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [
        "/".join(w.filename.split("/")[-2:]) + f":{w.lineno}"
        for w in caught
        if "synchronizing" in str(w.message)
    ]
    told = ", ".join(sorted({*places})) or "nowhere"
    print(f"| {mode} | host waits {len(places)} times: {told} | | | | | |", flush=True)


if __name__ == "__main__":
    main()
