"""The compiled search kernel, against float64 and against the stock search.

Run alone, also on a machine without the rest of the project's libraries: benchmarks/gpu/run.sh.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device; none is here", allow_module_level=True)
pytest.importorskip("triton")

from benchmarks.gpu.floor import Shape
from benchmarks.gpu.workload import Step, make_batch, stock_search, world_of_one
from modules.kernels.column import Column
from modules.kernels.top_k_search import search_columns

CUDA = torch.device("cuda")
ROWS, WIDTHS = 5000, (16, 8, 24)


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with world_of_one(CUDA):
        yield


def draw_tables(dtype: torch.dtype) -> list[Tensor]:
    draws = torch.Generator().manual_seed(0)
    tables = [torch.randn(ROWS, width, generator=draws).to(CUDA) for width in WIDTHS]
    if dtype == torch.uint8:
        return [torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(table) for table in tables]
    return [table.to(dtype) for table in tables]


def numbers(table: Tensor) -> Tensor:
    """What a table stands for, in float64."""
    if table.dtype != torch.uint8:
        return table.double()
    scale, least = table[:, -8:].contiguous().view(torch.float32).double().unbind(1)
    return table[:, :-8] * scale[:, None] + least[:, None]


@pytest.mark.parametrize("k", [20, 128])
@pytest.mark.parametrize("normalized", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_it_finds_what_float64_finds(dtype: torch.dtype, normalized: int, k: int) -> None:
    draws = torch.Generator().manual_seed(k)
    lengths = torch.randint(0, 2500, (40,), generator=draws)
    counts = torch.randint(0, 8, (40,), generator=draws)
    lengths[:3] = torch.tensor([0, 1, 64])
    ids = [torch.randint(ROWS, (int(lengths.sum()),), generator=draws).to(CUDA) for _ in WIDTHS]
    queries = torch.randn(int(counts.sum()), sum(WIDTHS), generator=draws).to(CUDA)
    tables = draw_tables(dtype)
    rows, valid = search_columns(
        [*map(Column, tables, ids)], queries, lengths, counts, k, normalized
    )
    parts = [numbers(table)[of_table] for table, of_table in zip(tables, ids, strict=True)]
    if normalized:
        parts[:normalized] = [F.normalize(torch.cat(parts[:normalized], 1), dim=1)]
    keys, candidate, first = torch.cat(parts, 1), 0, 0
    for length, count in zip(lengths.tolist(), counts.tolist(), strict=True):
        own = slice(candidate, candidate + count)
        scores = queries[own].double() @ keys[first : first + length].T
        kept = min(k, length)
        assert torch.equal(valid[own].sum(1).cpu(), torch.full((count,), kept))
        chosen = scores.gather(1, rows[own, :kept] - first)
        torch.testing.assert_close(chosen, scores.topk(kept).values, rtol=1e-5, atol=1e-5)
        candidate, first = candidate + count, first + length


@pytest.mark.parametrize("replica", [None, "bfloat16", "int8"])
def test_it_finds_what_the_stock_search_finds(replica: str | None) -> None:
    shape = Shape(candidates=200, history=700, top_k=20)
    step = Step(shape, CUDA, items=ROWS, replica=replica)
    batch, _ = make_batch(shape, CUDA, items=ROWS)
    with stock_search():
        expected = step.search(batch)
    actual = step.search(batch)
    # scores that differ by rounding alone may change places
    assert (actual.sort(1).values == expected.sort(1).values).float().mean() > 0.999
