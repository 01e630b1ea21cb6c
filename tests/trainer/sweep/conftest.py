"""One uninterrupted sweep for all tests of a session, and sweeps that run beside a test."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.trainer.command_lines import Job
from tests.trainer.sweep.small_sweeps import TABLE, patch, sweep
from trainer.sweep import jobs
from trainer.sweep.tables import TABLES

MakeJob = Callable[..., Job]


@pytest.fixture
def small_table() -> Iterator[None]:
    """In this process, cells as forks."""
    with _patched():
        yield


@pytest.fixture(scope="session")
def swept(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two rows and two seeds. Do not change it: see ``swept_copy``."""
    out = tmp_path_factory.mktemp("swept") / "sweep"
    job = begin(out.parent, *sweep(store, out))
    ended = job.end()
    assert ended.codes == [0], ended
    assert TABLE.reference in ended.out
    return out


@pytest.fixture
def swept_copy(swept: Path, tmp_path: Path) -> Path:
    """A copy of the uninterrupted sweep."""
    return Path(shutil.copytree(swept, tmp_path / "sweep", symlinks=True))


def begin(
    folder: Path, *arguments: str, before: Callable[[list[str]], None] = lambda command: None
) -> Job:
    """A sweep in a process of its own; ``before``: see ``patch``."""
    with _patched(before):
        return Job(folder, *arguments)


@contextlib.contextmanager
def _patched(before: Callable[[list[str]], None] = lambda command: None) -> Iterator[None]:
    start, tables = jobs.start, TABLES.copy()
    patch(before)
    yield
    jobs.start = start
    TABLES.clear()
    TABLES.update(tables)
