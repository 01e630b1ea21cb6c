"""The command line's manners: help, names, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import InputError
from data.sources import SOURCES
from trainer import cli
from trainer.commands import doctor
from trainer.experiments import EXPERIMENTS

HELPS = [
    ["prepare"],
    *(["prepare", name] for name in SOURCES),
    ["train"],
    *(["train", name] for name in EXPERIMENTS),
    ["evaluate"],
    ["demo"],
    ["doctor"],
]


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["help"]])
def test_help_names_all_commands(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.run(arguments) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in cli.COMMANDS)


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_every_command_has_help_that_is_prose(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert cli.run([*words, "--help"]) == 0
    out = capsys.readouterr().out
    assert "usage: twofold " + " ".join(words) in out
    # markup, Python's names and a class's own variables are not the user's concern
    for leak in ("``", ":class:", ".. math", "tyro", "Args:", "{None}", "--name", "--carry"):
        assert leak not in out


def test_help_of_train_lists_the_experiments_with_a_sentence_each(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli.run(["train", "--help"])
    lines = capsys.readouterr().out.splitlines()
    for name, make in EXPERIMENTS.items():
        (line,) = (line for line in lines if line.split()[:1] == [name])
        assert line.split(maxsplit=1)[1].split()[0] == make.__doc__.split()[0]


def test_flags_of_an_experiment_show_its_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["train", "dare_paper", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "Most recent events of each history that are kept. (default: 200)" in words
    assert "Event store made by twofold prepare. (required)" in words


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (
            "prepar",
            (
                "no command 'prepar'",
                "Did you mean prepare?",
                "doctor, prepare, verify-store, plan, train",
            ),
        ),
        ("--data x", ("The command comes first", "twofold COMMAND")),
        ("train", ("The experiment comes first", "--data STORE --out RUN", "dare, twin")),
        ("train --data s --out r dare", ("The experiment comes first",)),
        ("train dre --data s --out r", ("no experiment 'dre'", "Did you mean dare?")),
        ("train dare-dot", ("no experiment 'dare-dot'", "Did you mean dare_dot?")),
        ("train xyz", ("no experiment 'xyz'. There are: dare, twin", "twofold train --help")),
        ("prepare tabel", ("no source 'tabel'", "Did you mean table?", "twofold prepare --help")),
        ("train dare --data s", ("Missing", "--out", "Run folder", "twofold train dare --help")),
        ("train dare --data s --out r --histroy-length 5", ("histroy", "--history-length INT")),
        ("train dare --data s --out r --model.top_kk 5", ("top_kk", "--model.top-k INT")),
        ("train dare --data s --out r --top-k 5", ("Perhaps you meant", "--model.top-k INT")),
        ("train dare --data s --out r more", ("Unrecognized options: more",)),
        ("train dare --data s --out r --tables.kind adm", ("'adm'", "'rowwise_adagrad'", "'sgd'")),
        ("train dare --data s --out r --epochs 1.5", ("--epochs", "'1.5'", "INT")),
        ("train dare --data s --out r --resume --replace", ("--resume and --replace exclude",)),
        ("prepare table --out s", ("Missing", "--path")),
        ("evaluate --data s", ("Missing", "Run folder")),
        ("evaluate r --data s --split tst", ("'tst'", "'train', 'val', 'test'")),
        ("demo --proceses 2", ("--proceses", "--processes INT")),
        ("demo --processes 0", ("--processes must be at least 1, got 0",)),
        ("doctor --fast", ("--fast",)),
    ],
)
def test_wrong_usage_ends_with_one_message(
    capsys: pytest.CaptureFixture[str], line: str, parts: tuple[str, ...]
) -> None:
    assert cli.run(line.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    position = 0
    words = " ".join(shown.err.split())
    for part in parts:
        assert part in words[position:], f"{part!r} not in: {shown.err}"
        position = words.index(part, position)


@pytest.mark.parametrize("line", ["train dre", "train dare", "train dare --data s --out r --k 1"])
def test_wrong_usage_is_told_by_one_rank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert cli.run(line.split()) == 2
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("ending", "code", "message"),
    [
        (InputError("no such thing"), 2, "twofold: no such thing\n"),
        (KeyboardInterrupt(), 2, "twofold: Interrupted. What was not complete is removed.\n"),
        (SystemExit(143), 143, ""),
        (SystemExit(), 0, ""),
        (ZeroDivisionError("ours"), 1, "Traceback"),
    ],
)
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ending: BaseException,
    code: int,
    message: str,
) -> None:
    def end(_: object) -> int:
        raise ending

    monkeypatch.setattr(doctor, "main", end)
    assert cli.run(["doctor"]) == code
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert (err == message) or code == 1


def test_a_reader_who_leaves_is_no_crash() -> None:
    command = [sys.executable, "-m", "trainer.main", "prepare", "table", "--help"]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": Path(__file__).parents[2]}
    with subprocess.Popen(command, **pipe) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
