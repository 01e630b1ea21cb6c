"""The process group: one process per device, started by torchrun, TorchX or by hand."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from data.errors import InputError
from sharding.plan import PlanError

PREEMPTED = 75
"""Exit code of a job that was told to end and can be resumed: EX_TEMPFAIL of sysexits.h."""


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


class Preempted(Exception):
    """Training was told to end by SIGTERM and has saved where it stood."""


@contextlib.contextmanager
def process_group(timeout: float = 600.0) -> Iterator[Ranks]:
    """Joins the process group that the environment names, or makes one of a single process.

    NCCL with GPUs, gloo without. Always destroys the group: a process that ends with it open can
    die in its exit handlers. A user's mistake or Ctrl-C becomes one message, whoever sees it,
    and exit code 2; SIGTERM, by which torchrun ends the other ranks, an exception.

    Args:
        timeout: seconds after which a rank that waits for a lost one gives up.
    """
    patience = datetime.timedelta(seconds=timeout)
    quiet_dependencies()
    keep_freed_memory()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    store, rank, world_size = (
        next(dist.rendezvous("env://", timeout=patience))
        if "RANK" in os.environ
        else (dist.HashStore(), 0, 1)
    )
    store = dist.PrefixStore(_attempt(world_size), store)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=world_size,
        timeout=patience,
    )
    ranks = Ranks(
        rank=rank,
        world_size=world_size,
        local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        device=device,
    )
    try:
        with on_sigterm(_end), _told_once(Ends(store, rank)):
            yield ranks
    finally:
        dist.destroy_process_group()


def _attempt(world_size: int) -> str:
    """Keeps ranks that torchrun has started again from the addresses of those that died: its store
    outlives them. On several hosts the counts may differ, since only a host's own failures count;
    there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 gives each attempt a store (docs/reliability.md).
    """
    one_host = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) == world_size
    return f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0) if one_host else 0}"


@contextlib.contextmanager
def on_sigterm(handler: Callable[..., None]) -> Iterator[None]:
    """Calls ``handler`` when the process is told to end; of threads only the first is told."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _told_once(ends: Ends) -> Iterator[None]:
    """Of all ranks that end, the first one says why.

    The others may find the same mistake, or only lose their connections.
    """
    try:
        yield
    except (InputError, PlanError) as error:
        if not isinstance(error, RefusedElsewhere) and ends.first():
            print(f"twofold: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as interrupt:
        if ends.first():
            print(f"twofold: {str(interrupt) or 'Interrupted.'}", file=sys.stderr)
        raise SystemExit(2) from None
    except Preempted as error:
        if ends.first():
            print(f"twofold: {error}", file=sys.stderr)
        raise SystemExit(PREEMPTED) from None
    except Exception as error:
        if ends.first():
            if not _lost_another(error):
                raise
            print(f"twofold: {_told_of_loss(error)}", file=sys.stderr)
        raise SystemExit(1) from error
    else:
        ends.close()


class Ends:
    """Which rank ends first, and so has the word. All ranks ask by the store of their rendezvous.

    Without torchrun rank 0 holds it, and takes it along when it ends. A thread on the others
    sleeps until the first word is said: then they know whether rank 0 said one or was killed.
    """

    _KEY = "ended"

    def __init__(self, store: dist.Store, rank: int) -> None:
        self._store = store
        self._heard = False
        self._listener = threading.Thread(target=self._listen, args=(store.clone(),), daemon=True)
        if rank > 0:
            self._listener.start()

    def _listen(self, own: dist.Store) -> None:
        with contextlib.suppress(dist.DistError, RuntimeError):
            own.wait([self._KEY], datetime.timedelta(days=3650))
            self._heard = True

    def close(self) -> None:
        """After a run that went well. A listener that waits on when rank 0 takes the store along
        would abort this process as it shuts down, with its work done.
        """
        self.first()  # wakes it
        if self._listener.ident is not None:
            self._listener.join(_ANSWER)

    def first(self) -> bool:
        """Has no other rank ended before?

        Where the store's host is cut off ``add`` never returns, whatever the store's timeout: it is
        called in a thread, which is left behind after a while.
        """
        answers: list[bool] = []

        def ask() -> None:
            with contextlib.suppress(dist.DistError):
                answers.append(self._store.add(self._KEY, 1) == 1)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(_ANSWER)
        return answers[0] if answers else not self._heard


_ANSWER = 10.0
"""Seconds that a rank's store has for an answer."""
_LOST = re.compile(
    r"gloo|Connection (closed|reset|refused)|Broken pipe|NCCL|[Tt]imed out|TCPStore|wait timeout"
)


def _lost_another(error: BaseException) -> bool:
    """Does a rank say by this that another one does not answer?"""
    several = dist.is_initialized() and dist.get_world_size() > 1
    return several and isinstance(error, RuntimeError) and bool(_LOST.search(str(error)))


def _told_of_loss(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return (
        f"Rank {dist.get_rank()} of {dist.get_world_size()} has lost another rank: it was killed, "
        "its host is gone, or it failed, and then says why itself. Complete checkpoints are kept: "
        f"start all ranks again with --resume. ({words[:200]})"
    )


def _end(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def quiet_dependencies() -> None:
    """Silences warnings of the libraries about their own ways of calling each other."""
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    logging.getLogger("torch.fx").setLevel(logging.ERROR)
    for module in ("torchrec", "torch.distributed"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
    warnings.filterwarnings("ignore", message=".*(ShardedTensor|is_fx_tracing).*")
    # the gradients of replicated tables, which tests compare with an unsharded model's
    warnings.filterwarnings("ignore", message="fbgemm::dense_embedding_codegen_lookup_function")


def keep_freed_memory() -> None:
    """Lets glibc keep large blocks that are freed, instead of giving them back to the system: a
    step needs them again, and faulting the pages in anew costs up to a third of it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent where libc is another
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def on_first_rank(
    ranks: Ranks, action: Callable[[], None], group: dist.ProcessGroup | None = None
) -> None:
    """Runs ``action`` on rank 0; where it is refused there, every rank ends with it.

    Args:
        ranks: this process.
        action: what to do.
        group: of all ranks, on gloo; None: the default one.

    Raises:
        InputError: rank 0's own; on the others a RefusedElsewhere.
    """
    refused: InputError | None = None
    dist.barrier(group)  # where a rank has ended already, nothing is begun
    if ranks.first:
        try:
            action()
        except InputError as error:
            refused = error
    failed = torch.tensor(int(refused is not None), device="cpu" if group else ranks.device)
    dist.broadcast(failed, src=0, group=group)
    if refused:
        raise refused
    if failed:
        raise RefusedElsewhere("Rank 0 ended the run; its message says why.")


def any_rank(flag: bool, device: torch.device) -> bool:
    """Is it so on any rank?"""
    on_some = torch.tensor(int(flag), device=device)
    dist.all_reduce(on_some, op=dist.ReduceOp.MAX)
    return bool(on_some)


def gather_lines(
    lines: list[str], device: torch.device | str = "cpu", group: dist.ProcessGroup | None = None
) -> list[str]:
    """Of each rank -> of all ranks, in their order. A line has no line break in it."""
    text = "".join(f"{line}\n" for line in lines).encode()
    own = torch.tensor([*text], dtype=torch.uint8, device=device)
    return bytes(gather_rows(own, group).tolist()).decode().splitlines()


def gather_rows(rows: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """(n, ...) of each rank -> those of all ranks, in the order of the ranks.

    Ranks may have different numbers of rows. Tensors only: nothing is pickled.
    """
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count, group=group)
    longest = int(torch.cat(counts).max())
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = [torch.zeros_like(padded) for _ in counts]
    dist.all_gather(gathered, padded, group=group)
    return torch.cat([part[: int(n)] for part, n in zip(gathered, counts, strict=True)])
