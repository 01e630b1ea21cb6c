"""``twofold sweep``: real cells, whole, stopped, failed, changed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.trainer.small_runs import read, stop_at, without_clock
from tests.trainer.sweep.conftest import begin
from tests.trainer.sweep.small_sweeps import CELLS, OVERRIDES, lines, sweep, without_clocks
from trainer import cli, train

pytestmark = pytest.mark.slow


def test_a_sweep_leaves_its_cells_and_their_table(swept: Path) -> None:
    assert sorted(path.name for path in (swept / "cells").iterdir()) == sorted(CELLS)
    for cell in CELLS:
        there = {path.name for path in (swept / "cells" / cell).iterdir()}
        kept = {"config.json", "summary.json", "metrics.jsonl", "predictions-test.arrow"}
        assert kept <= there
        assert "checkpoints" not in there
        assert (swept / "logs" / f"{cell}.log").stat().st_size
    results = lines(swept / "results.csv")
    assert [(row["row"], row["seed"]) for row in results] == [
        ("wide", "1"), ("wide", "2"), ("narrow", "1"), ("narrow", "2"),
    ]  # fmt: skip
    for row in results:
        summary = read(swept / "cells" / f"{row['row']}-seed{row['seed']}", "summary.json")
        assert float(row["test_auc"]) == summary["auc"]
        assert float(row["val_auc"]) == summary["validation_auc"]
        assert float(row["cpu_seconds"]) > 0
        assert int(row["peak_memory"]) > 2**25
        assert int(row["attempts"]) == 1
    assert [row["row"] for row in lines(swept / "table.csv")] == ["wide", "narrow"]
    page = (swept / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "Data fingerprint" in (swept / "table.md").read_text().splitlines()[-1]


def test_done_cells_are_skipped(
    swept_copy: Path, store: Path, small_table: None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (swept_copy / "cells").rglob("*")}
    assert cli.run(sweep(store, swept_copy)) == 0
    assert "4 cells, 4 done" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (swept_copy / "cells").rglob("*")}
    assert len((swept_copy / "logs" / f"{CELLS[0]}.log").read_text())


def kill_in_second_cell(command: list[str]) -> None:
    """Its process dies after its second checkpoint."""
    if CELLS[1] in " ".join(command):
        stop_at(6, lambda: os.kill(os.getpid(), signal.SIGKILL))()


def same_sweeps(a: Path, b: Path) -> bool:
    """Equal results, but for what a clock says."""
    for cell in CELLS:
        ours, theirs = (folder / "cells" / cell for folder in (a, b))
        assert without_clock(read(ours, "summary.json")) == without_clock(
            read(theirs, "summary.json")
        )
        name = "predictions-test.arrow"
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    return all(
        without_clocks(a / name) == without_clocks(b / name)
        for name in ("results.csv", "table.csv")
    )


def test_a_killed_cell_fails_alone_and_is_continued(
    swept: Path, store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    ended = begin(tmp_path, *sweep(store, out), before=kill_in_second_cell).end()
    assert ended.codes == [1]
    assert f"{CELLS[1]} failed with SIGKILL; the end of {out}/logs/" in ended.err
    assert "1 cell failed" in ended.err
    assert [row["row"] for row in lines(out / "results.csv")] == ["wide", "wide", "narrow"]
    assert f"Failed cells, left out: {CELLS[1]}" in (out / "table.md").read_text()
    assert lines(out / "table.csv")[1]["difference_seeds"] == "1"
    assert (out / "cells" / CELLS[1] / "checkpoints" / "last").exists()
    again = tmp_path / "again"
    again.mkdir()
    assert begin(again, *sweep(store, out)).end().codes == [0]
    assert "Resuming" in (out / "logs" / f"{CELLS[1]}.log").read_text()
    assert same_sweeps(out, swept)
    row = next(row for row in lines(out / "results.csv") if row["attempts"] == "2")
    assert (row["row"], row["seed"]) == ("narrow", "1")


def wait_in_second_cell(command: list[str]) -> None:
    """It hangs after its second checkpoint."""
    if CELLS[1] in " ".join(command):
        stop_at(6, lambda: signal.pause())()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_stopped_leaves_no_process_and_goes_on(
    swept: Path, store: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "sweep"
    job = begin(tmp_path, *sweep(store, out), before=wait_in_second_cell)
    cell = out / "cells" / CELLS[1]
    job.wait_until(lambda: (cell / "checkpoints" / "last" / "position.json").exists())
    job.wait_until(lambda: "step      4" in (out / "logs" / f"{CELLS[1]}.log").read_text())
    pid = int(next(iter(children(job.ranks[0]))))
    job.signal(number)
    ended = job.end()
    expected = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 2}
    assert ended.codes == [expected[number]]
    assert ("the same command goes on" in ended.err) == (number == signal.SIGINT)
    job.wait_until(lambda: not alive(pid))
    again = tmp_path / "again"
    again.mkdir()
    after = begin(again, *sweep(store, out)).end()
    assert after.codes == [0], after
    assert "4 cells, 1 done" in after.out
    assert same_sweeps(out, swept)


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    return False


def test_cells_made_otherwise_are_refused_or_replaced(
    swept_copy: Path, store: Path, tmp_path: Path, small_table: None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    other = [*(flag for flag in OVERRIDES if "epochs" not in flag), "--epochs=1"]
    assert cli.run(sweep(store, swept_copy, overrides=other)) == 2
    message = capsys.readouterr().err
    assert "4 of 4 cells" in message
    assert "config.epochs: 3 -> 1" in message
    assert "--replace" in message
    assert cli.run(sweep(store, swept_copy, "--list", overrides=other)) == 0
    shown = capsys.readouterr().out
    assert shown.count("config.epochs: 3 -> 1") == 4
    ended = begin(tmp_path, *sweep(store, swept_copy, "--replace", overrides=other)).end()
    assert ended.codes == [0], ended
    assert len(lines(swept_copy / "results.csv")) == 4
    assert all(int(row["best_step"]) <= 4 for row in lines(swept_copy / "results.csv"))


def test_cells_of_other_flags_stay_out_of_the_results(
    swept_copy: Path, store: Path, small_table: None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = swept_copy / "cells" / CELLS[0] / "config.json"
    file.write_text(file.read_text().replace('"epochs": 3', '"epochs": 4'))
    (swept_copy / "cells" / CELLS[1] / "config.json").write_text("{")
    assert cli.run(sweep(store, swept_copy, "--report")) == 0
    assert f"made with other flags or data: {CELLS[0]}, {CELLS[1]}" in capsys.readouterr().err
    assert [row["seed"] for row in lines(swept_copy / "results.csv")] == ["2", "2"]


def test_another_store_is_refused_and_another_commit_only_told(
    swept_copy: Path, store: Path, small_table: None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = swept_copy / "cells" / CELLS[0] / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"commit": "0123456789ab"}))
    assert cli.run(sweep(store, swept_copy)) == 0
    assert "commit: 0123456789ab -> " in capsys.readouterr().out
    file.write_text(json.dumps(config | {"data": config["data"] | {"fingerprint": "other"}}))
    assert cli.run(sweep(store, swept_copy)) == 2
    assert "data.fingerprint: other -> " in capsys.readouterr().err


def test_list_tells_states_and_runs_nothing(
    swept_copy: Path, store: Path, small_table: None, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(swept_copy / "cells" / CELLS[0])
    (swept_copy / "cells" / CELLS[1] / "summary.json").unlink()
    assert cli.run(sweep(store, swept_copy, "--list")) == 0
    states = {line.split()[1]: line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert states == dict(zip(CELLS, ("missing", "begun", "done", "done"), strict=True))
    assert not (swept_copy / "cells" / CELLS[0]).exists()


def test_rows_chooses_and_keeps_the_others_in_the_table(
    store: Path, tmp_path: Path, swept: Path
) -> None:
    out = tmp_path / "sweep"
    ended = begin(tmp_path, *sweep(store, out, "--rows", "wi*")).end()
    assert ended.codes == [0], ended
    assert [row["row"] for row in lines(out / "table.csv")] == ["wide"]
    again = tmp_path / "again"
    again.mkdir()
    assert begin(again, *sweep(store, out, "--rows", "narrow", "--jobs", "2")).end().codes == [0]
    assert same_sweeps(out, swept)


def test_checkpoints_can_be_kept(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    options = ("--rows", "wide", "--seeds", "1")
    assert begin(tmp_path, *sweep(store, out, *options, "--keep-checkpoints")).end().codes == [0]
    assert (out / "cells" / CELLS[0] / "checkpoints" / "best").exists()


def test_report_writes_the_results_again(
    swept_copy: Path, store: Path, small_table: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = ("results.csv", "table.csv", "table.md", "report.html")
    before = [(swept_copy / name).read_text() for name in written[:2]]
    for name in written:
        (swept_copy / name).unlink()
    shutil.rmtree(swept_copy / "resamples")
    monkeypatch.setattr(train, "Trainer", None)
    assert cli.run(sweep(store, swept_copy, "--report")) == 0
    assert before == [(swept_copy / name).read_text() for name in written[:2]]
    assert all((swept_copy / name).exists() for name in written)


def test_cells_are_commands_of_their_own(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not forks, as in the tests above; and two ranks each."""
    out = tmp_path / "sweep"
    of_rows = ("--history-length", "--model.auxiliary-others")
    mine = [flag for flag in OVERRIDES if not flag.startswith(of_rows)]
    command = [
        "sweep", "history-length", "--data", str(store), "--out", str(out), "--seeds", "1",
        "--rows", "dare-50", "--processes", "2", "--", *mine,
    ]  # fmt: skip
    assert cli.run(command) == 0
    row = lines(out / "results.csv")[0]
    assert (row["row"], row["processes"]) == ("dare-50", "2")
    assert float(row["cpu_seconds"]) > 1
