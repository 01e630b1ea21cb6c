"""A small store and runs on it, made once for all tests of a session."""

from __future__ import annotations

import functools
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from data.prepare import prepare
from tests.ranks import RankError
from tests.trainer.small_runs import EXPERIMENT, SOURCE, stop_at, train

MakeRun = Callable[[int], Path]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """268 training requests, 48 of validation and 53 of test, in 4 partitions."""
    folder = tmp_path_factory.mktemp("data") / "store"
    prepare(SOURCE, folder, partitions=4)
    return folder


@pytest.fixture(scope="session")
def finished(store: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """World size -> an uninterrupted run. Do not change it: see ``finished_copy``."""

    @functools.cache
    def make(world_size: int) -> Path:
        out = tmp_path_factory.mktemp("finished") / "run"
        train(store, out, world_size, report=True)
        return out

    return make


@pytest.fixture
def finished_copy(finished: MakeRun, tmp_path: Path) -> MakeRun:
    """World size -> a copy of an uninterrupted run."""
    return lambda world_size: copy(finished(world_size), tmp_path / "run")


@pytest.fixture(scope="session")
def overfitted(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that stopped early: its best checkpoint is 3 steps before its last."""
    out = tmp_path_factory.mktemp("overfitted") / "run"
    wild = EXPERIMENT.changed(
        epochs=20, patience=3, evaluate_every=1, log_every=1, dense_learning_rate=0.3
    )
    train(store, out, 2, wild)
    return out


@pytest.fixture(scope="session")
def stopped(store: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """World size -> a run that ended at step 13, in the middle of its second epoch, with a
    checkpoint of step 10: one process was killed, two were interrupted.
    """

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def interrupt() -> None:
        raise KeyboardInterrupt

    @functools.cache
    def make(world_size: int) -> Path:
        out = tmp_path_factory.mktemp("stopped") / "run"
        with pytest.raises(RankError, match="died without" if world_size == 1 else "Interrupt"):
            train(
                store, out, world_size, before=stop_at(13, kill if world_size == 1 else interrupt)
            )
        return out

    return make


def copy(run: Path, to: Path) -> Path:
    """A copy of a run, its links kept."""
    return Path(shutil.copytree(run, to, symlinks=True))
