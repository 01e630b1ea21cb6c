"""Random logs and settings: whatever a user gives, one message or a result, and never half of one.

Most cases run within this process; what they would train is built and not trained.
"""

from __future__ import annotations

import dataclasses
import os
import random
import resource
import shutil
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from data.store import EventStore
from data.verify import verify_store
from tests.trainer.command_lines import TINY, Job
from trainer import cli
from trainer.commands import train
from trainer.experiment import Experiment
from trainer.experiments import EXPERIMENTS

CELLS = (
    "", "0", "1", "2", "-1", "1.5", "nan", "inf", "-inf", "1e300", "abc", str(2**31), str(2**63),
    str(2**64), "-9223372036854775808", "\x00", "é", "😀", '"', '"a,b"', "a\tb", "None", "true",
    "<script>alert(1)</script>", "../..", "2020-01-01", " 7 ", "0x10", "1_000", "9" * 400,
)  # fmt: skip
SOURCES = {
    "table": ("user", "item", "time", "label"),
    "taobao": (),
    "tmall": ("user_id", "item_id", "cat_id", "seller_id", "brand_id", "time_stamp", "action_type"),
}
OPTIONS = (
    (), (), (), ("--label", "label"), ("--sort",), ("--text", "user", "item"), ("--order", "file"),
    ("--partitions", "3"), ("--negatives", "2"), ("--seed", "-1"), ("--seed", str(2**64)),
    ("--context", "label"), ("--side", "label"), ("--category", "label"), ("--action", "label"),
    ("--user", "none"), ("--delimiter", ";"), ("--min-events", "1"),
)  # fmt: skip


def random_log(source: str, draw: random.Random) -> bytes:
    """Rows that are mostly right, with strange cells, lost columns, and an end anywhere."""
    header = list(SOURCES[source])
    width = len(header) or 5
    wrong = draw.choice([0, 0, 0.002, 0.02, 0.2])
    rows = [header] if header and draw.random() < 0.95 else []
    times = sorted(draw.randrange(1000) for _ in range(draw.choice([0, 1, 2, 30, 200])))
    if draw.random() < 0.3:
        draw.shuffle(times)
    for time in times:
        row = [str(draw.randrange(9)) for _ in range(width)]
        row[width - (1 if source == "taobao" else 2)] = str(time)
        if source == "taobao":
            row[3] = draw.choice(["pv", "buy", "cart", "fav"])
        elif source == "table":
            row[3] = str(draw.randrange(2))
        row = [draw.choice(CELLS) if draw.random() < wrong else cell for cell in row]
        if draw.random() < wrong / 4:
            row = row[: draw.randrange(width)] if draw.random() < 0.5 else [*row, "extra"]
        rows.append(row)
    if rows and draw.random() < 0.1:
        lost = draw.randrange(width)
        rows = [row[:lost] + row[lost + 1 :] for row in rows]
    text = "\n".join(",".join(row) for row in rows) + draw.choice(["", "\n", "\n\n", "\r\n"])
    content = text.encode("utf-16" if draw.random() < 0.02 else "utf-8")
    if draw.random() < 0.1:
        content = content[: draw.randrange(len(content) + 1)]
    return content


def told(err: str) -> None:
    """One message of ours, or of the flags' parser in its frame."""
    assert "Traceback" not in err, err
    assert err.count("twofold: ") + err.count("For full helptext") == 1, err


@pytest.mark.parametrize("cases", [60, pytest.param(1500, marks=pytest.mark.soak)])
def test_any_log_is_a_store_or_a_message(
    cases: int, tmp_path: Path, draw: random.Random, capsys: pytest.CaptureFixture[str]
) -> None:
    log, out, codes = tmp_path / "log.csv", tmp_path / "store", []
    for case in range(cases):
        source = draw.choice(["table", "table", "table", *SOURCES])
        content = random_log(source, draw)
        log.write_bytes(content)
        options = draw.choice(OPTIONS) if source == "table" else ()
        line = ["prepare", source, "--path", str(log), "--out", str(out), *options]
        codes.append(cli.run(line))
        err = capsys.readouterr().err
        assert codes[-1] in (0, 2), (case, line, content, err)
        if codes[-1] == 2:
            told(err)
            assert [path.name for path in tmp_path.iterdir()] == ["log.csv"], (case, line, content)
        else:
            assert verify_store(out) == []
            EventStore.open(out)
            shutil.rmtree(out)
    assert {*codes} == {0, 2}


VALUES = (
    "0", "1", "-1", "2", "3", "7", "0.5", "1e-9", "nan", "inf", "-inf", "1e400", str(2**31),
    str(2**63), str(2**70), "", "abc", "None", "True", "false", "[1]", "item", "category",
    "recency", "item 3", "😀", "../x", "9" * 400, "--", "exact", "dot", "cosine", "sampled", "full",
    "adam", "sgd", "row_wise", "column_wise", "item row_wise",
)  # fmt: skip


def flags(config: type, prefix: str = "") -> Iterator[str]:
    """Every flag of a dataclass, as the command line calls it."""
    kinds = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        kind = kinds[field.name]
        name = f"{prefix}{field.name.replace('_', '-')}"
        inner = [
            k
            for k in (typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,))
            if dataclasses.is_dataclass(k)
        ]
        if inner:
            yield from flags(inner[0], f"{name}.")
        else:
            yield f"--{name}"


def random_settings(draw: random.Random, known: list[str]) -> list[str]:
    """One to four flags with any values; at times one that there is not."""
    words: list[str] = []
    for _ in range(draw.choice([1, 1, 2, 4])):
        flag = draw.choice(known) if draw.random() < 0.97 else draw.choice(known) + "x"
        words += [flag, *draw.choice(VALUES).split(" ")]
    return words


@pytest.fixture
def parsing_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """``train`` in this process reads its flags and does no more; forks with little memory do."""
    whole = train.main

    def main(arguments: Sequence[str]) -> int:
        if os.getpid() != parent:
            resource.setrlimit(resource.RLIMIT_DATA, (4 * 2**30, 4 * 2**30))
            return whole(arguments)
        train.read_order(arguments)
        return 0

    parent = os.getpid()
    monkeypatch.setattr(train, "main", main)


@pytest.mark.usefixtures("without_report", "parsing_only")
@pytest.mark.parametrize(
    ("cases", "trained"), [(40, 6), pytest.param(500, 150, marks=pytest.mark.soak)]
)
def test_any_settings_train_or_are_refused(
    cases: int,
    trained: int,
    store: Path,
    tmp_path: Path,
    draw: random.Random,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of those that read well, the first ``trained`` are trained."""
    known, codes, run = list(flags(Experiment)), [], tmp_path / "run"
    assert "--model.top-k" in known
    for _ in range(cases):
        settings = random_settings(draw, known)
        name = draw.choice([*EXPERIMENTS])
        line = ["train", name, "--data", str(store), "--out", str(run), *TINY, *settings]
        code, err = cli.run(line), capsys.readouterr().err
        if code == 0 and codes.count(0) < trained:
            job = Job(tmp_path, *line)
            [code], _, err = job.end()
            job.out.unlink()
            job.err.unlink()
            codes.append(0)
        assert code in (0, 2), f"{settings} {name} {err[-1500:]}"
        if code == 2:
            codes.append(2)
            told(err)
            assert not run.exists(), line
        shutil.rmtree(run, ignore_errors=True)
    assert {*codes} == {0, 2}
