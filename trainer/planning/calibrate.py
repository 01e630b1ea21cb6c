"""Measures the machine it runs on, as an entry of the hardware catalogue.

Each measured speed is defined as the cost model uses it (sharding/costs.py), so that what the model
predicts of the measured work is what was measured.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from rich.console import Console

from data.errors import InputError
from modules.score import Score
from modules.search import Histories, Selection
from modules.search_units import ExactSearch
from modules.tables import FieldConfig
from modules.whole_tables import WholeKeys, WholeTables
from sharding.catalogue import GB, Node, load_nodes
from sharding.costs import FLOAT_BYTES, LEAST_READ, SORT_BYTES, state_bytes
from trainer.doctor.facts import memory
from trainer.planning.rank_costs import attention_bytes, search_bytes
from trainer.planning.rank_speeds import RankSpeeds, overhead_ms, rank_speeds
from trainer.planning.timing import median_seconds
from trainer.processes import quiet_dependencies

COPIED = 2**27
"""Bytes: far more than a cache holds."""
ROWS, WIDTH, LOOKUPS = 4_000_000, 16, 200_000
"""Of the table whose random rows are read and updated: 256 MB."""
SIDE = 1024
"""Of the square matrices of a product."""
BLOCK = (64, 5, 1024, 48, 20)
"""Requests, candidates of each, events of a history, width of a key, events chosen."""
MOST_PROCESSES = 64
"""Of an exchange on a machine without GPUs."""


def calibrate(out: Path, name: str = "mine", ranks: int = 0) -> None:
    """Measures this machine: copy, random rows, their update, a product, an exchange between
    processes, the overhead of a step, and what a collective takes that carries next to nothing.
    Takes about a minute.

    Example: twofold plan --calibrate --out mine.toml --name mine

    Args:
        out: TOML file to write, for --nodes of twofold plan.
        name: Of the node in it.
        ranks: Processes that exchange; 0: one a GPU, or two on a machine without.
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
    search, stock = history_shares(device, copied, tflops)
    say(f"search {search:.3f} of the copy's speed, torch's own operations {stock:.3f}")
    host = host_gbs(device) if cuda else copied
    like = load_nodes()["H100-80" if cuda else "CPU-SPR"]
    overhead = overhead_ms()
    say(f"overhead of a step {overhead:.1f} ms")
    if ranks > 1:
        between = rank_speeds(ranks, cuda, overhead)
    else:
        between = RankSpeeds(host, like.all_to_all_ms, like.all_reduce_ms)
    say(
        f"{ranks} ranks: exchange {between.exchange_gbs:.2f} GB/s, {between.all_to_all_ms:.2f} ms "
        f"an all-to-all, {between.all_reduce_ms:.2f} an all-reduce"
    )
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
        intra_gbs=_digits(between.exchange_gbs),
        inter_gbs=_digits(between.exchange_gbs),
        tflops=_digits(tflops),
        gather=_digits(gather),
        update=_digits(update),
        search=_digits(search),
        stock=_digits(stock),
        overhead_ms=_digits(overhead),
        all_to_all_ms=_digits(between.all_to_all_ms),
        all_reduce_ms=_digits(between.all_reduce_ms),
        hop_ms=like.hop_ms,
        source=f"twofold plan --calibrate, {time.strftime('%Y-%m-%d')}, {ranks} ranks, "
        f"{torch.get_num_threads()} threads each; inter_gbs taken to be as intra_gbs, hop_ms"
        f"{' and collectives' if ranks == 1 else ''} as of {like.name}",
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
    return 2 * COPIED / median_seconds(lambda: target.copy_(source), device) / GB


def host_gbs(device: torch.device) -> float:
    """From page-locked memory of the host to a GPU."""
    source = torch.ones(COPIED // FLOAT_BYTES).pin_memory()
    target = torch.empty(COPIED // FLOAT_BYTES, device=device)
    return COPIED / median_seconds(lambda: target.copy_(source, non_blocking=True), device) / GB


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
    forward = median_seconds(lambda: table(ids, offsets), device)
    both = median_seconds(lambda: table(ids, offsets).backward(gradient), device)
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
    return 2 * SIDE**3 / median_seconds(lambda: a @ a, device) / 1e12


def history_shares(device: torch.device, copied: float, tflops: float) -> tuple[float, float]:
    """Shares of the copy's speed that two things over a block of histories reach: a search as a
    model makes it, keys gathered, scored and chosen from; and attention to all events by torch's
    own operations, rows gathered, scored and summed by the softmax.
    """
    requests, candidates, length, width, k = BLOCK
    events = requests * length
    rows = torch.randperm(events, device=device)
    table = torch.randn(events, width, device=device)  # of equal scores each would be a new best
    queries = torch.randn(requests * candidates, width, device=device)
    histories = Histories.of(
        {"item": rows},
        {},
        torch.arange(requests, device=device).repeat_interleave(candidates),
        torch.full((requests,), length),
        torch.full((requests,), candidates),
    )
    keys = WholeKeys(WholeTables({"item": [table]}), histories.events)
    score = Score((FieldConfig(name="item", num_embeddings=events, attention_dim=width),))

    def search() -> Selection:
        return ExactSearch()(histories, lambda: (keys, queries), score, k)

    def attend() -> torch.Tensor:
        gathered = table.index_select(0, rows).view(requests, length, width)
        weights = queries.view(requests, candidates, width) @ gathered.transpose(1, 2)
        return weights.softmax(-1) @ gathered

    scores = events * candidates
    product = 2 * scores * width / tflops / 1e12

    def share(work: Callable[[], object], moved: float, products: int) -> float:
        seconds = median_seconds(work, device)
        return moved / max(seconds - products * product, 0.1 * seconds) / copied / GB

    return (
        share(search, search_bytes(events, scores, width), 1),
        share(attend, attention_bytes(events, scores, width), 2),
    )


def _digits(value: float) -> float:
    return float(f"{value:.3g}")
