"""What runs on each of Ray Train's workers: the trainer, as torchrun would start it.

The trainer has a process of its own, because Ray calls a worker's function in a thread, and the
trainer needs a main thread (signals), its own exit code, and a process group that ends with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ray
import ray.train
from ray.train import collective
from ray.train.backend import Backend
from ray.train.torch import TorchConfig

from torchx_specs.ending import ending

WRONG_INPUT = 2
"""Exit code of the trainer where trying again would be in vain."""
POLL = 1.0
"""Seconds between two looks whether the user has stopped the job."""


@dataclass(frozen=True)
class Job:
    """What every worker of every attempt gets."""

    name: str
    """Of this job and no other: the trainer writes it to config.json with the run that it takes."""
    arguments: list[str]
    """Of ``twofold train``."""
    out: str
    """The run folder among them, absolute."""
    folder: str
    """Where the trainer is started, so that relative paths mean what they mean to the user."""
    environment: dict[str, str]
    gpus: bool
    port: int
    """Of rank 0, where the ranks meet; 0: a free one."""
    office: Any
    """Handle of the ``Office``."""


class Devices(Backend):
    """Shows the workers of a node all of their GPUs: a rank takes that of its LOCAL_RANK."""

    share_cuda_visible_devices = True


@dataclass
class NoGroup(TorchConfig):
    """Ray's workers join no process group: the trainer's processes do."""

    @property
    def backend_cls(self) -> type[Backend]:
        """Sets nothing up."""
        return Devices

    @property
    def train_func_context(self) -> type[contextlib.nullcontext]:
        """Ray's own would take a GPU for the worker."""
        return contextlib.nullcontext


def train_on_worker(config: dict[str, Job]) -> None:
    """Ray Train's function of each worker.

    Raises:
        RuntimeError: the trainer failed or was killed; Ray starts all workers again, as often as it
            may. After wrong input it does not raise, so that Ray does not try again.
    """
    job, context = config["job"], ray.train.get_context()
    if ray.get(job.office.is_refused.remote()):
        return
    rank = context.get_world_rank()
    # rank 0 decides for all whether to resume: another may have been killed before it asked
    meeting = collective.broadcast_from_rank_zero(_call_meeting(job) if rank == 0 else {})
    process = _start(job, context, meeting)
    threads = [
        threading.Thread(target=_forward, args=(process.stdout, "stdout", job.office)),
        threading.Thread(target=_forward, args=(process.stderr, "stderr", job.office)),
    ]
    for thread in threads:
        thread.start()
    stopped = False
    while any(thread.is_alive() for thread in threads) and not stopped:
        threads[0].join(POLL)
        if stopped := ray.get(job.office.is_stopped.remote()):
            process.kill()  # complete checkpoints stay
    for thread in threads:
        thread.join()
    code = process.wait()
    if stopped:
        return
    if code == WRONG_INPUT:
        ray.get(job.office.refuse.remote())
    elif code != 0:
        raise RuntimeError(f"Rank {rank} {ending(code)}.")


def _call_meeting(job: Job) -> dict[str, Any]:
    """Rank 0: where the ranks meet, and whether they go on with a run."""
    address = ray.util.get_node_ip_address()
    with socket.socket() as free:
        free.bind((address, 0))
        port = job.port or free.getsockname()[1]
    resume = has_taken(Path(job.out), job.name)
    ray.get(job.office.begin.remote(resume))
    return {
        "address": address,
        "port": port,
        "resume": resume,
        "local_world_size": ray.train.get_context().get_local_world_size(),
    }


def _start(job: Job, context: Any, meeting: dict[str, Any]) -> subprocess.Popen:
    arguments = resuming(job.arguments) if meeting["resume"] else job.arguments
    environment = {
        "PYTHONUNBUFFERED": "1",
        "TWOFOLD_JOB": job.name,
        "RANK": context.get_world_rank(),
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_RANK": context.get_local_rank(),
        # rank 0's on all: a plan is chosen by every rank for itself, from the same numbers
        "LOCAL_WORLD_SIZE": meeting["local_world_size"],
        "MASTER_ADDR": meeting["address"],
        "MASTER_PORT": meeting["port"],
        **({} if job.gpus else {"CUDA_VISIBLE_DEVICES": ""}),
        **job.environment,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.launch.process", "train", *arguments],
        cwd=job.folder,
        env=os.environ | {name: str(value) for name, value in environment.items()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def has_taken(run: Path, job: str) -> bool:
    """Is the run in this folder the job's own, taken by an attempt before?

    Else an attempt is what the user asked for, word by word: a run of another job is replaced or
    refused as on the first attempt.
    """
    try:
        config = json.loads((run / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("job") == job


def resuming(arguments: list[str]) -> list[str]:
    """The command line of an attempt that goes on with what one before it has begun."""
    kept = [word for word in arguments if word not in ("--replace", "--resume")]
    return [*kept, "--resume"]


def _forward(stream: IO[str], name: str, office: Any) -> None:
    """Until the trainer closes it."""
    for line in stream:
        ray.get(office.tell.remote(name, line))
