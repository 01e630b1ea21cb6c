"""TorchX components: functions that describe a job and start nothing.

A function's docstring is its ``--help``: ``torchx run torchx_specs/components.py:train --help``.
"""

# ruff: noqa: UP006, UP035, UP045 -- torchx checks the source and knows only typing's names

from typing import Dict, Optional

import torchx
from torchx import specs
from torchx.components import dist


def train(
    *script_args: str,
    j: str = "1x2",
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,  # the name that dist.ddp gives it
    name: str = "train",
    image: str = torchx.IMAGE,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    rdzv_port: int = 29500,
    rdzv_backend: str = "c10d",
    debug: bool = False,
    tee: int = 3,
) -> specs.AppDef:
    """Trains a ranking model, one process per device.

    On this machine: torchx run -s local_cwd torchx_specs/components.py:train -j 1x2 -- EXPERIMENT
    --data STORE --out RUN. All that follows "--" is for the trainer, as in twofold train.

    Args:
        script_args: arguments of twofold train: an experiment, --data, --out, overrides
        j: [{min_nnodes}:]{nnodes}x{nproc_per_node}; nnodes times nproc_per_node is the world size
        h: a registered named resource, which replaces cpu, gpu and memMB
        cpu: CPU cores of each node, divided among its processes as OMP_NUM_THREADS
        gpu: GPUs of each node; with GPUs nproc_per_node must not exceed them
        memMB: memory of each node in MB
        name: name of the job, {experiment}/{run} or {run}
        image: image of the job where the scheduler uses images
        env: environment of the processes (e.g. A=1,B=2); stands above what is set here
        max_retries: how often the scheduler starts a failed job again
        rdzv_port: port of the rendezvous on the first node; a single node takes a free port
        rdzv_backend: rendezvous backend of torch.distributed.run for several nodes
        debug: switches the checks of torch.distributed on
        tee: streams shown with the rank in front: 0 neither, 1 stdout, 2 stderr, 3 both
    """
    min_nodes, max_nodes, nproc_per_node, _ = dist.parse_nnodes(j)
    if min(min_nodes, nproc_per_node) < 1 or max_nodes < min_nodes:
        raise ValueError(f"-j needs at least one node and one process on it, e.g. 1x2; got {j}.")
    resource = specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h)
    if 0 < resource.gpu < nproc_per_node:
        raise ValueError(
            f"-j {j} starts {nproc_per_node} processes on nodes with {resource.gpu} GPUs; "
            f"the most that fits is -j {j.rpartition('x')[0] or 1}x{resource.gpu}."
        )
    return dist.ddp(
        "train",
        *script_args,
        m="trainer.main",
        name=name,
        image=image,
        h=h,
        cpu=cpu,
        gpu=gpu,
        memMB=memMB,
        j=j,
        env=environment(resource.cpu, nproc_per_node, max_nodes) | (env or {}),
        max_retries=max_retries,
        rdzv_port=rdzv_port,
        rdzv_backend=rdzv_backend,
        debug=debug,
        tee=tee,
    )


def environment(cpu: int, nproc_per_node: int, nodes: int) -> Dict[str, str]:
    """Threads for each process; on a single node workers meet on the loopback address."""
    variables = {"OMP_NUM_THREADS": str(max(1, cpu // nproc_per_node))}
    if nodes == 1:
        # --local-addr of torchrun; its default, the host name, may not resolve on a laptop
        variables["PET_LOCAL_ADDR"] = "localhost"
    return variables
