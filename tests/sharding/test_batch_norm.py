"""Batch norm over unequal shares is torch's over the whole batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sharding.batch_norm import GlobalBatchNorm1d, refresh_statistics, use_global_batch_norm
from tests.ranks import run_ranks

FEATURES = 3
SHARES = {2: (5, 2), 4: (1, 4, 2, 3)}
"""Rows of each rank."""


def rows(count: int, seed: int = 0) -> Tensor:
    """Features far from zero, with unequal spreads."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, FEATURES, generator=draw) * torch.tensor([1.0, 30.0, 0.1]) + 7


def norm(kind: type[nn.BatchNorm1d], momentum: float | None = 0.1) -> nn.BatchNorm1d:
    module = kind(FEATURES, momentum=momentum)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
        module.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    return module


def loss_of(out: Tensor, first_row: int) -> Tensor:
    """A different weight for each row, so that no gradient cancels."""
    weight = torch.arange(first_row, first_row + len(out)).cos()[:, None] * torch.arange(1.0, 4.0)
    return (out.square() * weight).sum()


def facts(module: nn.BatchNorm1d, x: Tensor, first_row: int) -> dict[str, list]:
    """Two steps: output and gradients of the second, and the statistics after both."""
    module(x + 1)
    x = x.clone().requires_grad_()
    out = module(x)
    loss_of(out, first_row).backward()
    return {
        "output": out.tolist(),
        "input gradient": x.grad.tolist(),
        "weight gradient": module.weight.grad.tolist(),
        "bias gradient": module.bias.grad.tolist(),
        "running mean": module.running_mean.tolist(),
        "running variance": module.running_var.tolist(),
        "batches": module.num_batches_tracked.item(),
    }


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_unequal_shares_give_what_torch_gives_for_all_rows(
    world_size: int, momentum: float | None
) -> None:
    shares = SHARES.get(world_size, (7,))
    x = rows(sum(shares))
    expected = facts(norm(nn.BatchNorm1d, momentum), x, 0)

    def share(rank: int, world_size: int) -> dict[str, list]:
        first = sum(shares[:rank])
        part = x[first : first + shares[rank]]
        return facts(norm(GlobalBatchNorm1d, momentum), part, first)

    ranks = run_ranks(share, world_size)

    def assert_close(name: str, found: Tensor) -> None:
        torch.testing.assert_close(
            found, torch.tensor(expected[name]), rtol=1e-3, atol=1e-4, msg=lambda m: f"{name}: {m}"
        )

    for name in ("output", "input gradient"):
        assert_close(name, torch.cat([torch.tensor(rank[name]) for rank in ranks]))
    for name in ("weight gradient", "bias gradient"):  # each rank's share of the sum
        assert_close(name, sum(torch.tensor(rank[name]) for rank in ranks))
    for name in ("running mean", "running variance", "batches"):
        for rank in ranks:
            assert_close(name, torch.tensor(rank[name]))


def test_in_evaluation_and_without_a_group_it_is_the_plain_module() -> None:
    x = rows(6)
    ours, theirs = norm(GlobalBatchNorm1d), norm(nn.BatchNorm1d)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    assert (
        run_ranks(lambda *_: norm(GlobalBatchNorm1d).eval()(x).tolist(), 2)
        == [norm(nn.BatchNorm1d).eval()(x).tolist()] * 2
    )


def test_modules_are_turned_in_place_and_keep_their_state() -> None:
    model = nn.Sequential(nn.Linear(2, FEATURES), nn.ModuleList([norm(nn.BatchNorm1d)]))
    before = copy.deepcopy(model.state_dict())
    use_global_batch_norm(model)
    assert type(model[1][0]) is GlobalBatchNorm1d
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_refreshed_statistics_are_the_average_over_the_passes(training: bool) -> None:
    batches = [rows(4, seed) for seed in range(3)]

    def refresh(rank: int, world_size: int) -> tuple:
        model = nn.Sequential(norm(GlobalBatchNorm1d)).train(training)
        module = model[0]
        model(rows(9, seed=8))  # what was there before is forgotten
        parts = [batch[:1] if rank == 0 else batch[1:] for batch in batches]
        refresh_statistics(model, (model(part) for part in parts))
        mode = model.training, module.training, module.momentum
        return mode, module.running_mean.tolist(), module.running_var.tolist()

    mean = torch.stack([batch.mean(0) for batch in batches]).mean(0)
    variance = torch.stack([batch.var(0) for batch in batches]).mean(0)
    for mode, found_mean, found_variance in run_ranks(refresh, 2):
        assert mode == (training, training, 0.1)
        torch.testing.assert_close(torch.tensor(found_mean), mean)
        torch.testing.assert_close(torch.tensor(found_variance), variance, rtol=1e-4, atol=1e-4)


def test_refreshing_leaves_no_gradient_and_no_parameter_changed() -> None:
    model = nn.Sequential(nn.Linear(FEATURES, FEATURES), norm(GlobalBatchNorm1d))
    before = copy.deepcopy(dict(model.named_parameters()))
    out = []
    refresh_statistics(model, (out.append(model(rows(4, seed))) for seed in range(2)))
    assert not any(value.requires_grad for value in out)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_a_constant_feature_gives_beta_in_evaluation() -> None:
    def evaluate(rank: int, world_size: int) -> tuple[list, list]:
        model = nn.Sequential(norm(GlobalBatchNorm1d))
        for step in range(100):
            model(torch.full((2 + rank, FEATURES), 0.01 * step))  # its row moves in training
        now = torch.full((3 - rank, FEATURES), 1.0)
        lagging = model.eval()(now).tolist()
        refresh_statistics(model, (model(now) for _ in range(4)))
        return lagging, model.eval()(now).tolist()

    beta = norm(nn.BatchNorm1d).bias
    for lagging, refreshed in run_ranks(evaluate, 2):
        # torch computes x * scale + shift: what cancels is as large as 1 / sqrt(eps)
        torch.testing.assert_close(
            torch.tensor(refreshed), beta.expand(len(refreshed), -1), rtol=0, atol=1e-4
        )
        assert (torch.tensor(lagging) - beta).abs().min() > 0.1


def float64_gradients() -> bool:
    draws = rows(7).double().requires_grad_()
    module = norm(GlobalBatchNorm1d).double()
    before = draws.detach().clone()
    right = torch.autograd.gradcheck(module, [draws])
    return right and bool((draws == before).all())


def test_gradients_are_slopes_and_the_input_stays_as_it_was() -> None:
    assert run_ranks(lambda *_: float64_gradients(), 1) == [True]
