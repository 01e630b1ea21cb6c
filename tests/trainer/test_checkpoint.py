"""Checkpoints are whole or not there, fit any world size and plan, and run no code."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from fsspec.implementations.local import LocalFileSystem
from torch.distributed.checkpoint.filesystem import FileSystem

from data.errors import InputError
from data.store import EventStore
from sharding.plan import ShardingConfig
from tests.ranks import RankError, run_ranks
from tests.trainer.conftest import MakeRun
from tests.trainer.small_runs import EXPERIMENT, IN_FOREGROUND, content, loaded_state, ranks_of
from trainer.checkpoint import Checkpoints, Position
from trainer.checkpoint.digests import FolderWriter
from trainer.experiment import FieldWidths
from trainer.predict import evaluation_loader
from trainer.reliability import Reliability
from trainer.state import build_state, train_step

Links = tuple[str, ...]


def save(run: Path, rank: int, world_size: int, *steps: tuple[int, Links]) -> None:
    """Saves some state of the process group under each of the steps."""
    checkpoints = Checkpoints(run, ranks_of(rank, world_size), Reliability(keep_checkpoints=1))
    state = _State({"weight": torch.arange(4.0) + rank} if rank == 0 else {})
    for step, links in steps:
        checkpoints.save(state, Position(step=step), links)
    checkpoints.wait()


class _State:
    """As far as ``Checkpoints.save`` needs a TrainState."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def to_save(self, *, replica: bool) -> dict[str, Any]:
        return {"model": self.values}


def folders(run: Path) -> dict[str, str]:
    """Link or folder -> folder."""
    return {entry.name: entry.resolve().name for entry in (run / "checkpoints").iterdir()}


@pytest.mark.parametrize(
    ("world_size", "kind"),
    [
        (1, "row_wise"), (2, "table_wise"), (4, "row_wise"), (4, "table_wise"),
        (2, "data_parallel"),
    ],
)  # fmt: skip
def test_tables_and_optimizer_states_move_to_any_world_size_and_plan(
    world_size: int, kind: str, finished: MakeRun, store: Path, tmp_path: Path
) -> None:
    run = finished(2)  # of two ranks, row-wise
    experiment = EXPERIMENT.changed(sharding=ShardingConfig(kinds=(kind,)), seed=99)

    def load_and_save(rank: int, world_size: int) -> list[str]:
        state = loaded_state(store, run, rank, world_size, experiment)
        checkpoints = Checkpoints(tmp_path, ranks_of(rank, world_size))
        checkpoints.save(state, Position(step=1), ("last",))
        checkpoints.wait()
        return [table["sharding_type"] for table in state.plan["tables"]]

    assert set(run_ranks(load_and_save, world_size)[0]) == {kind}
    before, after = (content(folder / "checkpoints" / "last") for folder in (run, tmp_path))
    assert before.keys() == after.keys()
    assert sum("momentum1" in name for name in before) == 6
    assert sum("exp_avg_sq" in name for name in before) > 6
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0, msg=name)


def test_of_one_newest_checkpoint_only_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    both, last = ("last", "best"), ("last",)
    run_ranks(lambda *who: save(tmp_path, *who, (1, both), (2, last), (3, last)), 2)
    first, third = "step-00000001", "step-00000003"
    assert folders(tmp_path) == {"last": third, "best": first, third: third, first: first}
    run_ranks(lambda *who: save(tmp_path, *who, (4, both)), 2)
    assert set(folders(tmp_path).values()) == {"step-00000004"}


def test_a_kill_in_the_middle_of_saving_leaves_the_checkpoint_before(
    finished_copy: MakeRun, store: Path
) -> None:
    run = finished_copy(1)

    def killed_while_saving(rank: int, world_size: int) -> None:
        genuine = dcp.save

        def half(state: Any, storage_writer: FolderWriter, **options: Any) -> None:
            genuine(state, storage_writer=storage_writer, **options)
            next(storage_writer.path.glob("*.distcp")).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

        dcp.save = half
        save(run, rank, world_size, (17, ("last", "best")))

    with pytest.raises(RankError, match="died without a word"):
        run_ranks(killed_while_saving, 1)
    partial, before = "step-00000017.partial", "step-00000016"
    kept = {name: name for name in ("step-00000015", before, partial)}
    assert folders(run) == {"last": before, "best": before, **kept}
    assert run_ranks(lambda *who: len(loaded_state(store, run, *who).plan["tables"]), 2) == [6, 6]
    run_ranks(lambda *who: save(run, *who, (18, ("last", "best"))), 1)
    assert set(folders(run)) == {"last", "best", "step-00000018"}


