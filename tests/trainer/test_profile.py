"""A trace holds the steps that were asked for, and training goes on as it would have."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from data.errors import InputError
from tests.ranks import run_ranks
from tests.trainer.conftest import MakeRun
from tests.trainer.small_runs import EXPERIMENT, metrics_lines, ranks_of
from trainer import train as training
from trainer.processes import Ranks
from trainer.profile import StepProfile

ALONE = Ranks(0, 1, 1, torch.device("cpu"))


def products(file: Path) -> list[str]:
    """Shapes are not recorded: sizes of products of matrices tell the steps apart by name."""
    with gzip.open(file) as trace:
        events = json.load(trace)["traceEvents"]
    return [e["name"] for e in events if e.get("name", "").startswith("aten::m")]


def test_steps_of_the_range_are_traced_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    profile = StepProfile("2:3", tmp_path / "run", ALONE)
    operations = [torch.Tensor.mul, torch.Tensor.matmul, torch.Tensor.minimum, torch.Tensor.max]
    for number, operation in enumerate(operations, start=1):
        with profile.step(number):
            operation(torch.ones(3), torch.ones(3))
    file = tmp_path / "run" / "profile" / "rank0.json.gz"
    found = products(file)
    assert "aten::matmul" in found
    assert "aten::minimum" in found
    assert not {"aten::mul", "aten::maximum"} & {*found}
    assert profile.close() == f"Trace of 2 steps: {file}"


def test_a_resumed_run_that_comes_into_the_range_is_traced_from_there(tmp_path: Path) -> None:
    profile = StepProfile("2:4", tmp_path, ALONE)
    for number in (3, 4, 5):
        with profile.step(number):
            torch.ones(3).mul(2)
    assert "Trace of 2 steps" in profile.close()


def test_training_that_ends_within_the_range_leaves_what_there_was(tmp_path: Path) -> None:
    profile = StepProfile("1:9", tmp_path, ALONE)
    with profile.step(1):
        torch.ones(3).mul(2)
    assert "Trace of 1 steps" in profile.close()
    assert "aten::mul" in products(tmp_path / "profile" / "rank0.json.gz")


def test_a_range_that_never_came_is_told(tmp_path: Path) -> None:
    profile = StepProfile("100:110", tmp_path, ALONE)
    with profile.step(1):
        pass
    assert profile.close() == "No step of 100 to 110 was taken: nothing was traced."
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize("steps", ["", "5", "9:5", "0:3", "-1:3", "a:b", "1:2:3", "1.5:2"])
def test_what_is_no_range_is_refused(tmp_path: Path, steps: str) -> None:
    with pytest.raises(InputError, match=r"first and the last step to trace, e\.g\. 100:110, got"):
        StepProfile(steps, tmp_path, ALONE)


def test_a_traced_run_of_two_ranks_is_the_run_that_it_would_have_been(
    store: Path, tmp_path: Path, finished: MakeRun
) -> None:
    def main(rank: int, world_size: int) -> None:
        training.write_report = lambda *_, **__: None
        ranks = ranks_of(rank, world_size)
        training.Trainer("small", EXPERIMENT, store, tmp_path / "run", ranks, profile="2:3").main()

    run_ranks(main, 2)
    assert metrics_lines(tmp_path / "run") == metrics_lines(finished(2))
    for rank in (0, 1):
        assert products(tmp_path / "run" / "profile" / f"rank{rank}.json.gz")
