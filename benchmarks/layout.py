"""Are row-wise shards even, and what does it cost that hot rows lie apart?

    python -m benchmarks.layout

Counts are drawn from Zipf's law. First the load of the busiest of W blocks of rows in two orders of
ids; then the CPU time of lookups of 4,000,000 rows of 16 floats by one thread, by turns, where hot
rows lie side by side and where they are laid out. Prints Markdown tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from data.layout import even_order

VALUES, WIDTH, EVENTS = 4_000_000, 16, 100_000_000
LOOKUPS, BATCHES, TURNS = 65_536, 12, 7
WORLD_SIZES = (2, 3, 4, 8, 16, 64)


def main() -> None:
    torch.set_num_threads(1)
    print("| exponent | order | " + " | ".join(map(str, WORLD_SIZES)) + " | different rows, 8 |")
    print("|---|---|" + "---|" * (len(WORLD_SIZES) + 1))
    for exponent in (0.8, 1.0, 1.2):
        counts = zipf_counts(exponent)
        laid_out = counts[even_order(counts)]
        for name, loads in (("most frequent first", counts), ("laid out", laid_out)):
            different = 1 - np.exp(LOOKUPS * np.log1p(-loads / loads.sum()))
            cells = [busiest(loads, world_size) for world_size in WORLD_SIZES]
            row = " | ".join(f"{cell:.2f}" for cell in (*cells, busiest(different, 8)))
            print(f"| {exponent} | {name} | {row} |")
        hottest = [max(1.0, counts[0] * world_size / counts.sum()) for world_size in WORLD_SIZES]
        row = " | ".join(f"{cell:.2f}" for cell in hottest)
        print(f"| {exponent} | the hottest row alone | {row} | |")
    print("\n| lookups | side by side, ms | laid out, ms | ratio, paired: median (quartiles) |")
    print("|---|---|---|---|")
    table = torch.randn(VALUES, WIDTH)
    bags = fused_bags()
    offsets = torch.arange(LOOKUPS + 1)
    print(compare("read", lambda ids: read(table, ids, offsets[:-1])))
    print(compare("forward, backward, update", lambda ids: bags(ids, offsets).sum().backward()))


def zipf_counts(exponent: float) -> np.ndarray:
    """(values that come at all,) falling."""
    share = np.arange(1, VALUES + 1) ** -exponent
    counts = np.random.default_rng(0).poisson(EVENTS * share / share.sum())
    return np.sort(counts[counts > 0])[::-1]


def busiest(loads: np.ndarray, world_size: int) -> float:
    """Load of the busiest of ``world_size`` blocks of rows, the mean being 1."""
    rows = -(-len(loads) // world_size)
    blocks = np.add.reduceat(loads, np.arange(0, len(loads), rows))
    return float(blocks.max() * world_size / loads.sum())


def fused_bags() -> SplitTableBatchedEmbeddingBagsCodegen:
    """FBGEMM's table with the trainer's optimizer."""
    return SplitTableBatchedEmbeddingBagsCodegen(
        [(VALUES, WIDTH, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        pooling_mode=PoolingMode.SUM,
        learning_rate=0.01,
    )


def read(table: torch.Tensor, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Rows as a search reads them."""
    return torch.nn.functional.embedding_bag(ids, table, offsets, mode="sum")


def compare(name: str, look_up: Callable[[torch.Tensor], object]) -> str:
    """The line of one kind of lookups; both layouts are asked for the same values."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, VALUES + 1)
    place = np.empty(VALUES, np.int64)
    place[even_order(np.sort(rng.poisson(EVENTS * share / share.sum()))[::-1])] = np.arange(VALUES)
    batches = [rng.choice(VALUES, LOOKUPS, p=share / share.sum()) for _ in range(BATCHES)]
    times = np.zeros((TURNS, BATCHES, 2))
    for turn in range(TURNS):
        for batch, ranks in enumerate(batches):
            for layout, ids in enumerate((ranks, place[ranks])):
                times[turn, batch, layout] = seconds(look_up, torch.from_numpy(ids))
    side_by_side, laid_out = 1e3 * np.median(times, axis=(0, 1))
    low, middle, high = np.quantile(times[..., 1] / times[..., 0], [0.25, 0.5, 0.75])
    return f"| {name} | {side_by_side:.2f} | {laid_out:.2f} | {middle:.2f} ({low:.2f}-{high:.2f}) |"


def seconds(look_up: Callable[[torch.Tensor], object], ids: torch.Tensor) -> float:
    """CPU time of one call."""
    begin = time.process_time()
    look_up(ids)
    return time.process_time() - begin


if __name__ == "__main__":
    main()
