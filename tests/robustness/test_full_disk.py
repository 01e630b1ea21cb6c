"""A disk that fills up at any byte: one message, nothing half-written, and it goes on with room."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.conftest import outcome, training_line
from tests.trainer.command_lines import Job
from trainer import cli

Disk = Callable[[int], Path]
ROOM = 64 * 2**20


@pytest.mark.parametrize("cases", [8, pytest.param(60, marks=pytest.mark.soak)])
def test_a_store_is_whole_or_not_there(
    cases: int, small_disk: Disk, draw: random.Random, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["prepare", "synthetic", "--users", "200", "--events-per-user", "20"]
    out = small_disk(ROOM) / "store"
    codes = set()
    for _ in range(cases):
        assert cli.run(["prepare", "synthetic", "--users", "60", "--out", str(out), "--force"]) == 0
        capsys.readouterr()
        before = (out / "store.json").read_text()
        small_disk(taken(out.parent) + draw.randrange(4 * 2**20 // 2**12) * 2**12)
        code = cli.run([*line, "--out", str(out), "--force"])
        err = capsys.readouterr().err
        codes.add(code)
        small_disk(ROOM)
        if code:
            assert code == 2
            assert err.startswith("twofold: ")
            assert "is full" in err
            assert err.count("\n") == 1
            assert (out / "store.json").read_text() == before
        assert [path.name for path in out.parent.iterdir()] == ["store"]
        assert cli.run(["verify-store", str(out)]) == 0
    assert codes == {0, 2}


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("cases", [2, pytest.param(30, marks=pytest.mark.soak)])
def test_a_run_goes_on_when_there_is_room(
    cases: int,
    store: Path,
    small_disk: Disk,
    tmp_path: Path,
    uninterrupted: Callable[[int], dict[str, Any]],
    draw: random.Random,
) -> None:
    whole, codes = uninterrupted(1), []
    for case in range(cases):
        disk = small_disk(ROOM)
        run = disk / f"run{case}"
        small_disk(taken(disk) + draw.randrange(1, 60) * 2**12)
        ended = run_to_the_end(tmp_path, *training_line(store, run))
        codes += ended.codes
        if ended.codes != [0]:
            assert ended.codes == [2], ended.err
            assert ended.err.count("twofold: ") == 1
            assert "No space left" in ended.err
            small_disk(ROOM)
            again = run_to_the_end(tmp_path, *training_line(store, run, "--resume"))
            assert again.codes == [0], again.err
        assert outcome(run) == whole
    assert 2 in codes


@pytest.mark.soak
@pytest.mark.parametrize("free", [1, 30, 60, 90])
def test_a_disk_that_is_full_of_the_report(
    free: int, store: Path, small_disk: Disk, tmp_path: Path
) -> None:
    """All that comes before it is there already: resuming writes the page and trains no more."""
    disk = small_disk(ROOM)
    run = disk / "run"
    assert run_to_the_end(tmp_path, *training_line(store, run)).codes == [0]
    for name in ("report.html", "summary.json"):
        (run / name).unlink()
    small_disk(taken(disk) + free * 2**12)
    ended = run_to_the_end(tmp_path, *training_line(store, run, "--resume"))
    if ended.codes != [0]:
        assert ended.codes == [2], ended.err
        assert "No space left" in ended.err
        small_disk(ROOM)
        again = run_to_the_end(tmp_path, *training_line(store, run, "--resume"))
        assert again.codes == [0], again.err
    assert (run / "report.html").read_text().rstrip().endswith("</html>")


def run_to_the_end(folder: Path, *line: object) -> Any:
    """Of a job whose streams are not on the small disk."""
    for name in ("stdout", "stderr"):
        (folder / name).unlink(missing_ok=True)
    return Job(folder, *line).end()


def taken(disk: Path) -> int:
    """Bytes of whole pages, as the disk counts them."""
    return sum(-(-file.lstat().st_size // 2**12) * 2**12 for file in disk.rglob("*")) + 2**12
