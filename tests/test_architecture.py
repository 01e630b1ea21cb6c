"""The rooms of docs/architecture.md, read from the source: who imports whom, what nobody calls."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.setup_config import dependencies
from trainer.doctor.facts import normalised

REPOSITORY = Path(__file__).parents[1]

MAY_IMPORT = {
    "data": set(),
    "modules": set(),
    "sharding": {"modules"},
    "analysis": {"data", "modules"},
    "trainer": {"data", "modules", "sharding", "analysis", "torchx_specs"},
    "torchx_specs": set(),
}

PARTS = {
    "fbgemm_gpu": "fbgemm-gpu-cpu",
    "llvmlite": "numba",
    "markupsafe": "jinja2",
    "sklearn": "scikit-learn",
}
"""Distributions that bring an import of another name."""


def sources(room: str) -> list[Path]:
    return sorted((REPOSITORY / room).rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level names of the absolute imports, wherever in the file they stand."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def dangers(tree: ast.AST) -> Iterator[str]:
    """Calls that run what a file or a string says."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in {"eval", "exec", "os.system", "os.popen"}:
            yield called
        if re.fullmatch(r"c?[pP]ickle\.(load|loads|Unpickler)", called):
            yield called
        if called == "torch.load" and arguments.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        if arguments.get("allow_pickle") == "True":
            yield f"{called} with allow_pickle"
        if arguments.get("shell", "False") != "False":
            yield f"{called} with shell"


def test_the_rooms_are_those_of_the_document() -> None:
    document = (REPOSITORY / "docs" / "architecture.md").read_text()
    described = re.findall(r"^\| `(\w+)/` \|", document, re.MULTILINE)
    assert set(MAY_IMPORT) == set(described)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_the_rooms_below(room: str) -> None:
    others = set(MAY_IMPORT) | {"tests", "benchmarks"}
    forbidden = others - MAY_IMPORT[room] - {room}
    found = {
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for path in sources(room)
        for name in imported(ast.parse(path.read_text()))
        if name in forbidden
    }
    assert found == set()


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_libraries_that_the_setup_installs(room: str) -> None:
    ours = set(MAY_IMPORT)
    installed = {normalised(name) for name in dependencies()}
    found = {
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for path in sources(room)
        for name in imported(ast.parse(path.read_text()))
        if name not in ours | sys.stdlib_module_names
        and normalised(PARTS.get(name, name)) not in installed
    }
    assert found == set()


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_no_room_runs_what_a_file_or_a_string_says(room: str) -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}: {danger}"
        for path in sources(room)
        for danger in dangers(ast.parse(path.read_text()))
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "pickle.load(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
    ],
)
def test_dangers_are_seen(code: str) -> None:
    assert list(dangers(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["torch.load(path, weights_only=True)", "subprocess.run(args)", "model.eval()"]
)
def test_what_is_safe_is_allowed(code: str) -> None:
    assert not list(dangers(ast.parse(code)))


def test_imports_are_seen_inside_functions() -> None:
    code = "def f():\n    from data.store import open_store\n    import torch.distributed as dist"
    assert list(imported(ast.parse(code))) == ["data", "torch"]
