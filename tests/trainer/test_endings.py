"""How a run ends that cannot go on: what it says, saves, and lets a scheduler know."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from data.loader import RequestLoader
from data.store import EventStore, read_arrow
from tests.ranks import RankError, run_ranks
from tests.trainer.command_lines import TINY, Job
from tests.trainer.conftest import MakeRun
from tests.trainer.small_runs import (
    EVALUATIONS,
    EXPERIMENT,
    STEPS,
    metrics_lines,
    ranks_of,
    read,
    stop_at,
    train,
)
from trainer import train as training
from trainer.attempts import Attempts
from trainer.meter import Meter
from trainer.reliability import Reliability

DIVERGES = EXPERIMENT.changed(dense_learning_rate=1e30)


def ends(run: Path) -> list[tuple[str, int]]:
    """(how, step) of each attempt."""
    lines = map(json.loads, (run / "attempts.jsonl").read_text().splitlines())
    return [(line["how"], line["step"]) for line in lines if line["kind"] == "end"]


@pytest.mark.parametrize("world_size", [1, 2])
def test_sigterm_saves_where_training_stands(
    world_size: int, store: Path, tmp_path: Path, finished: MakeRun
) -> None:
    def terminate() -> None:
        if dist.get_rank() == world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RankError, match="Told to end: saved after step"):
        train(store, tmp_path, world_size, before=stop_at(7, terminate), resume=True)
    # one process looks after every step, several where they write a line: every second step
    step = {1: 7, 2: 8}[world_size]
    assert read(tmp_path / "checkpoints" / "last", "position.json")["step"] == step
    train(store, tmp_path, world_size, resume=True)
    assert metrics_lines(tmp_path) == metrics_lines(finished(world_size))
    assert ends(tmp_path) == [("preempted", step), ("finished", 16)]


@pytest.mark.parametrize("world_size", [1, 2])
def test_sigterm_in_the_last_evaluation_ends_before_the_test(
    world_size: int, store: Path, tmp_path: Path
) -> None:
    def patch() -> None:
        genuine, count = training.predict, itertools.count(1)

        def predict(*arguments: Any, **options: Any) -> Any:
            if next(count) == len(EVALUATIONS) and dist.get_rank() == world_size - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return genuine(*arguments, **options)

        training.predict = predict

    with pytest.raises(RankError, match="Told to end: saved after step 16"):
        train(store, tmp_path, world_size, before=patch)
    assert ends(tmp_path) == [("preempted", STEPS)]


def test_a_rank_that_loses_another_says_so_and_ends(store: Path, tmp_path: Path) -> None:
    """Rank 0 dies, which also holds the store by which ranks know of each other's ends."""
    line = ["train", "dare", "--data", store, "--out", tmp_path / "run", *TINY, "--epochs", 10_000]
    job = Job(tmp_path, *line, "--evaluate-every", 3, "--patience", 10_000, world_size=2)
    saved = tmp_path / "run" / "checkpoints" / "last" / "position.json"
    job.wait_until(saved.exists)
    job.signal(signal.SIGKILL, ranks=[0])
    ended = job.end(20)
    assert ended.codes == [-signal.SIGKILL, 1]
    assert ended.err.count("twofold: ") == 1
    assert "twofold: Rank 1 of 2 has lost another rank" in ended.err
    assert "--resume" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_loss_that_is_not_finite_stops_training_and_keeps_its_batch(
    world_size: int, store: Path, tmp_path: Path
) -> None:
    with pytest.raises(RankError, match=r"The loss of step 2 is not finite on rank .*nan"):
        train(store, tmp_path / "run", world_size, DIVERGES)
    (file, *_) = (tmp_path / "run").glob("batch-00000002-rank-*.arrow")
    rank = int(file.stem[-1])
    loader = RequestLoader(
        EventStore.open(store),
        "train",
        requests_per_batch=DIVERGES.requests_per_batch,
        history_length=DIVERGES.history_length,
        rank=rank,
        world_size=world_size,
        seed=DIVERGES.seed,
    )
    batch = next(itertools.islice(loader, 1, None))  # the second
    written = read_arrow(file)
    assert written["request"].to_pylist() == batch.request_ids.tolist()
    assert written["user"].to_pylist() == batch.context["user"].values().tolist()
    items = np.concatenate([np.asarray(row) for row in written["candidate_item"].to_pylist()])
    assert items.tolist() == batch.candidates["item"].values().tolist()
    assert [
        len(row) for row in written["history_item"].to_pylist()
    ] == batch.history_lengths.tolist()
    assert sum(map(sum, written["labels"].to_pylist())) == batch.labels.sum()


