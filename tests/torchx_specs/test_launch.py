"""Jobs on this machine through TorchX, with real processes."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from torchx_specs import launch
from torchx_specs.launch import Failure, run_local

REPOSITORY = Path(__file__).parents[2]

JOB = """
import os, sys, time
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.tensor(float(dist.get_rank() + 1))
dist.all_reduce(total)
print("sum", total.item(), "with", sys.argv[1:], "by", sys.executable, flush=True)
dist.destroy_process_group()
if sys.argv[1] == "wrong":
    print("rank", os.environ["RANK"], "says: no such column", file=sys.stderr)
    sys.exit(2)
if sys.argv[1] == "wait":
    time.sleep(60)
"""

ROOT_CAUSE = """
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 11)
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  rank      : 5 (local_rank: 1)
  exitcode  : -9 (pid: 12)
"""


@pytest.fixture
def job_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "job.py").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_two_ranks_add_up_and_rank_zero_is_heard(
    job_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    assert run_local(["fine", "two words"], 2, job_folder / "logs", module="job") == 0
    # 1 + 2; both ranks print, only rank 0 is streamed
    interpreter = Path(sys.executable).parent / "python"
    output = capfd.readouterr().out
    assert output.startswith(f"sum 3.0 with ['fine', 'two words'] by {interpreter}")
    assert len(output.splitlines()) == 1
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.slow
def test_wrong_input_of_the_job_is_exit_code_two(
    job_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_local(["wrong"], 2, job_folder / "logs", stream=False, module="job") == 2
    captured = capfd.readouterr()
    assert "says: no such column" in captured.err
    assert captured.out == ""


@pytest.mark.slow
def test_sigterm_ends_the_ranks_too(job_folder: Path) -> None:
    code = textwrap.dedent("""
        from pathlib import Path
        from torchx_specs.launch import run_local
        run_local(["wait"], 2, Path("logs"), module="job")
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("sum 3.0")  # all ranks have started
    began = time.monotonic()
    process.terminate()
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 15
    assert not still_running(job_folder)


def still_running(folder: Path) -> list[int]:
    """Other processes that work in ``folder``."""
    found = []
    for cwd in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):  # ended meanwhile, or not ours
            if cwd.readlink() == folder.resolve():
                found.append(int(cwd.parent.name))
    return [pid for pid in found if pid != os.getpid()]


def test_the_root_cause_is_read_from_torchruns_message() -> None:
    assert launch._first_failure(ROOT_CAUSE) == Failure(local_rank=1, exit_code=-9)


def test_without_a_root_cause_there_is_no_failed_rank() -> None:
    assert launch._first_failure("bash: torchrun: command not found") is None


def test_a_job_that_never_started_shows_what_the_agent_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = tmp_path / "main" / "0" / "stderr.log"
    agent.parent.mkdir(parents=True)
    agent.write_text("bash: torchrun: command not found\n")
    assert launch._report_failure(tmp_path, streamed=True) == 1
    assert "torchrun: command not found" in capsys.readouterr().err
