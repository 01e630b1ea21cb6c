"""Measures the machine it runs on, as an entry of the hardware catalogue.

Each measured speed is defined as the cost model uses it (sharding/costs.py), so that what the model
predicts of the measured work is what was measured.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from rich.console import Console

from data.errors import InputError
from data.loader import RequestLoader
from data.prepare import prepare
from data.sources.synthetic import Synthetic
from data.store import EventStore
from modules.ordering import highest
from sharding.catalogue import GB, Node
from sharding.costs import FLOAT_BYTES, LEAST_READ, SORT_BYTES, state_bytes
from trainer.doctor.facts import memory
from trainer.experiments import dare
from trainer.planning.rank_costs import search_bytes
from trainer.processes import process_group, quiet_dependencies
from trainer.state import build_state, train_step

REPEATS = 7
COPIED = 2**27
"""Bytes: far more than a cache holds."""
ROWS, WIDTH, LOOKUPS = 4_000_000, 16, 200_000
"""Of the table whose random rows are read and updated: 256 MB."""
SIDE = 1024
"""Of the square matrices of a product."""
BLOCK = (64, 5, 1024, 48, 20)
"""Requests, candidates of each, events of a history, width of a key, events chosen."""
SENT = 2**24
"""Bytes that a rank sends to all in an exchange."""
MOST_PROCESSES = 64
"""Of an exchange on a machine without GPUs."""
STEPS = 12
"""Of a model so small that their time is overhead."""


def calibrate(out: Path, name: str = "mine", ranks: int = 0) -> None:
    """Measures this machine: copy, random rows, their update, a product, an exchange between
    processes, and the overhead of a step. Takes about a minute.

    Example: twofold plan --calibrate --out mine.toml --name mine

    Args:
        out: TOML file to write, for --nodes of twofold plan.
        name: Of the node in it.
        ranks: Processes of the exchange; 0: one a GPU, or two on a machine without.
    """
    quiet_dependencies()
    if out.exists():
        raise InputError(f"{out} is there already: give another --out, or delete it.")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", name):
        raise InputError(f"--name wants a letter, then letters, digits and hyphens, got {name!r}.")
    most = torch.cuda.device_count() or MOST_PROCESSES
    if not 0 <= ranks <= most:
        raise InputError(f"--ranks is from 0 to {most} on this machine, got {ranks}.")
    console = Console()
    node = measure_node(name, ranks, lambda text: console.print(text))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(as_toml(node), encoding="utf-8")
    console.print(f"Written: {out}. Use it: twofold plan ... --nodes {out} --cluster 1x{name}")


def measure_node(name: str, ranks: int, say: Callable[[str], None]) -> Node:
    """All measurements; ``say`` is told each."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    ranks = ranks or (max(torch.cuda.device_count(), 1) if cuda else 2)
    copied = copy_gbs(device)
    say(f"copy {copied:.1f} GB/s")
    gather, update = row_shares(device, copied)
    say(f"random rows: {gather:.3f} of it read, {update:.3f} updated")
    tflops = product_tflops(device)
    say(f"product {tflops:.3f} TFLOP/s")
    stock = stock_share(device, copied, tflops)
    say(f"search {stock:.3f} of the copy's speed")
    host = host_gbs(device) if cuda else copied
    between = exchange_gbs(ranks, cuda) if ranks > 1 else host
    say(f"exchange of {ranks} ranks {between:.2f} GB/s")
    overhead = overhead_ms()
    say(f"overhead of a step {overhead:.1f} ms")
    total, _ = memory()
    of_device = torch.cuda.get_device_properties(0).total_memory if cuda else total / ranks
    return Node(
        name=name,
        device="cuda" if cuda else "cpu",
        devices=max(ranks, 1),
        memory_gb=_digits(of_device / GB),
        memory_gbs=_digits(copied),
        host_memory_gb=_digits(total / GB),
        host_gbs=_digits(host),
        intra_gbs=_digits(between),
        inter_gbs=_digits(between),
        tflops=_digits(tflops),
        gather=_digits(gather),
        update=_digits(update),
        stock=_digits(stock),
        overhead_ms=_digits(overhead),
        source=f"twofold plan --calibrate, {time.strftime('%Y-%m-%d')}, {ranks} ranks, "
        f"{torch.get_num_threads()} threads each; inter_gbs taken to be as intra_gbs",
    )


def as_toml(node: Node) -> str:
    """An entry as :func:`sharding.catalogue.load_nodes` reads it."""
    values = dataclasses.asdict(node)
    lines = [f"[{values.pop('name')}]"]
    for key, value in values.items():
        lines.append(f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value:g}")
    return "\n".join(lines) + "\n"


