"""Bytes of a checkpoint that are not what was written, and what goes on from the one before."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.conftest import outcome, training_line
from tests.robustness.test_damaged_store import damaged
from tests.trainer.command_lines import Job
from trainer.checkpoint import Checkpoints
from trainer.processes import process_group

pytestmark = pytest.mark.usefixtures("without_report")


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its last two checkpoints, and its best."""
    folder = tmp_path_factory.mktemp("trained")
    assert Job(folder, *training_line(store, folder / "run")).end().codes == [0]
    return folder / "run"


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-????????"))


@pytest.mark.parametrize("cases", [150, pytest.param(2000, marks=pytest.mark.soak)])
def test_every_damaged_byte_is_found_and_its_file_named(
    cases: int, trained: Path, tmp_path: Path, draw: random.Random
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))
    with process_group() as ranks:
        checkpoints = Checkpoints(run, ranks)
        assert not checkpoints.damage(newest(run).name)
        files = sorted(file for file in newest(run).rglob("*") if file.is_file())
        assert {"manifest.json", "position.json", ".metadata"} <= {file.name for file in files}
        for _ in range(cases):
            file = draw.choice(files)
            genuine = file.read_bytes()
            changed = damaged(genuine, draw)
            if changed == genuine or same_json(changed, genuine):
                continue
            file.write_bytes(changed)
            found = checkpoints.damage(newest(run).name)
            assert found, (file.name, len(genuine))
            assert file.name in found or file.name == "manifest.json", (file.name, found)
            file.write_bytes(genuine)


def same_json(changed: bytes, genuine: bytes) -> bool:
    """A blank for a blank says the same."""
    try:
        return json.loads(changed) == json.loads(genuine)
    except ValueError:
        return False


@pytest.mark.parametrize("cases", [1, pytest.param(12, marks=pytest.mark.soak)])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    cases: int,
    trained: Path,
    store: Path,
    tmp_path: Path,
    uninterrupted: Callable[[int], dict[str, Any]],
    draw: random.Random,
) -> None:
    for case in range(cases):
        run = Path(shutil.copytree(trained, tmp_path / f"run{case}", symlinks=True))
        file = draw.choice(sorted(file for file in newest(run).rglob("*") if file.is_file()))
        genuine = file.read_bytes()
        while same_json(file.read_bytes(), genuine) or file.read_bytes() == genuine:
            file.write_bytes(damaged(genuine, draw))
        ended = Job(tmp_path, *training_line(store, run, "--resume")).end()
        assert ended.codes == [0], ended.err
        words = "".join(ended.out.split())
        assert f"Checkpoint{newest(run).name}isdamaged" in words
        assert outcome(run) == uninterrupted(1)
        (tmp_path / "stdout").unlink()


def test_where_no_checkpoint_is_whole_the_user_is_told(
    trained: Path, store: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))
    for file in (run / "checkpoints").glob("step-*/*.distcp"):
        file.write_bytes(file.read_bytes()[:-1])
    before = (run / "metrics.jsonl").read_bytes()
    ended = Job(tmp_path, *training_line(store, run, "--resume")).end()
    assert ended.codes == [2], ended
    assert ended.err.count("twofold: ") == 1
    assert "damaged" in ended.err
    assert (run / "metrics.jsonl").read_bytes() == before
