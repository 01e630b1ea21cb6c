"""Learning rates fall when the validation AUC has stopped rising, and a resumed run knows it."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.store import EventStore
from sharding.apply import sharded_collections
from tests.ranks import RankError, run_ranks
from tests.trainer.conftest import MakeRun, copy
from tests.trainer.small_runs import (
    EXPERIMENT,
    content,
    loaded_state,
    metrics_lines,
    ranks_of,
    read,
    stop_at,
    train,
    without_clock,
)
from trainer.checkpoint import Checkpoints, Position
from trainer.experiment import Experiment
from trainer.run_folder import read_config, read_experiment
from trainer.state import build_state
from trainer.validation import reduce_learning_rates

# at such rates most evaluations are for the worse
WILD = EXPERIMENT.changed(
    epochs=2, patience=9, evaluate_every=3, log_every=3, dense_learning_rate=1.0,
    plateau_patience=1, plateau_factor=0.5,
)  # fmt: skip
STOP, KEPT = 13, 12


@pytest.fixture(scope="module")
def falling(store: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """World size -> an uninterrupted run whose learning rates fall."""

    @functools.cache
    def make(world_size: int) -> Path:
        out = tmp_path_factory.mktemp("falling") / "run"
        train(store, out, world_size, WILD)
        return out

    return make


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in metrics_lines(run) if line["kind"] == kind]


def scales_after(better: str, experiment: Experiment) -> tuple[list[float], list[str]]:
    """After evaluations that are for the better (+) or not (-): scales, and what the user reads."""
    position = Position()
    given: list[float] = []
    state = SimpleNamespace(scale_learning_rates=lambda _, scale: given.append(scale))
    scales, notes = [], []
    for mark in better:
        position.evaluations_since_best = 0 if mark == "+" else position.evaluations_since_best + 1
        if mark == "-":
            notes.append(reduce_learning_rates(state, position, experiment))
        scales.append(position.learning_rate_scale)
    assert given == [new for old, new in itertools.pairwise([1.0, *scales]) if new != old]
    return scales, notes


def test_learning_rates_fall_each_time_patience_is_over_since_the_best_or_a_reduction() -> None:
    experiment = Experiment(plateau_patience=2, plateau_factor=0.5, patience=9)
    scales, _ = scales_after("+-+-----+--", experiment)
    assert scales == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.125]


def test_learning_rates_stay_at_the_floor() -> None:
    scales, notes = scales_after("-----", Experiment(plateau_patience=1, plateau_floor=2e-3))
    assert scales == pytest.approx([0.1, 0.01, 0.002, 0.002, 0.002])
    assert [note.strip() for note in notes] == [
        "learning rates times 0.1", "learning rates times 0.1", "learning rates times 0.2", "", "",
    ]  # fmt: skip


def test_without_plateau_patience_learning_rates_stay() -> None:
    assert scales_after("-----", Experiment()) == ([1.0] * 5, [""] * 5)


def test_a_step_is_taken_with_what_the_evaluation_before_it_left(falling: MakeRun) -> None:
    judged = lines(falling(1), "eval")
    scales = [line["learning_rate_scale"] for line in judged]
    aucs = [line["auc"] for line in judged]
    worse = "".join("+" if auc > max(aucs[:i], default=-1) else "-" for i, auc in enumerate(aucs))
    assert scales == scales_after(worse, WILD)[0]
    assert min(scales) < 1
    taken = [line["learning_rate_scale"] for line in lines(falling(1), "train")]
    assert taken == [1.0, *scales[:-1]]


def test_early_stop_counts_on_through_reductions_that_are_shown(
    store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    experiment, run = WILD.changed(epochs=9, patience=2), tmp_path / "run"
    train(store, run, 1, experiment)
    judged = lines(run, "eval")
    aucs = [line["auc"] for line in judged]
    assert judged[-1]["step"] < 9 * 8
    assert aucs.index(max(aucs)) == len(aucs) - 1 - experiment.patience
    since_best = [line["learning_rate_scale"] for line in judged[-experiment.patience - 1 :]]
    assert len(set(since_best)) > 1

    scales = [line["learning_rate_scale"] for line in lines(run, "train")]
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    shown = [point.value for point in board.Scalars("train/learning_rate_scale")]
    assert shown == pytest.approx(scales)
    assert "learning rates times 0.5" in " ".join(capfd.readouterr().out.split())


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_resumed_after_a_reduction_is_the_uninterrupted_one(
    world_size: int, falling: MakeRun, store: Path, tmp_path: Path
) -> None:
    run, whole = tmp_path / "run", falling(world_size)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(RankError, match="Interrupt"):
        train(store, run, world_size, WILD, before=stop_at(STOP, interrupt))
    position = read(run / "checkpoints" / "last", "position.json")
    assert position["step"] == KEPT
    assert position["learning_rate_scale"] < 1
    train(store, run, world_size, WILD, resume=True)
    assert metrics_lines(run) == metrics_lines(whole)
    assert without_clock(read(run, "summary.json")) == without_clock(read(whole, "summary.json"))
    ours, theirs = (content(folder / "checkpoints" / "last") for folder in (run, whole))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_scale_reaches_adam_and_every_kernel(world_size: int, store: Path) -> None:
    def rates(rank: int, world_size: int) -> tuple[set[float], set[float]]:
        state = build_state(EXPERIMENT, EventStore.open(store), ranks_of(rank, world_size))
        state.scale_learning_rates(EXPERIMENT, 0.25)
        kernels = [
            kernel.emb_module.get_learning_rate()
            for _, bags in sharded_collections(state.model)
            for lookup in bags._lookups
            for kernel in lookup._emb_modules
            if hasattr(kernel.emb_module, "get_learning_rate")  # replicated tables go by a group
        ]
        groups = [group["lr"] for group in state.model.fused_optimizer.param_groups]
        return {group["lr"] for group in state.dense.param_groups}, {*kernels, *groups}

    for dense, kernels in run_ranks(rates, world_size):
        assert dense == {0.0025}
        assert all(rate == pytest.approx(0.025) for rate in kernels)
        assert kernels


def test_a_checkpoint_from_before_there_were_reductions_is_read(
    falling: MakeRun, store: Path, tmp_path: Path
) -> None:
    run = copy(falling(1), tmp_path / "run")
    file = run / "checkpoints" / "last" / "position.json"
    content = json.loads(file.read_text())
    del content["learning_rate_scale"], content["format"]
    file.write_text(json.dumps(content))
    (file.parent / "manifest.json").unlink()

    def scale(rank: int, world_size: int) -> float:
        state = loaded_state(store, run, rank, world_size, WILD)
        return Checkpoints(run, ranks_of(rank, world_size)).load(state, "last").learning_rate_scale

    assert run_ranks(scale, 1) == [1.0]


def test_a_config_from_before_there_were_reductions_is_read(falling: MakeRun) -> None:
    config = read_config(falling(1))
    for name in ("plateau_patience", "plateau_factor", "plateau_floor", "evaluations_per_epoch"):
        del config["config"][name]
    del config["config"]["tables"]["weight_decay"]
    found = read_experiment(config)
    assert (found.plateau_patience, found.evaluations_per_epoch) == (0, 4)
    assert found.tables.weight_decay == 0


def test_evaluations_per_epoch_are_spread_over_it(store: Path, tmp_path: Path) -> None:
    experiment = EXPERIMENT.changed(epochs=1, evaluate_every=0, evaluations_per_epoch=2)
    train(store, tmp_path / "run", 1, experiment)
    assert [line["step"] for line in lines(tmp_path / "run", "eval")] == [4, 8]


def test_without_a_plateau_records_say_nothing_of_it(finished: MakeRun) -> None:
    assert not any("learning_rate_scale" in line for line in metrics_lines(finished(1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plateau_patience": 4}, r"below patience, got 4 and 4: .* Give a larger patience"),
        ({"plateau_patience": -1}, "plateau_patience must be from 0 up"),
        ({"plateau_factor": 1.0}, "plateau_factor must lie between 0 and 1"),
        ({"plateau_floor": 0.0}, "plateau_floor must lie between 0 and 1"),
        ({"evaluations_per_epoch": 0}, "evaluations_per_epoch must be positive"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Experiment(**changes)