def copy_gbs(device: torch.device) -> float:
    """Read and written."""
    source = torch.ones(COPIED // FLOAT_BYTES, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / _seconds(lambda: target.copy_(source), device) / GB


def host_gbs(device: torch.device) -> float:
    """From page-locked memory of the host to a GPU."""
    source = torch.ones(COPIED // FLOAT_BYTES).pin_memory()
    target = torch.empty(COPIED // FLOAT_BYTES, device=device)
    return COPIED / _seconds(lambda: target.copy_(source, non_blocking=True), device) / GB


def row_shares(device: torch.device, copied: float) -> tuple[float, float]:
    """Shares of the copy's speed that FBGEMM's lookups of random rows and their updates reach."""
    cuda = device.type == "cuda"
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [
            (
                ROWS,
                WIDTH,
                EmbeddingLocation.DEVICE if cuda else EmbeddingLocation.HOST,
                ComputeDevice.CUDA if cuda else ComputeDevice.CPU,
            )
        ],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.01,
        device=device,
    )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(ROWS, (LOOKUPS,), generator=generator).to(device)
    offsets = torch.arange(LOOKUPS + 1, device=device)
    gradient = torch.ones(LOOKUPS, WIDTH, device=device)
    forward = _seconds(lambda: table(ids, offsets), device)
    both = _seconds(lambda: table(ids, offsets).backward(gradient), device)
    row = WIDTH * FLOAT_BYTES
    read = max(row, LEAST_READ[device.type])
    written = LOOKUPS * row / copied / GB
    distinct = len(ids.unique())
    moved = LOOKUPS * (row + SORT_BYTES) + distinct * 2 * (
        read + state_bytes("rowwise_adagrad", 1, WIDTH)
    )
    gather = LOOKUPS * read / max(forward - written, 0.1 * forward) / copied / GB
    return gather, moved / max(both - forward, 0.1 * both) / copied / GB


def product_tflops(device: torch.device) -> float:
    """Of float32 matrices."""
    a = torch.ones(SIDE, SIDE, device=device)
    return 2 * SIDE**3 / _seconds(lambda: a @ a, device) / 1e12


def stock_share(device: torch.device, copied: float, tflops: float) -> float:
    """Share of the copy's speed that a search over a block of histories reaches: keys gathered,
    scored and chosen from.
    """
    requests, candidates, length, width, k = BLOCK
    events = requests * length
    rows = torch.randperm(events, device=device)
    table = torch.ones(events, width, device=device)
    queries = torch.randn(requests, candidates, width, device=device)

    def search() -> torch.Tensor:
        keys = table.index_select(0, rows).view(requests, length, width)
        return highest(queries @ keys.transpose(1, 2), k)

    scores = events * candidates
    by_products = 2 * scores * width / tflops / 1e12
    seconds = _seconds(search, device)
    moved = search_bytes(events, scores, width)
    return moved / max(seconds - by_products, 0.1 * seconds) / copied / GB


def exchange_gbs(ranks: int, cuda: bool) -> float:
    """Bytes a second that leave a rank in an all-to-all of processes on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "seconds"
        torch.multiprocessing.spawn(
            _exchange, args=(ranks, cuda, (Path(folder) / "store").as_uri(), answer), nprocs=ranks
        )
        seconds = float(answer.read_text())
    return SENT * (ranks - 1) / ranks / seconds / GB


def _exchange(rank: int, ranks: int, cuda: bool, meeting: str, answer: Path) -> None:
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    dist.init_process_group(
        "nccl" if cuda else "gloo", init_method=meeting, rank=rank, world_size=ranks
    )
    sent = torch.ones(SENT // FLOAT_BYTES // ranks * ranks, device=device)
    received = torch.empty_like(sent)
    seconds = _seconds(
        lambda: dist.all_to_all_single(received, sent), device, now=time.perf_counter
    )
    if rank == 0:
        answer.write_text(str(seconds))
    dist.barrier()
    dist.destroy_process_group()


def overhead_ms() -> float:
    """Of a training step with next to nothing in it, in this process alone."""
    experiment = dare().changed(requests_per_batch=2, history_length=8)
    source = Synthetic(users=40, events_per_user=30, items=100, categories=5, history_needed=8)
    with tempfile.TemporaryDirectory() as folder, process_group() as ranks:
        prepare(source, Path(folder) / "store", partitions=1)
        store = EventStore.open(Path(folder) / "store")
        state = build_state(experiment, store, ranks)
        batches = iter(
            RequestLoader(store, "train", requests_per_batch=2, history_length=8, prefetch=0)
        )
        seconds, now = [], clock(ranks.device)
        for _ in range(STEPS):
            batch = next(batches).to(ranks.device)
            begin = now()
            float(train_step(state, batch, experiment, 1).total())  # waits for the device
            seconds.append(now() - begin)
    return 1e3 * statistics.median(seconds[STEPS // 3 :])


def clock(device: torch.device) -> Callable[[], float]:
    """Of one thread its own time: on a machine that is shared, what others take does not count."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone else time.perf_counter


def _seconds(
    work: Callable[[], object], device: torch.device, now: Callable[[], float] | None = None
) -> float:
    """The median of a few runs, after two to warm up; ``now`` instead of :func:`clock`."""
    now, found = now or clock(device), []
    for _ in range(REPEATS + 2):
        begin = now()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(now() - begin)
    return statistics.median(found[2:])


def _digits(value: float) -> float:
    return float(f"{value:.3g}")
