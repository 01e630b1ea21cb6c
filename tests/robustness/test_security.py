"""Nothing from disk or network is run, words never reach a shell, and servers stay on loopback."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.report.templates import environment

ROOT = Path(__file__).parents[2]
ROOMS = ("data", "modules", "sharding", "analysis", "trainer", "torchx_specs")
SOURCES = [
    file.relative_to(ROOT).as_posix()
    for room in ROOMS
    for file in sorted((ROOT / room).rglob("*.py"))
]
UNPICKLING = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads",
    "marshal.load", "marshal.loads", "shelve.open", "joblib.load", "pandas.read_pickle",
    "pd.read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.package",
    "dill.load", "dill.loads",
}  # fmt: skip
OBJECTS = {  # collectives that pickle
    "all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list",
    "send_object_list", "recv_object_list",
}  # fmt: skip
RUNNING = {"eval", "exec", "compile", "os.system", "os.popen", "subprocess.getoutput"}
REASONED = {
    ("trainer/checkpoint/safe_reading.py", "pickle.Unpickler"): "names what it may make",
}
"""(file, call) -> why it may be there."""


def calls(file: str) -> Iterator[tuple[str, ast.Call | ast.ClassDef]]:
    """(dotted name, node) of every call, and of every base class."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node
        elif isinstance(node, ast.ClassDef):
            for base in node.bases:
                yield ast.unparse(base), node


def flag(call: ast.Call, name: str) -> object:
    """A keyword's constant; None where it is not given."""
    return next(
        (
            k.value.value
            for k in call.keywords
            if k.arg == name and isinstance(k.value, ast.Constant)
        ),
        None,
    )


def complaints(file: str) -> list[str]:
    found = []
    for name, node in calls(file):
        last = name.rpartition(".")[2]
        if (file, name) in REASONED:
            continue
        if name in UNPICKLING | RUNNING or last in OBJECTS:
            found.append(name)
        elif isinstance(node, ast.Call):
            if name == "torch.load" and flag(node, "weights_only") is not True:
                found.append("torch.load without weights_only=True")
            if "dcp.load" in (name, *map(ast.unparse, node.args)) and "SafePlanner()" not in (
                ast.unparse(k.value) for k in node.keywords
            ):
                found.append("dcp.load without SafePlanner")
            if last in ("load", "memmap") and flag(node, "allow_pickle"):
                found.append("allow_pickle")
            if flag(node, "shell"):
                found.append("a shell")
    return found


@pytest.mark.parametrize("file", SOURCES)
def test_nothing_is_unpickled_or_run(file: str) -> None:
    assert complaints(file) == []


def test_the_exceptions_are_still_there() -> None:
    for file, name in REASONED:
        assert name in {found for found, _ in calls(file)}


def test_the_scan_sees_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    for line, count in (
        ("import pickle\npickle.loads(b'')", 1),
        ("torch.load(f)", 1),
        ("torch.load(f, weights_only=False)", 1),
        ("torch.load(f, weights_only=True)", 0),
        ("np.load(f, allow_pickle=True)", 1),
        ("np.load(f)", 0),
        ("dcp.load(a, storage_reader=b)", 1),
        ("wrapped(dcp.load, a, storage_reader=b)", 1),
        ("wrapped(dcp.load, a, planner=SafePlanner())", 0),
        ("subprocess.run(x, shell=True)", 1),
        ("subprocess.run([x])", 0),
        ("dist.all_gather_object(a, b)", 1),
        ("class A(pickle.Unpickler): pass", 1),
        ("eval(x)", 1),
        ("model.eval()", 0),
        ("re.compile(x)", 0),
    ):
        (tmp_path / "a.py").write_text(line)
        assert len(complaints("a.py")) == count, line


def test_no_server_of_ours_listens_beyond_loopback() -> None:
    """Addresses stand in the sources as words; none is that of all interfaces."""
    words = {file: words_of((ROOT / file).read_text(encoding="utf-8")) for file in SOURCES}
    assert words_of('serve("0.0.0.0")') & ALL_INTERFACES  # such a word would be seen
    assert any("127.0.0.1" in found for found in words.values())
    assert not {file for file, found in words.items() if found & ALL_INTERFACES}


ALL_INTERFACES = {"0.0.0.0", "::", "[::]"}  # noqa: S104


def words_of(source: str) -> set[str]:
    """Strings that stand in it whole."""
    constants = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return {node.value for node in constants if isinstance(node.value, str)}


def test_tensorboard_is_written_and_not_served() -> None:
    """Points are written to RUN/tensorboard; who looks at them starts the server."""
    for file in SOURCES:
        for name, _ in calls(file):
            assert name not in ("program.TensorBoard", "tb.launch", "notebook.start"), file


def test_pages_escape_all_but_our_pictures() -> None:
    """One environment, which escapes; what is marked as safe is SVG that matplotlib has escaped."""
    assert environment().from_string("{{ word }}").render(word="<script>") == "&lt;script&gt;"
    for file in SOURCES:
        text = (ROOT / file).read_text(encoding="utf-8")
        own = [file == "trainer/report/templates.py", file == "trainer/report/figures.py"]
        for words, allowed in zip(("jinja2.Environment(", "Markup("), own, strict=True):
            assert allowed or words not in text, f"{words} in {file}"
    for template in (ROOT / "trainer").rglob("*.j2"):
        assert "|safe" not in template.read_text().replace(" ", ""), template
