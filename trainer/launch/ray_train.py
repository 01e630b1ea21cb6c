"""Trains through Ray Train: places the workers, starts them again, shows what they say."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import InputError
from data.ray_safety import find_cluster, no_entry, shut_out_others

PATIENCE = 30.0
"""Seconds that workers have to end after Ctrl-C."""
POLL = 0.2
"""Seconds between two looks at what the workers say."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where and how a job runs on Ray."""

    address: str | None = None
    """Of a running cluster: ``auto`` or HOST:PORT of its head; None starts one on this machine."""
    workers: int = 2
    """Ranks."""
    gpus: bool = False
    """A GPU for each rank, and NCCL; else gloo on CPUs."""
    cpus: int = 1
    """Cores of each rank, and its OMP_NUM_THREADS."""
    retries: int = 3
    """How often all ranks are started again after one has failed or was killed."""
    storage: Path | None = None
    """Folder of Ray Train's own notes, which all nodes must see; None: ``.ray`` beside the run."""
    port: int = 0
    """Where rank 0 waits for the others; 0: a free one."""
    dashboard: bool = False
    """Of a cluster that is started here, on the loopback address."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment of the ranks, above what is set here."""

    def __post_init__(self) -> None:
        if self.workers < 1 or self.cpus < 1:
            raise ValueError(
                f"--workers and --cpus must be 1 or more, got {self.workers} and {self.cpus}."
            )
        if self.address and not re.fullmatch(r"auto|[^/:]+:\d+", self.address):
            raise ValueError(f"--address is auto or HOST:PORT of a head, got {self.address}.")
        if self.retries < 0:
            raise ValueError(f"--retries must be 0 or more, got {self.retries}.")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"--port must be from 0 (a free one) to 65535, got {self.port}.")


def train(cluster: Cluster, arguments: list[str], out: Path) -> int:
    """Runs ``twofold train *arguments``, whose run folder is ``out``, and returns the exit code.

    0 where training ended, 2 where a rank refused its input, 1 where the retries are used up.

    Raises:
        InputError: no cluster at the address, or too small a machine.
    """
    address = _find(cluster.address)  # before Ray is imported, which reads the environment then
    import ray
    from ray.train import TrainingFailedError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from trainer.launch.office import Office

    with _connected(cluster, address):
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        office = (
            ray.remote(num_cpus=0)(Office)
            .options(scheduling_strategy=here)
            .remote(attempts=cluster.retries + 1)
        )
        with _notes(cluster.storage, out) as notes:
            fit = _Background(_trainer(cluster, arguments, out, notes, office).fit)
            try:
                while fit.is_alive():
                    _print_all(ray.get(office.read.remote()))
                    fit.join(POLL)
            except KeyboardInterrupt:
                office.stop.remote()
                fit.join(PATIENCE)  # to leave Ray while it works there can crash this process
                raise
        _print_all(ray.get(office.read.remote()))
        if ray.get(office.is_refused.remote()):
            return 2
        if isinstance(fit.error, TrainingFailedError):
            print(f"twofold: {_reason(fit.error)}", file=sys.stderr)
            return 1
        if fit.error:
            raise fit.error
    return 0


def _trainer(cluster: Cluster, arguments: list[str], out: Path, notes: Path, office: Any) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from trainer.launch.worker import Job, NoGroup, train_on_worker

    job = Job(
        name=notes.name,
        arguments=arguments,
        out=str(out.absolute()),
        folder=str(Path.cwd()),
        environment={"OMP_NUM_THREADS": str(cluster.cpus), **cluster.env},
        gpus=cluster.gpus,
        port=cluster.port,
        office=office,
    )
    return TorchTrainer(
        train_on_worker,
        train_loop_config={"job": job},
        torch_config=NoGroup(),
        scaling_config=ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=cluster.gpus,
            resources_per_worker={"CPU": cluster.cpus},
        ),
        run_config=RunConfig(
            name=notes.name,
            storage_path=str(notes.parent),
            failure_config=FailureConfig(max_failures=cluster.retries),
        ),
    )


@contextlib.contextmanager
def _notes(storage: Path | None, out: Path) -> Iterator[Path]:
    """A folder of this job's own for Ray Train, which tells nothing once the job has ended."""
    folder = (storage or out.parent / ".ray").absolute()
    notes = folder / f"twofold-{uuid.uuid4().hex[:12]}"
    try:
        yield notes
    finally:
        shutil.rmtree(notes, ignore_errors=True)
        if storage is None:  # a folder that the user gave is the user's
            with contextlib.suppress(OSError):  # another job's are in it
                folder.rmdir()


@contextlib.contextmanager
def _connected(cluster: Cluster, address: str | None) -> Iterator[None]:
    """To the cluster at ``address``, or to one that is started here and ends with this."""
    import ray

    code = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, (str(code), os.environ.get("PYTHONPATH"))))
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": {"PYTHONPATH": path}},
        "log_to_driver": False,  # the workers' words come through the office, in order
        "logging_level": "ERROR",
    }
    if not address:
        options |= {
            "num_cpus": cluster.workers * cluster.cpus,
            "include_dashboard": cluster.dashboard,
            "dashboard_host": "127.0.0.1",
        }
    try:
        ray.init(address or "local", **options)
    except (OSError, RuntimeError) as error:
        raise no_entry(address, error) from error
    try:
        _check_room(cluster, ray.cluster_resources())
        yield
    finally:
        ray.shutdown()


def _find(address: str | None) -> str | None:
    """A cluster that is started here is this job's alone, whatever else is on the machine; one that
    runs must answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address:
        shut_out_others()
        return None
    found = find_cluster(address)
    if found.startswith("ray://"):  # RAY_ADDRESS
        raise InputError(f"--address is auto or HOST:PORT of a head, got {found} for {address}.")
    return found


def _check_room(cluster: Cluster, there: dict[str, float]) -> None:
    wanted = {"CPU": cluster.workers * cluster.cpus, "GPU": cluster.workers * cluster.gpus}
    missing = [
        f"{number} {kind}s of {there.get(kind, 0):g}"
        for kind, number in wanted.items()
        if number > there.get(kind, 0)
    ]
    if missing and cluster.address:
        print(
            f"twofold: The job asks for {', '.join(missing)} that the cluster has now, and waits "
            "for more nodes.",
            file=sys.stderr,
        )
    elif missing:
        raise InputError(
            f"The job asks for {', '.join(missing)} that this machine has. Give fewer --workers, "
            "no --gpus, or the --address of a larger cluster."
        )


class _Background(threading.Thread):
    """Calls a function in a thread, so that Ctrl-C reaches us and not Ray's own handler."""

    def __init__(self, function: Any) -> None:
        super().__init__(daemon=True)
        self.function = function
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.function()
        except Exception as error:
            self.error = error


def _print_all(lines: list[tuple[str, str]]) -> None:
    for stream, text in lines:
        print(text, end="", file=getattr(sys, stream), flush=True)


def _reason(error: Any) -> str:
    """What went wrong on the last attempt."""
    failures = getattr(error, "worker_failures", None)
    last = next(iter(failures.values())) if failures else error
    return f"The training failed, and no attempt is left. {str(last).splitlines()[-1]}"
