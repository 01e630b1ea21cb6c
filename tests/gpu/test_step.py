"""A whole step on a GPU: against the CPU's, without waiting for the device, heads in graphs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device; none is here", allow_module_level=True)

from benchmarks.gpu.floor import Shape
from benchmarks.gpu.workload import Step, make_batch, world_of_one
from modules.ranker_config import Auxiliary

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
SHAPE = Shape(candidates=64, history=50, top_k=8)
ITEMS, STEPS = 1000, 5


def losses(device: torch.device, auxiliary: Auxiliary, *, graphs: bool = False) -> Tensor:
    """Of a few steps from the start, tables and all else learning."""
    step = Step(SHAPE, device, auxiliary, items=ITEMS, learning_rate=0.01)
    if graphs:
        step.graph_heads()
    taken = [step.train(*make_batch(SHAPE, device, ITEMS, seed)) for seed in range(STEPS)]
    return torch.stack(taken).cpu()


@contextmanager
def waiting_forbidden() -> Iterator[None]:
    """An operation that waits for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("auxiliary", ["none", "sampled", "full"])
def test_it_trains_as_on_a_cpu(auxiliary: Auxiliary) -> None:
    with world_of_one(CPU):
        expected = losses(CPU, auxiliary)
    with world_of_one(CUDA):
        actual = losses(CUDA, auxiliary)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


def test_search_never_waits_for_the_device() -> None:
    pytest.importorskip("triton")
    with world_of_one(CUDA):
        step, (batch, _) = Step(SHAPE, CUDA, items=ITEMS), make_batch(SHAPE, CUDA, ITEMS)
        expected = step.search(batch)  # compiles
        with waiting_forbidden():
            found = step.search(batch)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("training", [True, False])
def test_the_head_never_waits_for_the_device(training: bool) -> None:
    with world_of_one(CUDA):
        step = Step(SHAPE, CUDA, items=ITEMS)
        step.model.train(training)
        size = SHAPE.candidates, SHAPE.representation_dim
        inputs = [torch.randn(size, device=CUDA, requires_grad=True) for _ in range(2)]
        step.ranker.head(*inputs).sum().backward()
        for rows in inputs:
            rows.grad = None
        with waiting_forbidden():
            step.ranker.head(*inputs).sum().backward()
        assert all(rows.grad.isfinite().all() for rows in inputs)


@pytest.mark.parametrize("auxiliary", ["none", "sampled", "full"])
def test_a_training_step_never_waits_for_the_device(auxiliary: Auxiliary) -> None:
    with world_of_one(CUDA):
        step = Step(SHAPE, CUDA, auxiliary, items=ITEMS)
        batch, labels = make_batch(SHAPE, CUDA, ITEMS)
        for _ in range(3):
            step.train(batch, labels)
        with waiting_forbidden():
            loss = step.train(batch, labels)
        assert loss.isfinite()


@pytest.mark.parametrize("auxiliary", ["none", "full"])
def test_heads_in_graphs_train_as_others_do(auxiliary: Auxiliary) -> None:
    with world_of_one(CUDA):
        expected = losses(CUDA, auxiliary)
        actual = losses(CUDA, auxiliary, graphs=True)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
