"""``twofold launch ray``: trains on a Ray cluster, or on this machine through Ray."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from data.errors import InputError
from trainer.commands.parsing import choose, parse, print_choices, wants_help
from trainer.commands.train import read_order
from trainer.launch.ray_train import Cluster, train

USAGE = "twofold launch ray [options] -- EXPERIMENT --data STORE --out RUN [options of train]"
LAUNCHERS = {"ray": "Through Ray Train, on a cluster that runs or on one started for the job."}
MORE = """\
Options:    twofold launch ray --help
Slurm, Kubernetes and Ray through TorchX: docs/clusters.md"""


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    if wants_help(arguments):
        print_choices("Trains on machines that a launcher finds.", USAGE, LAUNCHERS, MORE)
        return 0
    choose("launcher", LAUNCHERS, arguments, USAGE)
    words = list(arguments[1:])
    end = words.index("--") if "--" in words else len(words)
    cluster: Cluster = parse(_parser, "launch ray", words[:end])
    training = words[end + 1 :]
    if not training:
        raise InputError(f"What to train goes after a --: {USAGE}")
    order = read_order(training)[1]  # what is wrong with it is told before Ray is started
    try:
        return train(cluster, training, order.out)
    except KeyboardInterrupt:
        print(
            "twofold: Interrupted. Complete checkpoints are kept: --resume goes on from the last.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)  # threads of Ray that still run crash Python where it ends by itself


def _parser(
    address: str | None = None,
    workers: int = 2,
    gpus: tyro.conf.FlagCreatePairsOff[bool] = False,
    cpus: int = 1,
    retries: int = 3,
    storage: Path | None = None,
    port: int = 0,
    dashboard: tyro.conf.FlagCreatePairsOff[bool] = False,
    env: dict[str, str] = {},  # noqa: B006 -- never changed
) -> Cluster:
    """Trains through Ray Train, each rank the process that torchrun would start.

    After a rank was killed or its node lost, all ranks are started again and go on from the run's
    last checkpoint. Store, run and code must lie at the same paths on all nodes.

    twofold launch ray --workers 2 -- dare --data stores/mine --out runs/dare
    twofold launch ray --address auto --workers 16 --gpus --cpus 8 -- dare --data ...

    Args:
        address: Of a running cluster: auto, or HOST:PORT of its head. By default one is started
            for the job on this machine, on the loopback address, and ended with it. One that you
            start has open ports unless you close them (docs/clusters.md).
        workers: Ranks.
        gpus: A GPU for each rank, with NCCL. Without: CPUs, with gloo.
        cpus: CPU cores of each rank, and its OMP_NUM_THREADS.
        retries: How often all ranks are started again after one has failed or was killed.
        storage: Folder of Ray Train's own notes, on a disk that all nodes share; by default .ray
            beside the run.
        port: Where rank 0 waits for the others; 0: a free one.
        dashboard: Ray's dashboard, on the loopback address, of a cluster that is started here.
        env: Environment of the ranks: --env GLOO_SOCKET_IFNAME eth1 NCCL_DEBUG INFO.
    """
    return Cluster(
        address=address,
        workers=workers,
        gpus=gpus,
        cpus=cpus,
        retries=retries,
        storage=storage,
        port=port,
        dashboard=dashboard,
        env=env,
    )
