"""Numbers that depend on their coordinates only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modules import random
from modules.random import hash_coordinates, normal, uniform

MASK = 2**64 - 1
SAMPLES = 100_000


def splitmix64(state: int) -> int:
    """First output of SplitMix64 from ``state``, in Python's integers."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def kolmogorov_smirnov(values: Tensor) -> float:
    """Largest distance of the empirical distribution from the uniform one."""
    steps = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    ordered = values.sort().values
    return max((ordered - steps[:-1]).max().item(), (steps[1:] - ordered).max().item())


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


def test_the_witness_gives_the_published_numbers_of_splitmix64() -> None:
    # of seed 1234567, from the author's C program as listed by Rosetta Code
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix64(1234567 + i * 0x9E3779B97F4A7C15) for i in range(3)] == published


@pytest.mark.parametrize("coordinates", [(0,), (1234567,), (-1,), (3, 4), (2**63 - 1, 0, 5)])
def test_a_hash_is_splitmix64_over_its_coordinates(coordinates: tuple[int, ...]) -> None:
    expected = 0
    for coordinate in coordinates:
        expected = splitmix64((expected + splitmix64(coordinate & MASK)) & MASK)
    assert hash_coordinates(*coordinates).item() & MASK == expected
    as_tensors = [torch.tensor([coordinate]) for coordinate in coordinates]
    assert hash_coordinates(*as_tensors).item() & MASK == expected


@pytest.mark.parametrize("draw", [uniform, normal])
def test_a_slice_has_the_values_of_the_whole(draw: object) -> None:
    rows, columns = torch.arange(50)[:, None], torch.arange(20)
    whole = draw(7, 3, rows, columns)
    assert torch.equal(whole[13:29, 4:9], draw(7, 3, rows[13:29], columns[4:9]))
    assert whole[13, 4] == draw(7, 3, 13, 4)


def test_coordinates_are_not_exchangeable() -> None:
    assert uniform(1, 2) != uniform(2, 1)
    assert uniform(1) != uniform(1, 0)


@pytest.mark.parametrize("bits", [-1, 0, 1, 2**63 - 1, -(2**63)])
def test_no_hash_gives_an_end_of_the_interval(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "hash_coordinates", lambda *_: torch.tensor([bits]))
    assert 0 < uniform(0).item() < 1
    assert normal(0).isfinite()


def test_uniform_is_uniform() -> None:
    # mean 1/2, variance 1/12; four standard errors. Kolmogorov: 1.95 / sqrt(n) in one of a thousand
    draws = uniform(11, torch.arange(SAMPLES))
    assert abs(draws.mean() - 0.5) < 4 * (1 / 12 / SAMPLES) ** 0.5
    assert abs(draws.var() - 1 / 12) < 4 * (1 / 180 / SAMPLES) ** 0.5
    assert kolmogorov_smirnov(draws) < 1.95 / SAMPLES**0.5


def test_normal_is_normal() -> None:
    # variances of the mean of x, x², x³, x⁴: 1, 2, 15, 96
    draws = normal(11, torch.arange(SAMPLES))
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((draws**power).mean() - moment) < 4 * (variance / SAMPLES) ** 0.5
    assert kolmogorov_smirnov(torch.special.ndtr(draws)) < 1.95 / SAMPLES**0.5


def test_neighbours_are_uncorrelated() -> None:
    # correlation of n independent pairs has the standard error 1 / sqrt(n)
    rows, columns = torch.arange(1000)[:, None], torch.arange(100)
    draws = normal(5, 1, rows, columns)
    bound = 4 / draws.numel() ** 0.5
    assert abs(correlation(draws[1:], draws[:-1])) < bound
    assert abs(correlation(draws[:, 1:], draws[:, :-1])) < bound
    assert abs(correlation(draws, normal(6, 1, rows, columns))) < bound
    assert abs(correlation(draws, normal(5, 2, rows, columns))) < bound
    assert abs(correlation(draws[:100, :100], draws[:100, :100].T)) < 0.02 + 4 / 100
