"""torchrun starts the ranks again when one is killed, and the run ends as if none had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.trainer.command_lines import TINY, Job

SHORT = (*TINY, "--requests-per-batch=37", "--epochs=3", "--checkpoint-every=2")


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    return [
        int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()
    ]


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_the_result_is_equal(
    store: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    job = Job(tmp_path, "train", "dare", "--data", store, "--out", whole, *SHORT, world_size=2)
    assert job.end(120).codes == [0, 0]
    torchrun = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=localhost"),
        *("--nproc-per-node=2", "--max-restarts=3", "-m", "trainer.main", "train", "dare"),
        *("--data", str(store), "--out", str(cut), *SHORT, "--resume"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        agent = subprocess.Popen(torchrun, env=environment, stdout=log, stderr=log)
    saved, deadline = cut / "checkpoints" / "last" / "position.json", time.monotonic() + 120
    while not saved.exists():
        assert agent.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(children(agent.pid)[-1], signal.SIGKILL)
    assert agent.wait(timeout=150) == 0, (tmp_path / "log").read_text()
    lines = map(json.loads, (cut / "attempts.jsonl").read_text().splitlines())
    starts = [line["step"] for line in lines if line["kind"] == "begin"]
    assert len(starts) == 2
    assert starts[1] > 0
    predictions = "predictions-test.arrow"
    assert (cut / predictions).read_bytes() == (whole / predictions).read_bytes()
