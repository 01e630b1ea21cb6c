"""Checkpoints are checked when read, older ones stand in for damaged ones, any URL holds them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import torch.distributed as dist

from data.errors import InputError
from sharding.plan import ShardingConfig
from tests.ranks import RankError, run_ranks
from tests.trainer.conftest import MakeRun, copy
from tests.trainer.small_runs import (
    EXPERIMENT,
    loaded_state,
    metrics_lines,
    ranks_of,
    read,
    stop_at,
    train,
)
from trainer import train as training
from trainer.checkpoint import Checkpoints, Position
from trainer.checkpoint.digests import _Recorded
from trainer.checkpoint.snapshot import on_host
from trainer.checkpoint.storage import Storage
from trainer.reliability import Reliability
from trainer.run_folder import RunFolder, read_config, read_experiment


def halved(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file: Path) -> None:
    """One bit of one byte in its middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def gone(file: Path) -> None:
    file.unlink()


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_manifest_says_what_sha256sum_says(finished: MakeRun) -> None:
    folder = finished(2) / "checkpoints" / "last"
    files = read(folder, "manifest.json")["files"]
    assert files == {
        file.name: {
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in folder.iterdir()
        if file.name != "manifest.json"
    }
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata", "position.json"} == {*files}


@pytest.mark.parametrize("damage", [halved, flipped, gone])
@pytest.mark.parametrize("name", ["__1_0.distcp", ".metadata", "position.json", "manifest.json"])
def test_a_damaged_file_is_named_on_every_rank(
    damage: Callable[[Path], None], name: str, finished: MakeRun, tmp_path: Path
) -> None:
    run = copy(finished(2), tmp_path / "run")
    damage((run / "checkpoints" / "last").resolve() / name)

    def damages(rank: int, world_size: int) -> str:
        return Checkpoints(run, ranks_of(rank, world_size)).damage("step-00000016")

    told = {*run_ranks(damages, 2)}
    assert len(told) == 1
    if name == "manifest.json" and damage is flipped:
        assert told != {""}  # which file the flipped digest or name was of
    else:
        assert name in told.pop()


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    world_size: int, stopped: MakeRun, store: Path, tmp_path: Path, finished: MakeRun
) -> None:
    run = copy(stopped(world_size), tmp_path / "run")  # of steps 5 and 10
    flipped((run / "checkpoints" / "last").resolve() / "__0_0.distcp")

    train(store, run, world_size, resume=True)
    starts = [json.loads(line) for line in (run / "attempts.jsonl").read_text().splitlines()]
    assert [line["step"] for line in starts if line["kind"] == "begin"] == [0, 5]
    assert metrics_lines(run) == metrics_lines(finished(world_size))
    predictions = "predictions-test.arrow"
    assert (run / predictions).read_bytes() == (finished(world_size) / predictions).read_bytes()


def test_where_no_checkpoint_is_intact_each_is_named(
    finished: MakeRun, store: Path, tmp_path: Path
) -> None:
    run = copy(finished(1), tmp_path / "run")
    for folder in run.glob("checkpoints/step-*"):
        gone(folder / ".metadata")
    with pytest.raises(RankError) as error:
        train(store, run, 1, resume=True)
    for words in ("step-00000016", "step-00000015", ".metadata is missing", "--replace"):
        assert words in str(error.value)


class State:
    """Of one weight."""

    def to_save(self, *, replica: bool) -> dict[str, Any]:
        return {"model": {"weight": torch.ones(2)}, "optimizer": {"state": {}}}

    def to_load(self, saved: Any) -> dict[str, Any]:
        return self.to_save(replica=False)

    def loaded(self, state: Any) -> None:
        pass


def test_a_kill_between_the_two_links_leaves_no_stale_best(tmp_path: Path) -> None:
    def save_and_resume(rank: int, world_size: int) -> str:
        checkpoints = Checkpoints(tmp_path, ranks_of(rank, world_size))
        checkpoints.save(State(), Position(step=1, best_step=1), ("last", "best"))
        checkpoints.save(State(), Position(step=2, best_step=2), ("last",))  # killed before best
        checkpoints.wait()
        checkpoints.resume(State())
        return (tmp_path / "checkpoints" / "best").resolve().name

    assert run_ranks(save_and_resume, 2) == ["step-00000002"] * 2


def test_the_last_stands_in_for_a_damaged_best_checkpoint(tmp_path: Path) -> None:
    def save_and_resume(rank: int, world_size: int) -> tuple[list[str], Position]:
        checkpoints = Checkpoints(tmp_path, ranks_of(rank, world_size))
        checkpoints.save(State(), Position(step=1, best_step=1, best_auc=0.9), ("last", "best"))
        checkpoints.save(State(), Position(step=2, best_step=1, best_auc=0.9), ("last",))
        checkpoints.wait()
        flipped(tmp_path / "checkpoints" / "best" / ".metadata")
        position, notes = checkpoints.resume(State())
        return notes, position

    notes, position = run_ranks(save_and_resume, 1)[0]
    assert "step-00000001, the best so far, is damaged: .metadata has another SHA-256" in notes[0]
    assert (position.step, position.best_step, position.best_auc) == (2, 2, None)
    assert (tmp_path / "checkpoints" / "best").resolve().name == "step-00000002"


