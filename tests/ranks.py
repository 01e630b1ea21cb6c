"""Runs one function on several gloo ranks, each a fork of the test process.

A fork inherits the imports (torch alone takes seconds), so a case costs about 0.1 s, where
torchrun takes 10 s. Start the ranks before the test does parallel work of its own: a fork copies
the locks of a thread pool but not the threads that hold them.
"""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

_FORK = multiprocessing.get_context("fork")
_GRACE = 3.0
"""Seconds left to the other ranks once one has failed: they may wait for it for ever."""


class RankError(AssertionError):
    """One or more ranks raised, died or did not answer in time."""


def run_ranks(
    function: Callable[..., T], world_size: int, *args: Any, timeout: float = 60.0
) -> list[T]:
    """Returns ``[function(rank, world_size, *args) for rank in range(world_size)]``.

    Every rank runs with one thread and an initialised gloo process group. What it returns is
    pickled: plain Python values and lists, no tensors (their shared memory ends with the rank).
    """
    with tempfile.TemporaryDirectory() as folder:
        init_method = (Path(folder) / "store").as_uri()
        processes, answers = [], []
        for rank in range(world_size):
            receive, send = _FORK.Pipe(duplex=False)
            arguments = (function, rank, world_size, args, init_method, timeout, send)
            processes.append(_FORK.Process(target=_run_rank, args=arguments))
            processes[-1].start()
            send.close()  # only the rank holds this end now: its death reads as end of file
            answers.append(receive)
        try:
            results, errors = _collect(answers, timeout)
        finally:
            _end(processes)
    if len(results) < world_size:
        raise RankError(_describe(results, errors, processes, timeout))
    return [results[rank] for rank in range(world_size)]


def _run_rank(
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    args: tuple[Any, ...],
    init_method: str,
    timeout: float,
    answer: Connection,
) -> None:
    """Runs one rank and leaves without the exit handlers inherited from the test process."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
    )
    try:
        dist.init_process_group(
            "gloo",
            init_method=init_method,
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=timeout),
        )
        dist.barrier()  # a quick rank that ends here would break the others' connecting
        result = function(rank, world_size, *args)
        if torch.is_tensor(result):
            raise TypeError("a rank returned a tensor: return .tolist() or .item() instead")
        answer.send((None, result))
        with contextlib.suppress(Exception):  # nor may it cut off the others' last collective
            dist.barrier()
    except BaseException:
        answer.send((traceback.format_exc(), None))
    finally:
        os._exit(0)


def _collect(
    answers: list[Connection], timeout: float
) -> tuple[dict[int, Any], dict[int, str | None]]:
    """Results and tracebacks by rank, until all have answered, died or run out of time.

    A rank that died without a word has no traceback but ``None``.
    """
    results: dict[int, Any] = {}
    errors: dict[int, str | None] = {}
    pending = {answer: rank for rank, answer in enumerate(answers)}
    deadline = time.monotonic() + timeout
    while pending and (ready := wait(list(pending), max(0.0, deadline - time.monotonic()))):
        for answer in ready:
            rank = pending.pop(answer)
            try:
                error, result = answer.recv()
            except EOFError:
                errors[rank] = None
            else:
                if error is None:
                    results[rank] = result
                else:
                    errors[rank] = error
        if errors:
            deadline = min(deadline, time.monotonic() + _GRACE)
    return results, errors


def _end(processes: list[BaseProcess]) -> None:
    """Waits a moment for the ranks to leave and kills those that hang."""
    deadline = time.monotonic() + 1.0
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _describe(
    results: dict[int, Any],
    errors: dict[int, str | None],
    processes: list[BaseProcess],
    timeout: float,
) -> str:
    lines = [f"{len(results)} of {len(processes)} ranks answered (timeout {timeout:g} s)."]
    for rank, process in enumerate(processes):
        if error := errors.get(rank):
            lines.append(f"rank {rank} raised:\n{error}")
        elif rank in errors:
            lines.append(f"rank {rank} died without a word; exit code {process.exitcode}.")
        elif rank not in results:
            lines.append(f"rank {rank} did not answer in time and was killed.")
    return "\n".join(lines)
