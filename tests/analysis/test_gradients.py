"""The recorder against autograd on two explicit copies of a table, and its numbers by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from analysis.gradients import GradientRecorder, summarize
from modules.bags import initialize_tables_
from modules.loss import ranking_losses, regularized_parameters
from modules.ranker import LifelongRanker, RankerConfig
from tests.batches import CATEGORIES, collate, fields, random_requests
from tests.ranks import run_ranks

CONFIG = RankerConfig(top_k=4, auxiliary_others=3, hidden=(5,), auxiliary_hidden=(5,))


def ranker(sharing: str, auxiliary: str) -> LifelongRanker:
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, sharing=sharing, auxiliary=auxiliary)
    std = {"attention_init_std": 0.5, "representation_init_std": 0.5}
    model = LifelongRanker(config, fields(**std))
    initialize_tables_(model.tables, seed=1)
    return model


def backward(model: LifelongRanker, requests: list[Any], num_candidates: int) -> None:
    arguments, labels = collate(requests)
    losses = ranking_losses(
        model(**arguments),
        labels,
        regularized_parameters(model),
        num_candidates=num_candidates,
        auxiliary_weight=1.0,
        l2=1e-6,
    )
    model.zero_grad()
    losses.total().backward()


def record(model: LifelongRanker, steps: int, take: slice = slice(None)) -> GradientRecorder:
    """``steps`` steps without an update; this rank's part of each batch."""
    recorder = GradientRecorder(model.tables, model.fields, "category", steps)
    for step in range(steps):
        requests = random_requests(step, 12)
        candidates = sum(len(request["labels"]) for request in requests)
        world_size = len(requests) // len(requests[take])
        backward(model, requests[take], candidates / world_size)
        recorder.end_of_step()
    return recorder


def copies() -> LifelongRanker:
    """Decoupled tables that start equal: two copies of the shared ones (DARE's own measurement)."""
    shared, two = ranker("shared", "full"), ranker("decoupled", "full")
    of_shared = dict(shared.tables.named_parameters())
    with torch.no_grad():
        for name, weight in two.tables.named_parameters():
            field = name.split(".")[-2].removeprefix("attention_").removeprefix("representation_")
            source = next(w for n, w in of_shared.items() if n.split(".")[-2] == f"shared_{field}")
            weight.copy_(source)
    dense = {n: w for n, w in shared.state_dict().items() if not n.startswith("tables.")}
    two.load_state_dict(dense, strict=False)
    return two


def table(model: LifelongRanker, name: str) -> Tensor:
    return next(w for n, w in model.tables.named_parameters() if n.split(".")[-2] == name)


def expected_record(model: LifelongRanker) -> tuple[list[float], list[int]]:
    """Of one step, from the gradients of the two copies, row by row."""
    norms, cosines = ([], []), []
    for row in range(CATEGORIES):
        g_A, g_R = (
            table(model, f"{side}_category").grad[row].double()
            for side in ("attention", "representation")
        )
        norms[0].append(float(g_A.norm()))
        norms[1].append(float(g_R.norm()))
        if g_A.norm() > 0 and g_R.norm() > 0:
            cosines.append(float(g_A @ g_R / g_A.norm() / g_R.norm()))
    means = [sum(norm) / CATEGORIES for norm in norms]
    return [*means, sum(cosines) / len(cosines)], [sum(c < 0 for c in cosines), len(cosines)]


def test_one_shared_table_gives_the_gradients_of_two_copies() -> None:
    shared, two = ranker("shared", "full"), copies()
    found = record(shared, 1).close()
    requests = random_requests(0, 12)
    backward(two, requests, sum(len(request["labels"]) for request in requests))
    (norm_A, norm_R, cosine), (negative, pairs) = expected_record(two)
    assert found.attention_norm == pytest.approx([norm_A], rel=1e-4)
    assert found.representation_norm == pytest.approx([norm_R], rel=1e-4)
    assert found.domination == pytest.approx(norm_R / norm_A, rel=1e-4)
    assert found.mean_cosine == pytest.approx([cosine], rel=1e-3)
    assert found.conflicting_pairs == pytest.approx(negative / pairs)
    assert pairs > 2


