"""TorchX components: an AppDef is data, so its fields are compared."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed.run import config_from_args, parse_args
from torchx import specs
from torchx.runner import get_runner
from torchx.runner.config import get_config
from torchx.specs.file_linter import get_fn_docstring, validate
from torchx.specs.finder import get_component

from torchx_specs import components
from torchx_specs.components import demo, evaluate, plan, prepare, sweep, train

REPOSITORY = Path(__file__).parents[2]
COMPONENT = f"{REPOSITORY / 'torchx_specs' / 'components.py'}:train"


def role_of(app: specs.AppDef) -> specs.Role:
    (role,) = app.roles
    return role


def test_a_node_runs_torchrun_with_the_trainer() -> None:
    role = role_of(train("dare", "--data", "my store", j="1x4"))
    command = role.args[1]
    assert command.startswith("torchrun ")
    assert "--nnodes 1 --nproc_per_node 4" in command
    assert command.endswith("-m trainer.main train dare --data 'my store'")


def test_one_node_meets_on_the_loopback_address() -> None:
    role = role_of(train(j="1x2"))
    assert "--rdzv_endpoint localhost:0" in role.args[1]
    assert role.env["PET_LOCAL_ADDR"] == "localhost"
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" not in role.env


def test_several_nodes_meet_on_the_first() -> None:
    role = role_of(train(j="2x8", rdzv_port=29700))
    assert role.num_replicas == 2
    assert "${rank0_env}" in role.args[1]
    assert ":29700" in role.args[1]
    assert "PET_LOCAL_ADDR" not in role.env
    assert role.env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


@pytest.mark.parametrize(
    ("cpu", "j", "threads"), [(2, "1x2", "1"), (16, "1x4", "4"), (1, "4", "1")]
)
def test_processes_share_the_cores_of_their_node(cpu: int, j: str, threads: str) -> None:
    assert role_of(train(cpu=cpu, j=j)).env["OMP_NUM_THREADS"] == threads


def test_the_users_environment_stands_above_ours() -> None:
    env = role_of(train(env={"OMP_NUM_THREADS": "3", "A": "1"})).env
    assert (env["OMP_NUM_THREADS"], env["A"]) == ("3", "1")


def test_resources_name_and_retries_arrive() -> None:
    app = train("--resume", j="1x2", cpu=8, gpu=2, memMB=4096, name="ctr/first", max_retries=3)
    role = role_of(app)
    assert app.name == "first"
    assert (role.resource.cpu, role.resource.gpu, role.resource.memMB) == (8, 2, 4096)
    assert role.max_retries == 3


def test_more_processes_than_gpus_names_the_way_out() -> None:
    with pytest.raises(ValueError, match="the most that fits is -j 3x4"):
        train(j="3x8", gpu=4)


def test_ranks_that_are_told_to_end_have_time_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in role_of(train()).env.items():
        monkeypatch.setenv(name, value)
    config, _, _ = config_from_args(parse_args(["script.py"]))  # as torchrun reads it
    assert config.shutdown_timeout == 600


@pytest.mark.parametrize("j", ["0x2", "1x0", "3:1x2"])
def test_a_job_without_processes_is_refused(j: str) -> None:
    with pytest.raises(ValueError, match=f"got {j}"):
        train(j=j)


@pytest.mark.parametrize("again", ["max_retries", "max_restarts"])
def test_a_training_that_may_start_again_must_resume(again: str) -> None:
    with pytest.raises(ValueError, match="add --resume"):
        train("dare", **{again: 1})
    train("dare", "--resume", **{again: 1})


def test_restarts_are_torchruns() -> None:
    assert role_of(train("dare", "--resume", max_restarts=3)).env["PET_MAX_RESTARTS"] == "3"


def test_an_evaluation_runs_as_a_training_does() -> None:
    role = role_of(evaluate("RUN", "--data", "STORE", j="2x4", gpu=4, rdzv_port=29700))
    assert role.args[1].endswith("-m trainer.main evaluate RUN --data STORE")
    assert (role.num_replicas, role.resource.gpu) == (2, 4)
    assert ":29700" in role.args[1]


@pytest.mark.parametrize("component", [sweep, prepare, plan, demo])
def test_the_others_are_one_process(component: Callable[..., specs.AppDef]) -> None:
    app = component("a b", "--out", "$(touch x)", cpu=3, memMB=100, env={"A": "1"})
    role = role_of(app)
    assert app.name == role.name == component.__name__
    # a list, which no shell reads
    command = ["python", "-m", "trainer.main", component.__name__, "a b", "--out", "$(touch x)"]
    assert [role.entrypoint, *role.args] == command
    assert (role.num_replicas, role.resource.cpu, role.resource.memMB) == (1, 3, 100)
    assert role.env == {"A": "1"}


@pytest.mark.parametrize("name", ["train", "evaluate", "sweep", "prepare", "plan", "demo"])
def test_torchx_accepts_a_component_and_finds_its_help(name: str) -> None:
    assert validate(components.__file__, name) == []
    summary, arguments = get_fn_docstring(getattr(components, name))
    assert len(summary) > 20
    assert all(text not in (" ", "") for text in arguments.values()), arguments


def test_plain_torchx_run_starts_the_demo() -> None:
    def configured(key: str) -> str | None:
        return get_config(prefix="cli", name="run", key=key, dirs=[str(REPOSITORY)])

    assert configured("scheduler") == "local_cwd"
    path, _, function = (configured("component") or "").partition(":")
    assert get_component(f"{REPOSITORY / path}:{function}").fn_name == "demo"


def test_the_command_line_reaches_the_app() -> None:
    with get_runner() as runner:
        args = ["-j", "1x3", "--env", "A=1,B=2", "--", "dare", "--data", "store"]
        app = runner.dryrun_component(COMPONENT, args, "local_cwd")._app
    assert app is not None
    assert role_of(app).args[1].endswith("-m trainer.main train dare --data store")
    assert role_of(app).env["B"] == "2"
