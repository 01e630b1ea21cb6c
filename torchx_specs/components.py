"""TorchX components: functions that describe a job and start nothing.

A function's docstring is its ``--help``: ``torchx run torchx_specs/components.py:train --help``.
``train`` and ``evaluate`` run one process per device on any number of nodes; the others are a
single process on a single node. docs/clusters.md has the command for each scheduler.
"""

# ruff: noqa: UP006, UP035, UP045 -- torchx checks the source and knows only typing's names

from typing import Dict, Optional, Sequence

import torchx
from torchx import specs
from torchx.components import dist

TRAINING = {
    # --shutdown-timeout of torchrun: seconds in which ranks that are told to end may save; then it
    # kills them, by default after 30
    "PET_SHUTDOWN_TIMEOUT": "600",
}


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
    max_restarts: int = 0,
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
        h: a registered named resource (h100x8, ...), which replaces cpu, gpu and memMB
        cpu: CPU cores of each node, divided among its processes as OMP_NUM_THREADS
        gpu: GPUs of each node; with GPUs nproc_per_node must not exceed them
        memMB: memory of each node in MB
        name: name of the job, {experiment}/{run} or {run}
        image: image of the job where the scheduler uses images
        env: environment of the processes (e.g. A=1,B=2); stands above what is set here
        max_retries: how often the scheduler starts a failed job again (Slurm, Kubernetes)
        max_restarts: how often torchrun starts all processes again after one has died
        rdzv_port: port of the rendezvous on the first node; a single node takes a free port
        rdzv_backend: rendezvous backend of torch.distributed.run for several nodes
        debug: switches the checks of torch.distributed on
        tee: streams shown with the rank in front: 0 neither, 1 stdout, 2 stderr, 3 both
    """
    if (max_retries or max_restarts) and "--resume" not in script_args:
        raise ValueError(
            "A training that is started again goes on from its last checkpoint only with --resume "
            "(and from the beginning where there is none): add --resume behind the experiment, or "
            "leave max_retries and max_restarts at 0."
        )
    return _one_process_per_device(
        ["train", *script_args],
        j=j,
        resource=specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h),
        name=name,
        image=image,
        env=TRAINING | {"PET_MAX_RESTARTS": str(max_restarts)} | (env or {}),
        max_retries=max_retries,
        rdzv_port=rdzv_port,
        rdzv_backend=rdzv_backend,
        debug=debug,
        tee=tee,
    )


def evaluate(
    *script_args: str,
    j: str = "1x2",
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    name: str = "evaluate",
    image: str = torchx.IMAGE,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """Scores a trained run's checkpoint on a split, one process per device.

    On this machine: torchx run -s local_cwd torchx_specs/components.py:evaluate -j 1x2 -- RUN
    --data STORE --split val. The world size need not be the training's.

    Args:
        script_args: arguments of twofold evaluate: a run folder, --data, --split, --checkpoint
        j: [{min_nnodes}:]{nnodes}x{nproc_per_node}; nnodes times nproc_per_node is the world size
        h: a registered named resource (h100x8, ...), which replaces cpu, gpu and memMB
        cpu: CPU cores of each node, divided among its processes as OMP_NUM_THREADS
        gpu: GPUs of each node; with GPUs nproc_per_node must not exceed them
        memMB: memory of each node in MB
        name: name of the job, {experiment}/{run} or {run}
        image: image of the job where the scheduler uses images
        env: environment of the processes (e.g. A=1,B=2); stands above what is set here
        max_retries: how often the scheduler starts a failed job again (Slurm, Kubernetes)
        rdzv_port: port of the rendezvous on the first node; a single node takes a free port
    """
    return _one_process_per_device(
        ["evaluate", *script_args],
        j=j,
        resource=specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h),
        name=name,
        image=image,
        env=env or {},
        max_retries=max_retries,
        rdzv_port=rdzv_port,
    )


def sweep(
    *script_args: str,
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    name: str = "sweep",
    image: str = torchx.IMAGE,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
) -> specs.AppDef:
    """Runs a table of trainings, or of steps to be measured, rows times seeds, on one node.

    On this machine: torchx run -s local_cwd torchx_specs/components.py:sweep -- TABLE --data STORE
    --out DIR --jobs 2. A sweep that is started again skips the cells that are done.

    Args:
        script_args: arguments of twofold sweep: a table, --data, --out, --seeds, --jobs
        h: a registered named resource (h100x8, ...), which replaces cpu, gpu and memMB
        cpu: CPU cores
        gpu: GPUs
        memMB: memory in MB
        name: name of the job
        image: image of the job where the scheduler uses images
        env: environment of the process (e.g. A=1,B=2)
        max_retries: how often the scheduler starts a failed job again (Slurm, Kubernetes)
    """
    resource = specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h)
    return _one_process(["sweep", *script_args], resource, name, image, env or {}, max_retries)


def prepare(
    *script_args: str,
    h: Optional[str] = None,
    cpu: int = 2,
    memMB: int = 8192,
    name: str = "prepare",
    image: str = torchx.IMAGE,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
) -> specs.AppDef:
    """Turns a log into an event store, on one node.

    On this machine: torchx run -s local_cwd torchx_specs/components.py:prepare -- table
    --path log.csv --out STORE. A store that is not complete is not left behind.

    Args:
        script_args: arguments of twofold prepare: a source, --out, its options
        h: a registered named resource (cpu_spr, ...), which replaces cpu and memMB
        cpu: CPU cores
        memMB: memory in MB
        name: name of the job
        image: image of the job where the scheduler uses images
        env: environment of the process (e.g. A=1,B=2)
        max_retries: how often the scheduler starts a failed job again (Slurm, Kubernetes)
    """
    resource = specs.resource(cpu=cpu, gpu=0, memMB=memMB, h=h)
    return _one_process(["prepare", *script_args], resource, name, image, env or {}, max_retries)


def plan(
    *script_args: str,
    h: Optional[str] = None,
    cpu: int = 2,
    memMB: int = 8192,
    name: str = "plan",
    image: str = torchx.IMAGE,
    env: Optional[Dict[str, str]] = None,
) -> specs.AppDef:
    """Plans an experiment for clusters that are not at hand, on one node.

    On this machine: torchx run -s local_cwd torchx_specs/components.py:plan -- EXPERIMENT
    --data STORE --cluster 2x8xH100-80 --out PLAN. Needs none of the devices planned for.

    Args:
        script_args: arguments of twofold plan: an experiment, --data, --cluster, --out
        h: a registered named resource (cpu_spr, ...), which replaces cpu and memMB
        cpu: CPU cores
        memMB: memory in MB
        name: name of the job
        image: image of the job where the scheduler uses images
        env: environment of the process (e.g. A=1,B=2)
    """
    resource = specs.resource(cpu=cpu, gpu=0, memMB=memMB, h=h)
    return _one_process(["plan", *script_args], resource, name, image, env or {})


def demo(
    *script_args: str,
    cpu: int = 2,
    memMB: int = 8192,
    name: str = "demo",
    image: str = torchx.IMAGE,
    env: Optional[Dict[str, str]] = None,
) -> specs.AppDef:
    """Prepares a real log, trains DARE and its single-table twin on it and compares them.

    On this machine: torchx run. With options of the demo: torchx run -- -- --processes 1.

    Args:
        script_args: arguments of twofold demo: --out, --store, --processes, --seed
        cpu: CPU cores
        memMB: memory in MB
        name: name of the job
        image: image of the job where the scheduler uses images
        env: environment of the process (e.g. A=1,B=2)
    """
    resource = specs.resource(cpu=cpu, gpu=0, memMB=memMB)
    return _one_process(["demo", *script_args], resource, name, image, env or {})


def _one_process_per_device(
    arguments: Sequence[str],
    *,
    j: str,
    resource: specs.Resource,
    name: str,
    env: Dict[str, str],
    **options: object,
) -> specs.AppDef:
    """``torchrun -m trainer.main`` on every node; ``options`` are those of ``dist.ddp``."""
    min_nodes, max_nodes, nproc_per_node, _ = dist.parse_nnodes(j)
    if min(min_nodes, nproc_per_node) < 1 or max_nodes < min_nodes:
        raise ValueError(f"-j needs at least one node and one process on it, e.g. 1x2; got {j}.")
    if 0 < resource.gpu < nproc_per_node:
        raise ValueError(
            f"-j {j} starts {nproc_per_node} processes on nodes with {resource.gpu} GPUs; "
            f"the most that fits is -j {j.rpartition('x')[0] or 1}x{resource.gpu}."
        )
    env = environment(resource.cpu, nproc_per_node, max_nodes) | env
    app = dist.ddp(*arguments, m="trainer.main", name=name, j=j, env=env, **options)
    app.roles[0].resource = resource
    return app


def _one_process(
    arguments: Sequence[str],
    resource: specs.Resource,
    name: str,
    image: str,
    env: Dict[str, str],
    max_retries: int = 0,
) -> specs.AppDef:
    role = specs.Role(
        name=arguments[0],
        image=image,
        entrypoint="python",
        args=["-m", "trainer.main", *arguments],
        env=env,
        resource=resource,
        max_retries=max_retries,
    )
    return specs.AppDef(name=name, roles=[role])


def environment(cpu: int, nproc_per_node: int, nodes: int) -> Dict[str, str]:
    """Threads for each process; on a single node workers meet on the loopback address, on several
    each attempt has a store of its own: what ranks wrote into another would keep the next waiting.
    """
    variables = {"OMP_NUM_THREADS": str(max(1, cpu // nproc_per_node))}
    if nodes == 1:
        # --local-addr of torchrun; its default, the host name, may not resolve on a laptop
        variables["PET_LOCAL_ADDR"] = "localhost"
    else:
        variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return variables
