"""What ``analyze`` says of bfloat16 and of gradients, and that it leaves the model as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from data.store import EventStore
from modules.loss import ranking_losses
from sharding.replicated import held_shards
from tests.ranks import run_ranks
from tests.trainer.conftest import MakeRun
from tests.trainer.small_runs import EXPERIMENT, ranks_of, read
from trainer.analyses.precision import BATCHES, first_batches, precision
from trainer.analyses.subject import Subject, watch
from trainer.checkpoint import Checkpoints
from trainer.progress import Display
from trainer.state import build_state, forward


def measured(rank: int, world_size: int, run: Path, data: Path) -> dict[str, Any]:
    ranks, store = ranks_of(rank, world_size), EventStore.open(data)
    state = build_state(EXPERIMENT, store, ranks)
    position = Checkpoints(run, ranks).load(state, "best")
    subject = Subject(EXPERIMENT, store, state, position, ranks, "test")
    display = Display(shown=False)
    before = {name: tensor.clone() for name, tensor in rows_of(subject).items()}
    predictions = watch(subject, [], display)
    found = precision(subject, predictions, display)
    after = rows_of(subject)
    found["unchanged"] = all(torch.equal(before[name], after[name]) for name in before)
    return found


def rows_of(subject: Subject) -> dict[str, torch.Tensor]:
    """This rank's rows of every table."""
    tables = {
        name: weight
        for name, weight in subject.state.model.state_dict().items()
        if "embedding_bags" in name
    }
    return {table: rows for table, rows, _ in held_shards(tables)}


@pytest.fixture(scope="module")
def one(finished: MakeRun, store: Path) -> dict[str, Any]:
    return run_ranks(measured, 1, finished(1), store, timeout=120)[0]


def test_the_first_numbers_are_the_run_s(
    one: dict[str, Any], finished: MakeRun, store: Path
) -> None:
    summary = read(finished(1), "summary.json")
    assert one["auc"][0] == pytest.approx(summary["auc"], abs=1e-9)
    assert one["logloss"][0] == pytest.approx(summary["logloss"], abs=1e-9)
    exact, other = one["gradients"]["float32"], one["gradients"]["bfloat16"]
    assert len(exact["gradient_norm"]) == min(BATCHES, 8)
    assert min(exact["gradient_norm"]) > 0
    assert 0 < other["logit_difference"] < 0.1
    assert 0.9 < other["gradient_cosine"] < 1
    assert exact["not_finite_logits"] == other["not_finite_gradients"] == 0
    assert abs(one["auc"][1] - one["auc"][0]) < 0.05


def test_a_gradient_s_norm_is_that_of_a_backward_pass(
    one: dict[str, Any], finished: MakeRun, store: Path
) -> None:
    def norms(rank: int, world_size: int) -> list[float]:
        ranks, opened = ranks_of(rank, world_size), EventStore.open(store)
        state = build_state(EXPERIMENT, opened, ranks)
        position = Checkpoints(finished(1), ranks).load(state, "best")
        state.scale_learning_rates(EXPERIMENT, 0.0)
        subject = Subject(EXPERIMENT, opened, state, position, ranks, "test")
        found = []
        for batch in first_batches(subject):
            losses = ranking_losses(
                forward(state.model, batch),
                batch.labels,
                state.regularized,
                num_candidates=len(batch.labels),
                auxiliary_weight=EXPERIMENT.auxiliary_weight,
                l2=EXPERIMENT.l2,
            )
            state.model.zero_grad()
            losses.total().backward()
            dense = [p for p in state.model.parameters() if p.grad is not None]
            found.append(float(torch.nn.utils.get_total_norm([p.grad for p in dense])))
        return found

    expected = run_ranks(norms, 1, timeout=120)[0]
    assert one["gradients"]["float32"]["gradient_norm"] == pytest.approx(expected, rel=1e-5)


def test_nothing_is_updated(one: dict[str, Any]) -> None:
    assert one["unchanged"]


def test_two_ranks_find_what_one_finds(one: dict[str, Any], finished: MakeRun, store: Path) -> None:
    for two in run_ranks(measured, 2, finished(1), store, timeout=120):
        assert two["unchanged"]
        for dtype in ("float32", "bfloat16"):
            a, b = two["gradients"][dtype], one["gradients"][dtype]
            assert a["logits"] == b["logits"]
            rounding = 1e-3 if dtype == "float32" else 0.1  # that of half the rows is another
            assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=rounding)
