"""A run that is killed at any moment and resumed is the run that was not, request by request."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from data.store import EventStore
from tests.ranks import RankError
from tests.trainer.conftest import MakeRun
from tests.trainer.small_runs import (
    EXPERIMENT,
    metrics_lines,
    read,
    train,
    without_clock,
)
from trainer import train as training
from trainer.checkpoint import digests
from trainer.checkpoint.storage import Folder
from trainer.reliability import Reliability

OFTEN = Reliability(checkpoint_every=3, max_attempts_at_a_step=0)
PLACES: dict[str, tuple[Any, str]] = {
    "step": (training, "train_step"),
    "evaluation": (training, "predict"),
    "write": (digests._Recorded, "write"),  # the tables' file, in pieces
    "manifest": (Folder, "write"),
    "publish": (Folder, "publish"),
    "link": (Folder, "point"),
    "prune": (Folder, "discard"),
}
"""Where a process is killed: what it would call next."""


def killed_at(place: str, nth: int, rank: int = 0) -> Callable[[], None]:
    """For ``before`` of ``train``: SIGKILL instead of the nth call, on one rank."""

    def patch() -> None:
        owner, name = PLACES[place]
        genuine, count = getattr(owner, name), itertools.count(1)

        def call(*arguments: Any, **options: Any) -> Any:
            if next(count) == nth and dist.get_rank() == rank:
                os.kill(os.getpid(), signal.SIGKILL)
            return genuine(*arguments, **options)

        setattr(owner, name, call)

    return patch


def logging_requests(log: Path, more: Callable[[], None]) -> Callable[[], None]:
    """For ``before``: every step of every rank and attempt adds the requests that it trains on."""

    def patch() -> None:
        genuine = training.train_step

        def train_step(state: Any, batch: Any, *rest: Any) -> Any:
            losses = genuine(state, batch, *rest)
            record = {"rank": dist.get_rank(), "requests": batch.request_ids.tolist()}
            with log.open("a") as file:
                file.write(json.dumps(record) + "\n")
            return losses

        training.train_step = train_step
        more()

    return patch


def attempts(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "attempts.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("world_size", "kills"),
    [
        (
            1,
            [
                "step 2",
                "link 3",
                "write 40",
                "manifest 2",
                "evaluation 1",
                "publish 2",
                "link 4",  # two are of --resume
                "prune 3",
            ],
        ),
        (2, ["step 5 of rank 1", "write 40 of rank 1", "publish 2", "evaluation 1 of rank 1"]),
    ],
)
def test_killed_and_resumed_again_and_again_a_run_ends_equal_to_the_bit(
    world_size: int, kills: list[str], store: Path, tmp_path: Path, finished: MakeRun
) -> None:
    run, ids = tmp_path / "run", Counter[int]()
    for number, kill in enumerate(kills):
        place, nth, *of_rank = kill.split()
        killed = killed_at(place, int(nth), int(of_rank[-1]) if of_rank else 0)
        before = logging_requests(tmp_path / f"{number}.jsonl", killed)
        with pytest.raises(RankError, match="died without a word"):
            train(store, run, world_size, before=before, reliability=OFTEN, resume=True)
    last = tmp_path / f"{len(kills)}.jsonl"
    before = logging_requests(last, lambda: None)
    train(store, run, world_size, before=before, reliability=OFTEN, resume=True)

    whole = finished(world_size)
    assert metrics_lines(run) == metrics_lines(whole)
    for name in ("summary.json", "analysis.json"):
        assert without_clock(read(run, name)) == without_clock(read(whole, name))
    predictions = "predictions-test.arrow"
    assert (run / predictions).read_bytes() == (whole / predictions).read_bytes()

    # of each attempt counts what it trained on until the step that the next one went on from
    starts = [line["step"] for line in attempts(run) if line["kind"] == "begin"]
    assert len(starts) == len(kills) + 1
    for number, (begin, end) in enumerate(itertools.pairwise([*starts, 16])):
        lines = (tmp_path / f"{number}.jsonl").read_text().splitlines() if end > begin else []
        steps = Counter[int]()
        for record in map(json.loads, lines):
            steps[record["rank"]] += 1
            if begin + steps[record["rank"]] <= end:
                ids.update(record["requests"])
    requests = EventStore.open(store).info.requests["train"]
    assert ids == dict.fromkeys(range(requests), EXPERIMENT.epochs)


def test_a_search_in_a_copy_goes_on_with_the_copy_of_its_age(store: Path, tmp_path: Path) -> None:
    # renewed after steps 0, 7 and 14 and at evaluations (5, 10 ...); saved at 9, killed in 10
    copying = EXPERIMENT.changed(replica_steps=7, replica_dtype="float32", evaluate_every=8)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    every = Reliability(checkpoint_every=11, checkpoint_in_background=False)
    train(store, whole, 2, copying)
    with pytest.raises(RankError):
        before = killed_at("step", 13)
        train(store, cut, 2, copying, before=before, reliability=every)
    assert read(cut / "checkpoints" / "last", "position.json")["renewed_at"] == 8
    train(store, cut, 2, copying, reliability=every, resume=True)
    assert metrics_lines(cut) == metrics_lines(whole)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4)])
def test_in_the_middle_of_an_interval_other_ranks_go_on_with_its_sums(
    before: int, after: int, store: Path, tmp_path: Path, finished: MakeRun
) -> None:
    every = Reliability(checkpoint_every=3, checkpoint_in_background=False)
    with pytest.raises(RankError):  # saved at 9, between the lines of 8 and 10
        train(store, tmp_path, before, before=killed_at("step", 10), reliability=every, resume=True)
    assert read(tmp_path / "checkpoints" / "last", "position.json")["step"] == 9
    train(store, tmp_path, after, reliability=every, resume=True)
    for line, expected in zip(
        metrics_lines(tmp_path), metrics_lines(finished(before)), strict=True
    ):
        assert line.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, int | float):
                assert line[key] == pytest.approx(value, rel=1e-3), key
