"""A checkpoint from a stranger cannot run code here: its pickles are read by name lists."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from data.errors import InputError
from tests.ranks import run_ranks
from tests.trainer.conftest import MakeRun
from tests.trainer.small_runs import loaded_state, reseal
from trainer.checkpoint import SafePlanner, SafeReader

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Forged:
    """Unpickled, it runs a command that makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


def call(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls ``module.name(argument)``."""

    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode()

    return b"\x80\x04" + text(module) + text(name) + b"\x93" + text(argument) + b"\x85R."


def test_the_forgery_works_on_a_plain_unpickler(tmp_path: Path) -> None:
    for number, function in enumerate([("os", "system"), ("torch.serialization", "os.system")]):
        mark = tmp_path / str(number)
        pickle.loads(call(*function, f"touch {mark}"))  # noqa: S301
        assert mark.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "exec"),
        ("torch.distributed.checkpoint.filesystem", "os.system"),
        ("torch.distributed.checkpoint.filesystem", "os"),
        ("torch.distributed.checkpoint.filesystem", "pickle"),
        ("torch", "load"),
        ("torch.serialization", "os.system"),
    ],
)
def test_forged_metadata_is_refused_and_not_run(module: str, name: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / ".metadata").write_bytes(call(module, name, f"touch {mark}"))
    with pytest.raises(InputError, match=f"{name} has no place in a checkpoint's metadata"):
        SafeReader(tmp_path).read_metadata()
    assert not mark.exists()


def test_a_run_with_forged_metadata_is_refused_and_not_run(
    finished_copy: MakeRun, store: Path, tmp_path: Path
) -> None:
    run, mark = finished_copy(1), tmp_path / "mark"
    forged = pickle.dumps(Forged(mark))
    (run / "checkpoints" / "last" / ".metadata").write_bytes(forged)
    reseal(run / "checkpoints" / "last")

    def load(rank: int, world_size: int) -> str:
        with pytest.raises(InputError) as error:
            loaded_state(store, run, rank, world_size)
        return str(error.value)

    assert "system has no place in a checkpoint's metadata" in run_ranks(load, 1)[0]
    assert not mark.exists()


def test_a_forged_value_is_refused_and_not_run(tmp_path: Path) -> None:
    folder, mark = tmp_path / "checkpoint", tmp_path / "mark"
    dcp.save({"lr": Forged(mark), "weight": torch.ones(2)}, checkpoint_id=folder, no_dist=True)
    wanted = {"lr": 0.1, "weight": torch.zeros(2)}
    with pytest.raises(CheckpointException) as error:
        dcp.load(wanted, storage_reader=SafeReader(folder), planner=SafePlanner(), no_dist=True)
    failure = error.value.failures[0][0]
    assert isinstance(failure, pickle.UnpicklingError)
    assert not mark.exists()
    dcp.load(wanted, checkpoint_id=folder, no_dist=True)  # DCP's own planner
    assert mark.exists()


def test_plain_values_are_read(tmp_path: Path) -> None:
    saved = {"groups": [{"lr": 0.25, "betas": (0.9, 0.99)}], "weight": torch.ones(2)}
    dcp.save(saved, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    wanted = {"groups": [{"lr": 0.0, "betas": (0.0, 0.0)}], "weight": torch.zeros(2)}
    reader = SafeReader(tmp_path / "checkpoint")
    dcp.load(wanted, storage_reader=reader, planner=SafePlanner(), no_dist=True)
    assert wanted["groups"] == saved["groups"]
    torch.testing.assert_close(wanted["weight"], saved["weight"])
