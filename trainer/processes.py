"""The process group: one process per device, started by torchrun, TorchX or by hand."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from data.errors import InputError
from sharding.plan import PlanError

TIMEOUT = datetime.timedelta(minutes=10)
"""After which a rank that waits for a lost one gives up."""


@dataclass(frozen=True)
class Ranks:
    """Who this process is."""

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Rank 0 writes files and talks to the user."""
        return self.rank == 0


class RefusedElsewhere(InputError):
    """Another rank refused, and says why."""


@contextlib.contextmanager
def process_group() -> Iterator[Ranks]:
    """Joins the process group that the environment names, or makes one of a single process.

    NCCL with GPUs, gloo without. Always destroys the group: a process that ends with it open can
    die in its exit handlers. A user's mistake or Ctrl-C becomes one message, whoever sees it,
    and exit code 2; SIGTERM, by which torchrun ends the other ranks, an exception.
    """
    quiet_dependencies()
    keep_freed_memory()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    store, rank, world_size = (
        next(dist.rendezvous("env://", timeout=TIMEOUT))
        if "RANK" in os.environ
        else (dist.HashStore(), 0, 1)
    )
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=world_size,
        timeout=TIMEOUT,
    )
    ranks = Ranks(
        rank=rank,
        world_size=world_size,
        local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        device=device,
    )
    before = signal.signal(signal.SIGTERM, _end)
    try:
        with _told_once(store):
            yield ranks
    finally:
        signal.signal(signal.SIGTERM, before)
        dist.destroy_process_group()


@contextlib.contextmanager
def _told_once(store: dist.Store) -> Iterator[None]:
    """Of all ranks that end, the first one says why.

    The others may find the same mistake, or only lose their connections.
    """
    try:
        yield
    except (InputError, PlanError) as error:
        if not isinstance(error, RefusedElsewhere) and _first(store):
            print(f"twofold: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as interrupt:
        if _first(store):
            print(f"twofold: {str(interrupt) or 'Interrupted.'}", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as error:
        if _first(store):
            raise
        raise SystemExit(1) from error


def _first(store: dist.Store) -> bool:
    """Is this the first rank to end?"""
    try:
        return store.add("ended", 1) == 1
    except dist.DistError:  # the rank that holds the store is gone already
        return False


def _end(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def quiet_dependencies() -> None:
    """Silences warnings of the libraries about their own ways of calling each other."""
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    logging.getLogger("torch.fx").setLevel(logging.ERROR)
    for module in ("torchrec", "torch.distributed"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
    warnings.filterwarnings("ignore", message=".*(ShardedTensor|is_fx_tracing).*")


def keep_freed_memory() -> None:
    """Lets glibc keep large blocks that are freed, instead of giving them back to the system: a
    step needs them again, and faulting the pages in anew costs up to a third of it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent where libc is another
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def on_first_rank(ranks: Ranks, action: Callable[[], None]) -> None:
    """Runs ``action`` on rank 0; where it is refused there, every rank ends with it.

    Raises:
        InputError: rank 0's own; on the others a RefusedElsewhere.
    """
    refused: InputError | None = None
    dist.barrier()  # where a rank has ended already, nothing is begun
    if ranks.first:
        try:
            action()
        except InputError as error:
            refused = error
    failed = torch.tensor(int(refused is not None), device=ranks.device)
    dist.broadcast(failed, src=0)
    if refused:
        raise refused
    if failed:
        raise RefusedElsewhere("Rank 0 ended the run; its message says why.")


def gather_rows(rows: Tensor) -> Tensor:
    """(n, ...) of each rank -> those of all ranks, in the order of the ranks.

    Ranks may have different numbers of rows. Tensors only: nothing is pickled.
    """
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    longest = int(torch.cat(counts).max())
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = [torch.zeros_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[: int(n)] for part, n in zip(gathered, counts, strict=True)])
