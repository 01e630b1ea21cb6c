"""A small store, and command lines that end fast: what is broken here is broken many times."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data.prepare import prepare
from data.sources.synthetic import Synthetic
from tests.trainer.command_lines import TINY, Job
from tests.trainer.small_runs import without_clock
from trainer import train as training

EPOCHS, STEPS = 3, 12
OFTEN = (
    *TINY, "--epochs", EPOCHS, "--patience", 100, "--evaluate-every", 6, "--log-every", 2,
    "--checkpoint-every", 2, "--max-attempts-at-a-step", 0,
)  # fmt: skip
"""Overrides: 12 steps, evaluated after the sixth and the last, saved after every second; the same
step may fail any number of times."""


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """268 training requests of 4 batches, in 2 partitions."""
    folder = tmp_path_factory.mktemp("data") / "store"
    source = Synthetic(
        users=60, events_per_user=40, items=200, categories=10, history_needed=8, noise=0.3
    )
    prepare(source, folder, partitions=2)
    return folder


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> random.Random:
    """Each test's own, the same in every run."""
    return random.Random(request.node.name)


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked jobs write no pictures, which take as long as the training."""
    monkeypatch.setattr(training, "write_report", lambda *_, **__: None)


def training_line(store: Path, run: Path, *more: object) -> list[object]:
    """``train dare`` of 12 steps."""
    return ["train", "dare", "--data", store, "--out", run, *OFTEN, *more]


@pytest.fixture(scope="session")
def uninterrupted(
    store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], dict[str, Any]]:
    """World size -> ``outcome`` of a run that nothing happened to."""
    known: dict[int, dict[str, Any]] = {}

    def make(world_size: int) -> dict[str, Any]:
        if world_size not in known:
            folder = tmp_path_factory.mktemp("uninterrupted")
            job = Job(folder, *training_line(store, folder / "run"), world_size=world_size)
            ended = job.end()
            assert set(ended.codes) == {0}, ended.err
            known[world_size] = outcome(folder / "run")
        return known[world_size]

    return make


def outcome(run: Path) -> dict[str, Any]:
    """What has to be equal to the bit, whatever happened on the way."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "predictions": (run / "predictions-test.arrow").read_bytes(),
        "metrics": [without_clock(line) for line in lines],
        "summary": without_clock(json.loads((run / "summary.json").read_text())),
    }


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Bytes -> a folder on a disk of that size; asked again it has another size."""
    disk = tmp_path / "disk"
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    disk.mkdir()

    def sized(size: int, *, how: str = "remount,") -> Path:
        mount = ["mount", "-t", "tmpfs", "-o", f"{how}size={size}", "tmpfs", disk]
        subprocess.run(mount, check=True, capture_output=True)
        return disk

    try:
        sized(2**20, how="")
    except subprocess.CalledProcessError:
        pytest.skip("mount is not allowed here")
    yield sized
    subprocess.run(["umount", disk], check=True)