def test_a_kill_while_a_run_is_replaced_leaves_its_checkpoints_to_no_other(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "far" / "step-00000002"
    old.mkdir(parents=True)
    (old / "manifest.json").write_text("{}")
    there = Reliability(checkpoints=f"file://{tmp_path / 'far'}")
    trainer = training.Trainer(
        "small", EXPERIMENT, store, tmp_path / "run", ranks_of(0, 1), reliability=there
    )
    assert trainer.checkpoints

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "write", killed)  # config.json, by which --resume knows a run
    with pytest.raises(KeyboardInterrupt):
        trainer._claim(resume=False, replace=True)
    assert not trainer.folder.started
    assert not trainer.checkpoints


def test_a_finished_run_whose_best_checkpoint_is_damaged_goes_on_to_its_end(
    overfitted: Path, store: Path, tmp_path: Path
) -> None:
    run = copy(overfitted, tmp_path / "run")
    flipped((run / "checkpoints" / "best").resolve() / ".metadata")
    last = read(run / "checkpoints" / "last", "position.json")["step"]
    experiment = read_experiment(read_config(run)).changed(epochs=1)
    train(store, run, 2, experiment, resume=True)
    assert read(run, "summary.json")["best_step"] >= last


@pytest.mark.parametrize("failing", ["point", "discard"])
def test_what_fails_after_a_checkpoint_is_published_leaves_it(
    failing: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def save(rank: int, world_size: int) -> list[str]:
        there = Reliability(checkpoints=f"file://{tmp_path / 'far'}", keep_checkpoints=1)
        checkpoints = Checkpoints(tmp_path, ranks_of(rank, world_size), there)
        checkpoints.save(State(), Position(step=1, best_step=2), ("last",))
        checkpoints.wait()
        genuine = getattr(Storage, failing)

        def fail(self: Storage, name: str, *rest: str) -> None:
            if failing == "point" or name == "step-00000001":
                raise ConnectionError("the service is away")
            genuine(self, name, *rest)

        setattr(Storage, failing, fail)
        checkpoints.save(State(), Position(step=2, best_step=2), ("last",))
        with pytest.raises(InputError) if failing == "point" else contextlib.nullcontext():
            checkpoints.wait()
        return checkpoints.storage.names()

    assert run_ranks(save, 1)[0] == ["step-00000001", "step-00000002"]
    assert ("could not be removed: the service" in capfd.readouterr().err) is (failing == "discard")


def test_each_kept_checkpoint_keeps_its_best(tmp_path: Path) -> None:
    class State:
        def to_save(self, *, replica: bool) -> dict[str, Any]:
            return {"model": {"weight": torch.ones(2)}}

    def save(rank: int, world_size: int) -> list[list[str]]:
        checkpoints = Checkpoints(tmp_path, ranks_of(rank, world_size))
        kept = []
        for step, best in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 3)]:
            links = ("last", "best") if step == best else ("last",)
            checkpoints.save(State(), Position(step=step, best_step=best), links)
            checkpoints.wait()
            kept.append([name[-1] for name in checkpoints.storage.names()])
        return kept

    steps = run_ranks(save, 1)[0]
    # 2 goes on with 1 for its best as long as it may have to stand in for 3
    assert steps == [["1"], ["1", "2"], ["1", "2", "3"], ["3", "4"], ["3", "4", "5"]]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_url_holds_the_checkpoints_of_a_run_that_is_killed_and_resumed(
    world_size: int, store: Path, tmp_path: Path, finished: MakeRun
) -> None:
    run, far = tmp_path / "run", tmp_path / "far"
    there = Reliability(
        checkpoints=f"file://{far}", checkpoint_every=3, checkpoint_in_background=False
    )
    with pytest.raises(RankError, match="Interrupt"):
        train(store, run, world_size, reliability=there, before=stop_at(14, interrupt))
    assert not (run / "checkpoints").exists()
    assert (far / "last").read_text() == "step-00000012"
    assert read(run, "config.json")["checkpoints"] == f"file://{far}"
    flipped(far / "step-00000012" / ".metadata")
    train(store, run, world_size, resume=True)  # config.json knows where they are
    assert metrics_lines(run) == metrics_lines(finished(world_size))
    assert {"last", "best", "step-00000016"} <= {entry.name for entry in far.iterdir()}
    assert run_ranks(lambda *who: len(loaded_state(store, run, *who).plan["tables"]), 1) == [6]


def test_memory_is_a_url_too(tmp_path: Path) -> None:
    class State:
        def to_save(self, *, replica: bool) -> dict[str, Any]:
            return {"model": {"weight": torch.arange(3.0)}, "optimizer": {"state": {}}}

    def save_and_check(rank: int, world_size: int) -> Any:
        memory = Reliability(checkpoints="memory://runs/mine", keep_checkpoints=1)
        checkpoints = Checkpoints(tmp_path, ranks_of(rank, world_size), memory)
        for step in (1, 2):
            checkpoints.save(State(), Position(step=step), ("last",))
        checkpoints.wait()
        found = fsspec.filesystem("memory").find("/runs/mine")
        return checkpoints.storage.target("last"), checkpoints.damage("step-00000002"), found

    last, damage, found = run_ranks(save_and_check, 1)[0]
    assert (last, damage) == ("step-00000002", "")
    assert {Path(file).parent.name for file in found} == {"mine", "step-00000002"}