def no_room(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_for_tensors(rank: int) -> None:
    """The last rank finds no room for its tables; DCP wraps what it raises."""
    if rank == 1:
        FileSystem.create_stream = no_room


def full_for_metadata(rank: int) -> None:
    """Rank 0 finds no room for DCP's metadata, which it writes last."""
    FileSystem.rename = no_room


def full_for_position(rank: int) -> None:
    """Rank 0 finds no room for what we add."""
    LocalFileSystem.pipe_file = no_room


def full_for_folder(rank: int) -> None:
    """Rank 0 cannot even make the folder."""
    Path.mkdir = no_room


@pytest.mark.parametrize(
    "full", [full_for_tensors, full_for_metadata, full_for_position, full_for_folder]
)
def test_a_full_disk_is_told_on_every_rank_and_leaves_the_checkpoint_before(
    full: Callable[[int], None], tmp_path: Path
) -> None:
    run_ranks(lambda *who: save(tmp_path, *who, (1, ("last", "best"))), 2)

    def save_on_full_disk(rank: int, world_size: int) -> str:
        full(rank)
        with pytest.raises(InputError) as error:
            save(tmp_path, rank, world_size, (2, ("last",)))
        return str(error.value)

    messages = run_ranks(save_on_full_disk, 2)
    assert f"{tmp_path} could not be written to: No space left on device" in messages[0]
    assert "make room and go on with --resume" in messages[0]
    assert set(folders(tmp_path).values()) == {"step-00000001"}  # no half-written folder either


def refusal(run: Path, store: Path, link: str = "last", experiment: Any = EXPERIMENT) -> str:
    """Why a checkpoint is not loaded."""

    def load(rank: int, world_size: int) -> str:
        ranks = ranks_of(rank, world_size)
        state = build_state(experiment, EventStore.open(store), ranks)
        with pytest.raises(InputError) as error:
            Checkpoints(run, ranks).load(state, link)
        return str(error.value)

    return run_ranks(load, 1)[0]


def test_a_missing_checkpoint_is_refused(store: Path, tmp_path: Path) -> None:
    assert "has no checkpoint called best" in refusal(tmp_path, store, "best")


def test_the_checkpoint_of_a_wider_model_is_refused_by_its_first_parameter(
    finished: MakeRun, store: Path
) -> None:
    wider = EXPERIMENT.changed(fields=FieldWidths(attention_dim=4, representation_dim=8))
    message = refusal(finished(1), store, experiment=wider)
    # 3 fields, 3 parts: candidate, interest and their product
    assert "auxiliary_head.layers.0.bias is (36,) there and (72,) here" in message
    assert "config.json" in message


def test_the_checkpoint_of_a_model_with_other_parts_is_refused(
    finished: MakeRun, store: Path
) -> None:
    dot = EXPERIMENT.changed(model=dataclasses.replace(EXPERIMENT.model, score="dot"))
    assert "score.temperature is (1,) there and absent here" in refusal(
        finished(1), store, experiment=dot
    )


def tables_cut(folder: Path) -> None:
    file = next(folder.glob("*.distcp"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def tables_gone(folder: Path) -> None:
    next(folder.glob("*.distcp")).unlink()


def metadata_cut(folder: Path) -> None:
    file = folder / ".metadata"
    file.write_bytes(file.read_bytes()[:100])


def metadata_gone(folder: Path) -> None:
    (folder / ".metadata").unlink()


def metadata_of_another_kind(folder: Path) -> None:
    (folder / ".metadata").write_bytes(b"\x80\x04]\x94.")  # an empty list


def position_cut(folder: Path) -> None:
    (folder / "position.json").write_text('{"step": 1')


def position_of_another_version(folder: Path) -> None:
    (folder / "position.json").write_text('{"stride": 1}')


@pytest.mark.parametrize(
    "damage",
    [
        tables_cut,
        tables_gone,
        metadata_cut,
        metadata_gone,
        metadata_of_another_kind,
        position_cut,
        position_of_another_version,
    ],
)
def test_a_damaged_checkpoint_is_refused(
    damage: Callable[[Path], None], finished_copy: MakeRun, store: Path
) -> None:
    run = finished_copy(1)
    damage((run / "checkpoints" / "last").resolve())
    assert "damaged" in refusal(run, store)


PARTS = {
    "mean": {"sharing": "shared", "search": "all", "pooling": "mean"},
    "self-attention": {"sharing": "shared", "search": "all", "pooling": "self_attention"},
    "collisions": {"sharing": "shared", "search": "all", "pooling": "collisions"},
    "whole history": {"sharing": "shared", "search": "all"},
    "hashes": {"sharing": "shared", "search": "simhash"},
    "network": {"sharing": "shared", "score": "mlp"},
    "clusters": {"sharing": "shared", "search": "clusters"},
    "crossing": {"head": "crossing"},
    "no history": {
        "sharing": "shared", "search": "all", "pooling": "none", "head": "crossing",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", PARTS)
def test_a_fresh_process_reads_the_checkpoint_of_every_kind_of_model(
    kind: str, store: Path, tmp_path: Path
) -> None:
    model = dataclasses.replace(EXPERIMENT.model, auxiliary="none", **PARTS[kind])
    starts = dataclasses.replace(EXPERIMENT.fields, attention_init_std=0.1)  # as representation's
    experiment = EXPERIMENT.changed(model=model, fields=starts)

    def train_and_save(rank: int, world_size: int) -> list[float]:
        ranks, opened = ranks_of(rank, world_size), EventStore.open(store)
        state = build_state(experiment, opened, ranks)
        batches = list(itertools.islice(evaluation_loader(opened, "val", experiment, ranks), 3))
        for batch in batches[:2]:
            train_step(state, batch, experiment, world_size)
        Checkpoints(tmp_path, ranks, IN_FOREGROUND).save(state, Position(step=2), ("last",))
        return _losses(state, batches, experiment)

    def load(rank: int, world_size: int) -> list[float]:
        ranks, opened = ranks_of(rank, world_size), EventStore.open(store)
        state = build_state(experiment.changed(seed=99), opened, ranks)
        Checkpoints(tmp_path, ranks).load(state, "last")
        batches = list(itertools.islice(evaluation_loader(opened, "val", experiment, ranks), 3))
        return _losses(state, batches, experiment)

    trained = run_ranks(train_and_save, 1)
    assert run_ranks(load, 1) == trained


def _losses(state: Any, batches: list[Any], experiment: Any) -> list[float]:
    """Of further steps, which depend on tables, parameters and the optimizers' states."""
    return [float(train_step(state, batch, experiment, 1).main) for batch in batches]
