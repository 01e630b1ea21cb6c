"""A run that was stopped and resumed is the run that was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.store import numpy_columns, read_arrow
from sharding.plan import ShardingConfig
from tests.ranks import RankError
from tests.trainer.conftest import MakeRun, copy
from tests.trainer.small_runs import (
    EXPERIMENT,
    STEPS,
    content,
    metrics_lines,
    read,
    stop_at,
    train,
    without_clock,
)

Resume = Callable[[int, int], Path]


@pytest.fixture
def resumed(stopped: MakeRun, store: Path, tmp_path: Path) -> Resume:
    """World sizes before and after the stop -> the run."""

    def resume(before: int, after: int) -> Path:
        run = copy(stopped(before), tmp_path / "run")
        assert read(run / "checkpoints" / "last", "position.json")["step"] == 10
        train(store, run, after, resume=True)
        return run

    return resume


def numbers(line: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in line.items() if isinstance(value, int | float)}


@pytest.mark.parametrize("world_size", [1, 2])
def test_resumed_at_the_same_world_size_everything_is_equal_to_the_bit(
    world_size: int, resumed: Resume, finished: MakeRun
) -> None:
    run, whole = resumed(world_size, world_size), finished(world_size)
    assert metrics_lines(run) == metrics_lines(whole)
    for name in ("summary.json", "analysis.json"):
        assert without_clock(read(run, name)) == without_clock(read(whole, name))
    predictions = "predictions-test.arrow"
    assert (run / predictions).read_bytes() == (whole / predictions).read_bytes()
    for link in ("last", "best"):
        ours, theirs = (content(folder / "checkpoints" / link) for folder in (run, whole))
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_search_in_a_copy_goes_on_with_the_copy_of_its_checkpoint(
    world_size: int, store: Path, tmp_path: Path, finished: MakeRun
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    # renewed after steps 0, 7 and 14 and at evaluations; interrupted at 13, resumed from 10
    kinds = ShardingConfig(kinds=("table_wise", "row_wise"))  # replicated tables need no copy
    copying = EXPERIMENT.changed(replica_steps=7, replica_dtype="float32", sharding=kinds)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(store, whole, world_size, copying)
    with pytest.raises(RankError, match="Interrupt"):
        train(store, cut, world_size, copying, before=stop_at(13, interrupt))
    train(store, cut, world_size, copying, resume=True)
    assert metrics_lines(cut) == metrics_lines(whole)
    judged = [line for line in metrics_lines(whole) if "replica_recall" in line]
    ages = {line["step"]: line["replica_age"] for line in judged}
    assert ages == {5: 5, 10: 3, 15: 1, 16: 1}  # evaluations every 5 steps and at the end
    for line in judged:
        assert line["replica_recall"] < line["replica_recall_renewed"] == 1
    # a search in an old copy finds other events
    assert metrics_lines(whole) != metrics_lines(finished(world_size))


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4)])
def test_resumed_at_another_world_size_the_same_batches_remain(
    before: int, after: int, resumed: Resume, finished: MakeRun
) -> None:
    run, whole = resumed(before, after), finished(before)
    for line, expected in zip(metrics_lines(run), metrics_lines(whole), strict=True):
        assert line.keys() == expected.keys()
        assert numbers(line) == pytest.approx(numbers(expected), rel=1e-3)
    ours, theirs = (
        numpy_columns(read_arrow(folder / "predictions-test.arrow")) for folder in (run, whole)
    )
    for name in ("label", "user", "request"):
        np.testing.assert_array_equal(ours[name], theirs[name])
    np.testing.assert_allclose(ours["probability"], theirs["probability"], atol=1e-3)


def test_resuming_a_finished_run_writes_the_same_results_again(
    finished: MakeRun, finished_copy: MakeRun, store: Path
) -> None:
    run = finished_copy(1)
    for name in ("summary.json", "analysis.json", "report.html"):
        (run / name).unlink()
    train(store, run, 1, resume=True, report=True)
    assert metrics_lines(run) == metrics_lines(finished(1))
    for name in ("summary.json", "analysis.json"):
        assert without_clock(read(run, name)) == without_clock(read(finished(1), name))
    assert (run / "report.html").exists()


def test_more_epochs_go_on_from_a_finished_run(finished_copy: MakeRun, store: Path) -> None:
    run = finished_copy(1)
    before = metrics_lines(run)
    summary = train(store, run, 1, EXPERIMENT.changed(epochs=3), resume=True)
    assert summary["steps"] == STEPS * 3 // 2
    assert metrics_lines(run)[: len(before)] == before
    assert read(run, "config.json")["config"]["epochs"] == 3


def test_resume_names_the_settings_that_changed(
    finished_copy: MakeRun, finished: MakeRun, store: Path
) -> None:
    run = finished_copy(1)
    other = EXPERIMENT.changed(l2=0.5, seed=77, epochs=9, patience=1, evaluate_every=4)
    with pytest.raises(RankError, match=r"other settings \(l2: .* -> 0.5; seed: .* -> 77\)"):
        train(store, run, 1, other, resume=True)
    assert read(run, "config.json") == read(finished(1), "config.json")


def test_resume_without_a_checkpoint_starts_at_the_beginning(
    finished: MakeRun, store: Path, tmp_path: Path
) -> None:
    train(store, tmp_path / "run", 1, resume=True)
    assert metrics_lines(tmp_path / "run") == metrics_lines(finished(1))
