"""The set-up: pins, the FBGEMM alias, make's targets, what is shipped to a cluster."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import fsspec
import pytest
from torchx.workspace.api import walk_workspace

from tests.setup_config import dependencies, requirement_lines, setup_config
from trainer.doctor.checks import MINIMUM_PYTHON, PAIRINGS

REPOSITORY = Path(__file__).parents[1]
MAKEFILE = (REPOSITORY / "Makefile").read_text()


def alias() -> dict:
    path = REPOSITORY / "packaging" / "fbgemm-gpu-cpu-alias" / "pyproject.toml"
    return tomllib.loads(path.read_text())["project"]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))


def make_dry_run(*arguments: str) -> str:
    """What make would run; -B: also where it has run already."""
    if shutil.which("make") is None:
        pytest.skip("make is not here")
    command = ["make", "-n", "-B", *arguments]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    return ended.stdout + ended.stderr


def test_every_dependency_is_pinned() -> None:
    assert len(dependencies()) == len(requirement_lines()), requirement_lines()


def test_the_fbgemm_alias_follows_the_pinned_cpu_build() -> None:
    version = dependencies()["fbgemm-gpu-cpu"]
    assert alias()["name"] == "fbgemm-gpu"
    assert alias()["version"] == version
    assert alias()["dependencies"] == [f"fbgemm-gpu-cpu=={version}"]


def test_the_pinned_set_is_the_first_pairing_of_the_doctor() -> None:
    pins = dependencies()
    torch, pairing = next(iter(PAIRINGS.items()))
    assert pins["torch"].startswith(f"{torch}.")
    assert pins["torchrec"] == pairing.torchrec
    assert pins["fbgemm-gpu-cpu"] == pins["fbgemm-gpu"] == pairing.fbgemm


def test_everyone_names_the_same_oldest_python() -> None:
    oldest = ".".join(map(str, MINIMUM_PYTHON))
    ruff = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["ruff"]
    assert setup_config()["options"]["python_requires"] == f">={oldest}"
    assert ruff["target-version"] == "py" + oldest.replace(".", "")
    assert f"sys.version_info < {MINIMUM_PYTHON}" in MAKEFILE


def test_a_cpu_set_up_is_one_command_with_the_alias() -> None:
    installs = re.findall(r"pip .*install .*", make_dry_run("setup", "DEVICE=cpu"))
    (install,) = [line for line in installs if "uninstall" not in line]
    assert "./packaging/fbgemm-gpu-cpu-alias -e '.[cpu,demo,graph,dev]'" in install


def test_a_cuda_set_up_has_no_alias() -> None:
    commands = make_dry_run("setup", "DEVICE=cuda")
    assert "-e '.[cuda,demo,graph,dev]'" in commands
    assert "alias" not in commands


def test_a_set_up_removes_the_other_fbgemm_first() -> None:
    commands = make_dry_run("setup", "DEVICE=cuda")
    assert commands.index("uninstall -y fbgemm-gpu fbgemm-gpu-cpu") < commands.index(" install ")


def test_an_unknown_device_names_the_known() -> None:
    assert 'DEVICE is cpu or cuda, not "tpu"' in make_dry_run("setup", "DEVICE=tpu")


def test_an_old_python_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not here")
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    for name in ("setup.cfg", "pyproject.toml"):
        (tmp_path / name).touch()
    command = ["make", "setup", "PYTHON=false"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "Python 3.11 or newer; false is older or missing" in ended.stderr
    assert not (tmp_path / ".venv").exists()


def test_help_lists_every_target() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)", MAKEFILE, re.MULTILINE)
    described = re.findall(r"^([a-z]+):.* ## ", MAKEFILE, re.MULTILINE)
    assert set(phony.split()) == set(described) == make_targets()


@pytest.mark.parametrize("document", ["README.md", ".ci/run", "trainer/doctor/checks.py"])
def test_documents_name_targets_that_exist(document: str) -> None:
    text = (REPOSITORY / document).read_text()
    named = re.findall(r"(?:^|[`\"$] ?)make (?:-B )?([a-z]+)", text, re.MULTILINE)
    assert set(named) <= make_targets()


@pytest.mark.parametrize("name", ["Makefile", ".ci/run", "setup.cfg", "pyproject.toml"])
def test_pips_own_configuration_chooses_the_index(name: str) -> None:
    text = (REPOSITORY / name).read_text()
    assert not re.search(r"://|index-url|find-links", text)


def test_the_licence_is_the_one_that_the_metadata_names() -> None:
    licence = (REPOSITORY / "LICENSE").read_text()
    assert setup_config()["metadata"]["license"] == "Apache-2.0"
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


def test_torchx_ships_the_code_and_nothing_else(tmp_path: Path) -> None:
    shipped = (".torchxconfig", "setup.cfg", "trainer/main.py", "data/sources/table.py")
    kept = (
        ".git/HEAD", ".venv/bin/python", "runs/a/b.json", "stores/s/store.json", "tests/a.py",
        "trainer/__pycache__/main.pyc", "twofold.egg-info/PKG-INFO",
    )  # fmt: skip
    for name in (*shipped, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    shutil.copy(REPOSITORY / ".torchxignore", tmp_path)
    walked = walk_workspace(fsspec.filesystem("file"), str(tmp_path), ".torchxignore")
    found = {Path(folder, name).name for folder, _, files in walked for name in files}
    assert found == {".torchxignore", *(Path(name).name for name in shipped)}
