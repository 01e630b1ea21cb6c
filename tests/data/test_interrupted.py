"""A store is whole or not there: full disks, signals, what a killed run left, foreign folders."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

import data.build
import data.sources.delimited
from data.errors import InputError
from data.prepare import prepare
from data.store import EventStore
from tests.data.memory_source import MemorySource, log
from tests.data.refusals import expect_refused


def test_out_that_is_no_store_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is no event store"):
        prepare(log(user=[1], item=[1], time=[1]), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_out_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "large_disk").mkdir()
    link = tmp_path / "store"
    link.symlink_to(tmp_path / "large_disk")
    source = log(user=[1], item=[1], time=[1])
    for overwrite in (False, True):
        prepare(source, link, overwrite=overwrite)
        assert link.is_symlink()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["large_disk", "store"]
        assert (tmp_path / "large_disk" / "store.json").is_file()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that takes no files")
def test_out_that_cannot_be_written() -> None:
    with pytest.raises(InputError, match=r"cannot be written to .* Name another --out"):
        prepare(log(user=[1], item=[1], time=[1]), "/proc/no/store")


def test_what_a_killed_run_left_is_named_and_deleted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # process ids come back: this one is alive, and is ours
    left = tmp_path / f"store.partial-{os.getpid()}"
    of_another_store = tmp_path / "store2.partial-1"
    for folder in (left, of_another_store):
        folder.mkdir()
        (folder / "items.arrow").touch()
    prepare(log(user=[1], item=[1], time=[1]), tmp_path / "store")
    assert capsys.readouterr().err == f"Deleting {left}, left by a run that was killed.\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", of_another_store.name]


def test_what_a_living_run_writes_is_named_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = log(user=[1], item=[1], time=[1])

    def meanwhile() -> Iterator[pl.DataFrame]:
        [partial] = tmp_path.iterdir()
        other = "from data import prepare; prepare._clear_leftovers(prepare.Path('store'))"
        found = subprocess.run(
            [sys.executable, "-c", other],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path.cwd())},
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stderr == f"{partial.name} stays: another run writes it, or it is not ours.\n"
        yield from source.frames

    running = dataclasses.replace(source)
    object.__setattr__(running, "event_frames", meanwhile)
    prepare(running, tmp_path / "store")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("renamed", [1, 2])
def test_interrupted_while_it_is_replaced_a_store_is_the_old_or_the_new(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, renamed: int
) -> None:
    out, rename, renames = tmp_path / "store", Path.rename, []

    def interrupted(path: Path, target: Path) -> None:
        rename(path, target)
        renames.append(target)
        if len(renames) == renamed:
            raise KeyboardInterrupt

    prepare(log(user=[1], item=[1], time=[1]), out)
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(log(user=[1, 1], item=[1, 1], time=[1, 2]), out, overwrite=True)
    assert EventStore.open(out).info.events == renamed
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_full_disk(monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(data.build, "write_arrow", full)
    expect_refused(log(user=[1], item=[1], time=[1]), out, str(out.parent), "is full", "--out")


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mount") is None, reason="only root can mount a small disk"
)
def test_full_disk_for_real(tmp_path: Path) -> None:
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True
    )
    if mount.returncode:
        pytest.skip("mount is not allowed here")
    try:
        numbers = list(range(200_000))
        expect_refused(log(user=numbers, item=numbers, time=numbers), tmp_path / "store", "is full")
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_sigterm_leaves_nothing(out: Path) -> None:
    def ended() -> Iterator[pl.DataFrame]:
        yield from source.frames
        os.kill(os.getpid(), signal.SIGTERM)

    source = log(user=[1], item=[1], time=[1])
    object.__setattr__(source, "event_frames", ended)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # else the old code ends the tests
    try:
        with pytest.raises(SystemExit) as ending:
            prepare(source, out)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ending.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize("moment", ["read", "build"])
def test_ctrl_c_leaves_nothing(moment: str, out: Path) -> None:
    class Interrupted(MemorySource):
        def event_frames(self) -> Iterator[pl.DataFrame]:
            yield from self.frames
            if moment == "read":
                raise KeyboardInterrupt

        def requests(self, *_: object) -> dict:
            raise KeyboardInterrupt

    frame = pl.DataFrame({"user": [1], "item": [1], "time": [1]})
    with pytest.raises(KeyboardInterrupt):
        prepare(Interrupted(frames=[frame]), out)