@pytest.mark.parametrize("auxiliary", ["full", "sampled", "none"])
@pytest.mark.parametrize("sharing", ["shared", "decoupled"])
def test_the_two_parts_add_up_to_what_the_tables_get(sharing: str, auxiliary: str) -> None:
    model = ranker(sharing, auxiliary)
    recorder = GradientRecorder(model.tables, model.fields, "category", 1)
    requests = random_requests(3, 12)
    backward(model, requests, 20)
    attention, representation = recorder._sums
    if sharing == "shared":
        expected = table(model, "shared_category").grad.double()
        torch.testing.assert_close(attention + representation, expected, rtol=1e-4, atol=1e-7)
    else:
        for side, found in (("attention", attention), ("representation", representation)):
            expected = table(model, f"{side}_category").grad.double()
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_watching_changes_no_gradient() -> None:
    watched, alone = ranker("shared", "sampled"), ranker("shared", "sampled")
    record(watched, 1)
    requests = random_requests(0, 12)
    backward(alone, requests, sum(len(request["labels"]) for request in requests))
    for (name, a), (_, b) in zip(watched.named_parameters(), alone.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name, rtol=1e-5, atol=1e-8)


def test_after_its_steps_it_watches_no_more() -> None:
    model = ranker("shared", "none")
    recorder = record(model, 2)
    backward(model, random_requests(5, 4), 8)
    recorder.end_of_step()
    assert recorder.close().steps == 2


def test_two_ranks_find_what_one_finds() -> None:
    # batch norm of each rank has statistics of its own here: none in the way
    def measure(rank: int, world_size: int) -> dict[str, Any]:
        model = ranker("shared", "none")
        model.head.layers[0] = torch.nn.Identity()
        size = 12 // world_size
        take = slice(rank * size, (rank + 1) * size)
        return record(model, 3, take).close().to_json()

    alone = run_ranks(measure, 1)[0]
    for found in run_ranks(measure, 2):
        for name in ("attention_norm", "representation_norm", "mean_cosine"):
            assert found[name] == pytest.approx(alone[name], rel=1e-3), name
        assert found["conflicting_pairs"] == alone["conflicting_pairs"]


def test_the_summary_is_that_of_a_hand_count() -> None:
    # T = 3 steps of C = 4 rows: cosines by step; None where a gradient is missing
    cosines = [[-0.5, 0.1, None, None], [-0.2, -0.4, None, 0.3], [None, None, None, None]]
    records, by_row = [], torch.zeros(2, 4)
    for step, row in enumerate(cosines):
        known = [c for c in row if c is not None]
        negative = sum(c < 0 for c in known)
        records.append([1.0 + step, 10.0, sum(known), len(known), negative])
        for number, cosine in enumerate(row):
            by_row[0, number] += cosine is not None and cosine < 0
            by_row[1, number] += cosine is not None
    found = summarize("category", torch.tensor(records), by_row)
    assert found.domination == pytest.approx(30 / 6)
    assert found.mean_cosine == [pytest.approx(-0.2), pytest.approx(-0.1), None]
    assert found.conflicting_steps == 1.0  # of the two that have a cosine
    assert found.conflicting_pairs == pytest.approx(3 / 5)
    assert found.rows == 3
    # shares by row: 2/2, 1/2, 0/1
    assert found.conflicting_rows == pytest.approx(1 / 3)
    assert found.histogram == pytest.approx([1 / 3, 0, 0, 0, 0, 1 / 3, 0, 0, 0, 1 / 3])


def test_tables_of_different_widths_have_norms_but_no_cosine() -> None:
    model = LifelongRanker(
        dataclasses.replace(CONFIG, auxiliary="none"),
        fields(attention_dim=3, attention_init_std=0.5, representation_init_std=0.5),
    )
    initialize_tables_(model.tables, seed=1)
    found = record(model, 1).close()
    assert found.domination is not None
    assert found.conflicting_steps is None
    assert found.conflicting_pairs is None


def test_tables_that_sum_rows_are_refused() -> None:
    config = dataclasses.replace(CONFIG, auxiliary="none")
    model = LifelongRanker(config, fields(), sums_rows=True)
    with pytest.raises(ValueError, match="sums_rows=False"):
        GradientRecorder(model.tables, model.fields, "category", 1)
