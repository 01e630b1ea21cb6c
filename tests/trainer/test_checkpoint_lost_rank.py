"""A rank that falls silent while a checkpoint is written holds nobody for long."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from data.errors import InputError
from tests.ranks import run_ranks
from tests.trainer.command_lines import TINY, Job
from tests.trainer.small_runs import ranks_of
from trainer.checkpoint import Checkpoints
from trainer.checkpoint.background import in_thread
from trainer.checkpoint.checkpoints import POLL
from trainer.checkpoint.storage import Folder
from trainer.reliability import Reliability


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", ["--checkpoint-in-background", "--no-checkpoint-in-background"])
def test_ranks_give_up_a_write_whose_other_rank_is_silent(
    way: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = Checkpoints._write

    def silent_on_one(self: Checkpoints, content: Any, position: Any, links: Any) -> None:
        if dist.get_rank() == 1 and position.step > 2:
            os.kill(os.getpid(), signal.SIGSTOP)  # its connections stay open, as of a lost host
        genuine(self, content, position, links)

    monkeypatch.setattr(Checkpoints, "_write", silent_on_one)
    line = ["train", "dare", "--data", store, "--out", tmp_path / "run", *TINY, way]
    job = Job(tmp_path, *line, "--evaluate-every", 2, "--peer-timeout", 2, world_size=2)
    job.wait_until(lambda: job.err.exists() and "has lost another rank" in job.err.read_text())
    job.signal(signal.SIGKILL, ranks=[1])
    assert job.end().codes == [1, -signal.SIGKILL]
    checkpoints = tmp_path / "run" / "checkpoints"
    assert (checkpoints / "last").resolve().name == "step-00000002"


@pytest.mark.timeout(60)
def test_what_is_given_up_does_not_keep_a_process(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, ranks_of(0, 2), Reliability(peer_timeout=0.1))
    never = threading.Event()
    checkpoints._writing = in_thread(never.wait)
    [writer] = [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
    checkpoints.close()
    assert writer.is_alive()
    assert writer.daemon  # Python waits for all others at its end
    never.set()


def test_a_rank_alone_waits_for_its_storage_however_long(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, ranks_of(0, 1), Reliability(peer_timeout=0.1))
    written = threading.Event()
    checkpoints._writing = in_thread(lambda: written.wait(0.5) or written.set())
    checkpoints.close()
    assert written.is_set()


def test_ranks_wait_for_the_slowest_write(tmp_path: Path) -> None:
    written = tmp_path / "written"

    def wait(rank: int, world_size: int) -> bool:
        def write() -> None:
            if rank == 1:
                threading.Event().wait(0.3)
                written.touch()

        checkpoints = Checkpoints(tmp_path, ranks_of(rank, world_size))
        checkpoints._writing = in_thread(write)
        checkpoints.wait()
        return written.exists()

    assert run_ranks(wait, 2) == [True, True]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", ["--checkpoint-in-background", "--no-checkpoint-in-background"])
def test_a_storage_that_refuses_one_rank_is_told_though_the_other_has_left(
    way: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, abort = Checkpoints._publish, Folder.abort

    def refused(self: Checkpoints, name: str, position: Any, *more: Any) -> None:
        if position.step > 2:
            raise InputError("No space left.")
        publish(self, name, position, *more)

    def slow(self: Folder, name: str) -> None:
        time.sleep(2.5 * POLL)  # the other rank has ended by then
        abort(self, name)

    monkeypatch.setattr(Checkpoints, "_publish", refused)
    monkeypatch.setattr(Folder, "abort", slow)
    line = ["train", "dare", "--data", store, "--out", tmp_path / "run", *TINY, way]
    ended = Job(tmp_path, *line, "--evaluate-every", 2, world_size=2).end()
    assert "twofold: No space left." in ended.err
    assert ended.codes == [2, 2]
