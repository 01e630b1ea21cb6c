"""What Slurm and Kubernetes would be asked for: dry runs, field by field."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torchx.runner import get_runner
from torchx.schedulers.slurm_scheduler import SlurmBatchRequest

REPOSITORY = Path(__file__).parents[2]
COMPONENTS = REPOSITORY / "torchx_specs" / "components.py"
TRAINING = ("dare", "--data", "/d", "--out", "/o", "--resume")
RENDEZVOUS = "--rdzv_backend c10d --rdzv_endpoint"

STUB = f"""#!{sys.executable}
import json, sys
print("{{name}}", json.dumps(sys.argv[1:]))
"""


def request(scheduler: str, component: str, *words: str, **cfg: Any) -> Any:
    """What TorchX would send."""
    with get_runner() as runner:
        name = f"{COMPONENTS}:{component}"
        return runner.dryrun_component(name, list(words), scheduler, cfg=cfg).request


def slurm(*words: str) -> SlurmBatchRequest:
    return request("slurm", "train", *words, partition="gpu", time="60")


def test_slurm_gets_a_task_for_each_node() -> None:
    asked = slurm("-j", "2x8", "--cpu", "64", "--gpu", "8", "--memMB", "500000", "--", *TRAINING)
    assert list(asked.replicas) == ["main-0", "main-1"]
    for replica in asked.replicas.values():
        assert replica.sbatch_opts == {
            "partition": "gpu", "time": "60", "ntasks-per-node": "1",
            "cpus-per-task": "64", "gpus-per-task": "8", "mem": "500000",
        } | {"requeue": None}  # fmt: skip
        assert replica.env["OMP_NUM_THREADS"] == "8"
        line = replica.args[1]
        assert f"{RENDEZVOUS} ${{SLURM_JOB_NODELIST_HET_GROUP_0:=localhost}}:29500" in line
        assert line.endswith("-m trainer.main train dare --data /d --out /o --resume")


def test_slurm_starts_a_failed_job_again_as_often_as_it_may() -> None:
    script = slurm("-j", "2x1", "--max_retries", "3", "--", *TRAINING).materialize()
    assert "export TORCHX_MAX_RETRIES=3" in script
    assert 'scontrol requeue "$SLURM_JOB_ID"' in script


def test_slurm_runs_what_the_user_wrote_and_no_shell_reads_it(tmp_path: Path) -> None:
    evil = "/o $(touch pwned); touch pwned & 'a\" `touch pwned`"
    script = slurm("-j", "1x1", "--", "dare", "--out", evil).materialize()
    for name in ("srun", "torchrun"):
        stub = tmp_path / name
        stub.write_text(STUB.format(name=name))
        stub.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}

    def run(*command: str) -> list[str]:
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        (line,) = (x for x in ended.stdout.splitlines() if x.startswith(("srun", "torchrun")))
        return json.loads(line.partition(" ")[2])

    words = run("bash", "-c", script)  # the batch script, as srun would see it
    command = words[words.index("bash") :]
    arguments = run(*command)  # on the node
    assert arguments[-4:] == ["train", "dare", "--out", evil]
    assert not (tmp_path / "pwned").exists()


def test_kubernetes_gets_a_pod_for_each_node() -> None:
    pytest.importorskip("kubernetes", reason="TorchX's Kubernetes scheduler needs this package")
    asked = request(
        "kubernetes", "train", "-j", "2x8", "--cpu", "64", "--gpu", "8", "--memMB", "500000",
        "--image", "registry/twofold:1", "--", *TRAINING, queue="default",
    )  # fmt: skip
    job = asked.resource
    assert (job["apiVersion"], job["kind"]) == ("batch.volcano.sh/v1alpha1", "Job")
    assert job["spec"]["queue"] == "default"
    assert [task["name"] for task in job["spec"]["tasks"]] == ["main-0", "main-1"]
    for task, first in zip(job["spec"]["tasks"], ("TORCHX_RANK0_HOST", "VC_MAIN_0_HOSTS"),
                           strict=True):  # fmt: skip
        (container,) = task["template"].spec.containers
        assert container.image == "registry/twofold:1"
        limits = container.resources.limits
        assert limits == {"cpu": "64000m", "memory": "500000M", "nvidia.com/gpu": "8"}
        assert {e.name: e.value for e in container.env}["OMP_NUM_THREADS"] == "8"
        assert [port.container_port for port in container.ports] == [29500]
        assert f"{RENDEZVOUS} ${{{first}:=localhost}}:29500" in container.command[2]
        assert container.command[2].endswith("-m trainer.main train dare --data /d --out /o "
                                             "--resume")  # fmt: skip


def test_kubernetes_restarts_the_whole_job() -> None:
    pytest.importorskip("kubernetes", reason="TorchX's Kubernetes scheduler needs this package")
    with pytest.warns(UserWarning, match="restarts: 3"):
        asked = request(
            "kubernetes", "train", "-j", "1x1", "--max_retries", "3", "--", *TRAINING, queue="q"
        )
    spec = asked.resource["spec"]
    assert spec["maxRetry"] == 3
    (task,) = spec["tasks"]
    assert {"event": "PodFailed", "action": "RestartJob"} in task["policies"]
    assert task["template"].spec.restart_policy == "Never"
