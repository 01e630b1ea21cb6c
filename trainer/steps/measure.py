"""Time and memory of a step, measured in this process.

DIR/config.json    the step's settings, in the form of a run's
DIR/summary.json   {"milliseconds": of the median step, "rows_per_second", "resident_bytes",
                    "peak_bytes", "steps": [milliseconds, ...], "versions"}

Memory is what the process holds more than before the step's table or network was made, without the
batches: **resident** after a step, with weights and the optimizer's state; **peak** while one
runs. Both are read from Linux's ``/proc``; elsewhere they are null.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from trainer.processes import keep_freed_memory
from trainer.provenance import commit, versions
from trainer.run_folder import RunFolder
from trainer.steps.step import Batch, Step

PROC = Path("/proc/self")


def measure(step: Step) -> dict[str, Any]:
    """What ``summary.json`` holds. Tables that are sharded want a process group of one."""
    torch.manual_seed(step.seed)
    torch.set_num_threads(step.threads)
    small = step.small()
    small.make()(small.draw())
    batches = [step.draw() for _ in range(step.repeats + 3)]
    give_back_freed_memory()
    start = resident()
    run = step.make()
    run(batches[0])  # makes the optimizer's state
    held = resident()
    forget_peak()
    run(batches[1])
    most = peak()
    keep_freed_memory()  # as a training does
    run(batches[2])
    seconds = [_timed(run, batch, step.threads) for batch in batches[3:]]
    median = statistics.median(seconds)
    return {
        "milliseconds": 1e3 * median,
        "rows_per_second": step.batch / median,
        "resident_bytes": None if start is None else held - start,
        "peak_bytes": None if start is None else most - start,
        "steps": [1e3 * of for of in seconds],
        "versions": versions(),
    }


def _timed(run: Callable[[Batch], None], batch: Batch, threads: int) -> float:
    clock = time.thread_time if threads == 1 else time.perf_counter
    begin = clock()
    run(batch)
    return clock() - begin


def give_back_freed_memory() -> None:
    """Makes every larger tensor from now on memory of its own, gone from the process once free."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # glibc's
        mallopt(_M_MMAP_THRESHOLD, 2**16)


_M_MMAP_THRESHOLD = -3  # malloc.h


def resident() -> int | None:
    """Bytes of this process once what is free has gone back to the system."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)
    return _status("VmRSS")


def forget_peak() -> None:
    """The peak is from now on."""
    if (file := PROC / "clear_refs").exists():
        file.write_text("5")


def peak() -> int | None:
    """The most bytes that this process has held; what its parent held before the start, which
    ``getrusage`` counts, is not in it.
    """
    return _status("VmHWM")


def _status(name: str) -> int | None:
    try:
        lines = (PROC / "status").read_text().splitlines()
    except OSError:  # not Linux
        return None
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def write_measurement(name: str, step: Step, folder: Path) -> None:
    """Measures, and writes both files: the summary last, by which a measurement is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").unlink(missing_ok=True)
    files = RunFolder(folder)
    config = {
        "experiment": name,
        "config": settings(step),
        "data": {},
        "commit": commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
    files.write("config.json", config)
    files.write("summary.json", measure(step))


def settings(step: Step) -> dict[str, Any]:
    """As JSON has them."""
    return TypeAdapter(type(step)).dump_python(step, mode="json")