def test_no_checkpoint_is_written_after_a_loss_that_is_not_finite(
    store: Path, tmp_path: Path
) -> None:
    def spoil_in_step_8() -> None:
        genuine, count = training.train_step, itertools.count(1)

        def train_step(state: Any, *rest: Any) -> Any:
            if next(count) == 8:
                for parameter in state.dense.params.values():
                    parameter.data.fill_(torch.nan)
            return genuine(state, *rest)

        training.train_step = train_step

    often = Reliability(checkpoint_every=1, checkpoint_in_background=False)
    with pytest.raises(RankError, match="The loss of step 8 is not finite"):
        train(store, tmp_path, 1, before=spoil_in_step_8, reliability=often, resume=True)
    assert read(tmp_path / "checkpoints" / "last", "position.json")["step"] == 7
    assert ends(tmp_path) == [("refused", 8)]
    train(store, tmp_path, 1, resume=True)
    assert ends(tmp_path)[-1] == ("finished", 16)


def test_on_a_gpu_the_first_bad_step_is_known_where_losses_are_read() -> None:
    """The meter's own account, without a look in each step."""

    def steps(rank: int, world_size: int) -> list[int | None]:
        meter, found = Meter(ranks_of(rank, world_size)), []
        batch = type("Batch", (), {"global_candidates": 4})
        for losses in ((0.5, 0.1, 0.0), (0.4, torch.inf, 0.0), (0.3, 0.1, 0.0)):
            meter.add([torch.tensor(float(term)) for term in losses], batch)
            found.append(meter.first_bad_step())
        return found

    assert run_ranks(steps, 1)[0] == [None, 2, 2]


def crash() -> None:
    raise ZeroDivisionError


def test_a_step_that_crashes_each_time_is_not_tried_for_ever(store: Path, tmp_path: Path) -> None:
    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    stops: list[Callable[[], None]] = [stop_at(7, kill), stop_at(2, crash), stop_at(2, kill)]
    for stop in stops:  # a checkpoint of 5: the second step from there is 7 again
        with pytest.raises(RankError):
            train(store, tmp_path, 1, before=stop, resume=True)
    with pytest.raises(RankError, match="its last 3 attempts crashed in step 7") as error:
        train(store, tmp_path, 1, resume=True)
    assert "batch 6 of epoch 0" in str(error.value)
    assert ends(tmp_path) == [("killed", 7), ("failed", 7), ("killed", 7)]
    requests = read_arrow(tmp_path / "batch-00000007.arrow")["request"].to_pylist()
    assert len(requests) in (33, 34)
    again = Reliability(max_attempts_at_a_step=0, checkpoint_in_background=False)
    train(store, tmp_path, 1, resume=True, reliability=again)


def test_crashes_count_in_a_row_and_at_one_step(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    assert attempts.crashes() == (0, 0)
    for step, how in [(3, "failed"), (3, "preempted"), (4, "failed"), (3, "failed"), (3, "killed")]:
        attempts.begin(0, 1)
        attempts.at(step)
        if how != "killed":  # nobody is left to write it
            attempts.end(how)
        attempts = Attempts(tmp_path)
    assert attempts.crashes() == (3, 2)


def test_a_line_after_one_that_a_kill_cut_is_not_lost(tmp_path: Path) -> None:
    Attempts(tmp_path).begin(0, 1)
    with (tmp_path / "attempts.jsonl").open("a") as file:
        file.write('{"kind": "end", "att')
    Attempts(tmp_path).begin(5, 1)
    _, _, end, begin = (tmp_path / "attempts.jsonl").read_text().splitlines()
    assert (json.loads(end)["how"], json.loads(begin)["step"]) == ("killed", 5)


def test_an_end_that_cannot_be_written_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def full(*words: Any, **_: Any) -> None:
        tried.append(words)
        raise OSError(28, "No space left on device")

    attempts = Attempts(tmp_path)
    attempts.begin(0, 1)
    before = (tmp_path / "attempts.jsonl").read_text()
    monkeypatch.setattr(attempts, "_append", full)
    attempts.end("refused")
    assert len(tried) == 1
    assert (tmp_path / "attempts.jsonl").read_text() == before


def test_a_crash_before_the_first_checkpoint_is_remembered_where_runs_are_resumed(
    store: Path, tmp_path: Path
) -> None:
    for name, resume in [("once", False), ("again", True)]:
        with pytest.raises(RankError, match="ZeroDivisionError"):
            train(store, tmp_path / name, 1, before=stop_at(2, crash), resume=resume)
    assert not (tmp_path / "once").exists()
    assert ends(tmp_path / "again") == [("failed", 2)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"checkpoint_every": -1},
        {"keep_checkpoints": 0},
        {"peer_timeout": 0.0},
        {"max_attempts_at_a_step": -1},
        {"checkpoints": "runs/mine"},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.* got"):
        Reliability(**wrong)
