"""A training started by hand, by torchrun and by TorchX is the same training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.command_lines import TINY, Job

REPOSITORY = Path(__file__).parents[2]
METRICS = ("auc", "gauc", "logloss", "normalized_entropy", "calibration", "loss_last")
CLOCK = ("seconds", "samples_per_second", "input_share", "memory")


def launcher(*words: object) -> subprocess.Popen:
    """Starts a launcher of this environment in the repository, in a session of its own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        [str(word) for word in words],
        cwd=REPOSITORY,
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def read(run: Path) -> dict[str, Any]:
    """What has to be equal at equal world size."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    return {
        "lines": [{k: v for k, v in line.items() if k not in CLOCK} for line in lines],
        "summary": {key: summary[key] for key in METRICS},
        "world_size": summary["world_size"],
    }


@pytest.fixture(scope="module")
def expected(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two ranks without a launcher."""
    folder = tmp_path_factory.mktemp("expected")
    line = ["train", "dare", "--data", store, "--out", folder / "run", *TINY]
    assert Job(folder, *line, world_size=2).end().codes == [0, 0]
    return read(folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["torchrun", "dist.ddp", "component"])
def test_every_launcher_gives_the_same_run(
    store: Path, tmp_path: Path, expected: dict[str, Any], how: str
) -> None:
    torchx = ["torchx", "run", "-s", "local_cwd", "-cfg", f"log_dir={tmp_path / 'logs'}"]
    words = {
        "torchrun": ["torchrun", "--nproc-per-node", 2, "-m", "trainer.main", "train"],
        "dist.ddp": [*torchx, "dist.ddp", "-j", "1x2", "-m", "trainer.main", "--", "train"],
        "component": [*torchx, "torchx_specs/components.py:train", "-j", "1x2", "--"],
    }[how]
    process = launcher(*words, "dare", "--data", store, "--out", tmp_path / "run", *TINY)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert read(tmp_path / "run") == expected
    if how == "torchrun":
        assert out.count("Test metrics") == 1  # of one rank
        strange = [line for line in err.splitlines() if "torch/distributed/run.py" not in line]
        assert strange == []


def test_one_process_gives_the_same_run(
    store: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    line = ["train", "dare", "--data", store, "--out", tmp_path / "run", *TINY]
    ended = Job(tmp_path, *line).end()
    assert (ended.codes, ended.err) == ([0], "")
    alone = read(tmp_path / "run")
    assert alone["world_size"] == 1
    assert alone["summary"] == pytest.approx(expected["summary"], rel=1e-3)


def test_evaluation_prints_the_summary_at_another_world_size(store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    line = ["train", "dare", "--data", store, "--out", run, *TINY]
    trained = Job(tmp_path, *line).end()
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        folder.mkdir()
        job = Job(folder, "evaluate", run, "--data", store, world_size=world_size)
        ended = job.end()
        assert (ended.codes, ended.err) == ([0] * world_size, "")
        assert _row(ended.out)[:-1] == _row(trained.out)[:-1]  # all but samples/s


def _row(out: str) -> list[str]:
    """Cells of the table of metrics."""
    (row,) = (line for line in out.splitlines() if line.split()[:1] == ["dare"])
    return row.split()


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_that_ctrl_c_stopped_goes_on_with_resume(
    store: Path, tmp_path: Path, world_size: int
) -> None:
    run, ranks = tmp_path / "run", {"world_size": world_size}
    line = ["train", "dare", "--data", store, "--out", run, *TINY, "--evaluate-every", 2]
    endless = [*line, "--epochs", 100_000, "--patience", 100_000]
    job = Job(tmp_path, *endless, **ranks)
    job.wait_until((run / "checkpoints" / "last" / "position.json").exists)
    job.signal(signal.SIGINT)
    assert 2 in job.end().codes
    step = json.loads((run / "checkpoints" / "last" / "position.json").read_text())["step"]
    steps_in_epoch = 4
    ended = Job(tmp_path, *line, "--epochs", step // steps_in_epoch + 1, "--resume", **ranks).end()
    assert ended.codes == [0] * world_size, ended.err
    assert f"Resuming {run} at step {step}." in ended.out.replace("\n", "")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == steps_in_epoch * (step // steps_in_epoch + 1)


@pytest.mark.slow
def test_ctrl_c_under_torchrun_leaves_nothing_running(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = ["train", "dare", "--data", store, "--out", out, *TINY, "--epochs", 100_000]
    words = ["torchrun", "--nproc-per-node", 2, "-m", "trainer.main", *line]
    process = launcher(*words, "--evaluate-every", 1_000_000)
    for shown in process.stdout:
        if shown.startswith("train 10/"):
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    begun = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - begun < 20
    assert process.returncode != 0
    assert err.count("twofold: ") == 1, err
    assert "twofold: Interrupted before the first checkpoint; nothing is kept." in err
    assert not out.exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads threads from /proc")
def test_no_thread_of_the_process_group_outlives_the_run(store: Path, tmp_path: Path) -> None:
    # at the interpreter's shutdown one of them may abort the process after all is done
    code = (
        "import atexit, pathlib; from trainer import cli\n"
        "tasks = pathlib.Path('/proc/self/task')\n"
        "threads = lambda: [comm.read_text().strip() for comm in tasks.glob('*/comm')]\n"
        "atexit.register(lambda: print('threads:', *threads()))\n"
        "cli.main()"
    )
    line = ["train", "dare", "--data", store, "--out", tmp_path / "run", *TINY]
    out, err = (process := launcher(sys.executable, "-c", code, *line)).communicate(timeout=120)
    assert process.returncode == 0, out + err
    (threads,) = (text for text in out.splitlines() if text.startswith("threads:"))
    assert "gloo" not in threads