def test_another_runs_checkpoints_are_not_written_over(store: Path, tmp_path: Path) -> None:
    there = Reliability(checkpoints=f"file://{tmp_path / 'far'}", checkpoint_in_background=False)
    train(store, tmp_path / "one", 1, reliability=there)
    with pytest.raises(RankError, match="holds checkpoints already"):
        train(store, tmp_path / "two", 1, reliability=there)
    assert not (tmp_path / "two").exists()


def test_a_run_is_not_resumed_at_another_url_as_if_it_had_no_checkpoints(
    finished: MakeRun, store: Path, tmp_path: Path
) -> None:
    run = copy(finished(1), tmp_path / "run")
    there = Reliability(checkpoints=f"file://{tmp_path / 'far'}")
    with pytest.raises(RankError, match=r"has its checkpoints in .*run/checkpoints, not in file:"):
        train(store, run, 1, reliability=there, resume=True)
    assert "checkpoints" not in read(run, "config.json")


def test_a_storage_that_does_not_answer_is_told_of_before_training(
    store: Path, tmp_path: Path
) -> None:
    def denied() -> None:
        def entries(self: Storage) -> list[str]:
            raise PermissionError("403 Forbidden")

        Storage.entries = entries

    there = Reliability(checkpoints=f"file://{tmp_path / 'far'}")
    with pytest.raises(RankError, match="cannot be read: 403 Forbidden") as error:
        train(store, tmp_path / "run", 1, reliability=there, before=denied)
    assert "InputError" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError, match="no URL with a password") as error:
        Storage("ftp://me:secret@host/folder")
    assert "secret" not in str(error.value)


def test_the_storage_that_failed_does_not_hide_what_failed(store: Path, tmp_path: Path) -> None:
    def away() -> None:
        def target(self: Storage, link: str) -> None:
            raise ConnectionError("the service is away")

        def step(*_: Any) -> None:
            Storage.target = target
            raise InputError("told by the step")

        training.train_step = step

    there = Reliability(checkpoints=f"file://{tmp_path / 'far'}")
    with pytest.raises(RankError, match="told by the step") as error:
        train(store, tmp_path / "run", 1, reliability=there, before=away)
    assert "InputError" in str(error.value).splitlines()[-1]


@pytest.mark.parametrize("url", ["nowhere://x", "s3", "/folder"])
def test_what_is_no_url_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, InputError), match=r"URL"):
        Storage(Reliability(checkpoints=url).checkpoints)


def test_an_error_in_the_background_is_told_at_the_next_step(store: Path, tmp_path: Path) -> None:
    def full() -> None:
        def no_room(*_: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        _Recorded.write = no_room

    with pytest.raises(RankError, match="could not be written to: No space left"):
        train(store, tmp_path / "run", 2, before=full, reliability=Reliability(checkpoint_every=3))


def test_training_goes_on_while_a_copy_of_the_state_is_written(tmp_path: Path) -> None:
    weight = torch.ones(4)

    class State:
        def to_save(self, *, replica: bool) -> dict[str, Any]:
            return {"model": {"weight": weight}}

    def save(rank: int, world_size: int) -> list[float]:
        checkpoints = Checkpoints(tmp_path, ranks_of(rank, world_size))
        checkpoints.save(State(), Position(step=1), ("last",))
        weight.fill_(7)  # as a step would, in place
        checkpoints.wait()
        loaded = {"model": {"weight": torch.zeros(4)}}
        reader = checkpoints.storage.reader("step-00000001")
        torch.distributed.checkpoint.load(loaded, storage_reader=reader)
        return loaded["model"]["weight"].tolist()

    assert run_ranks(save, 1)[0] == [1, 1, 1, 1]


def test_a_copy_of_a_state_shares_no_memory_and_holds_this_ranks_shards_alone(
    finished: MakeRun, store: Path
) -> None:
    def check(rank: int, world_size: int) -> list[bool]:
        whole = EXPERIMENT.changed(sharding=ShardingConfig(kinds=("table_wise",)))
        state = loaded_state(store, finished(2), rank, world_size, whole).to_save()["model"]
        name = next(name for name in state if "attention_item" in name)
        copied = on_host(state)[name]
        ours, theirs = copied.local_shards(), state[name].local_shards()
        assert len(ours) == len(theirs)
        assert dist.get_world_size() == 2
        return [
            torch.equal(our.tensor, their.tensor)
            and our.tensor.untyped_storage().nbytes() == 4 * their.tensor.numel()
            and our.tensor.data_ptr() != their.tensor.data_ptr()
            for our, their in zip(ours, theirs, strict=True)
        ]

    assert all(shard for rank in run_ranks(check, 2) for shard in rank)
