"""One job at a time in a run folder, and nothing lost or left behind there."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from data.errors import InputError
from data.store import EventStore
from tests.ranks import run_ranks
from tests.trainer.small_runs import EXPERIMENT
from trainer.experiments import EXPERIMENTS
from trainer.provenance import describe_run
from trainer.run_folder import RunFolder, disk_errors, read_config, read_experiment


@pytest.fixture
def config(store: Path) -> dict[str, Any]:
    return describe_run("small", EXPERIMENT, EventStore.open(store))


def claim(
    path: Path, config: dict[str, Any], *, resume: bool = False, replace: bool = False
) -> RunFolder:
    folder = RunFolder(path)
    folder.claim(config, resume=resume, replace=replace)
    return folder


def files(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*")} - {".lock"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_config_json_gives_the_experiment_back(name: str, store: Path, tmp_path: Path) -> None:
    experiment = EXPERIMENTS[name]()
    folder = claim(tmp_path / "run", describe_run(name, experiment, EventStore.open(store)))
    assert read_experiment(read_config(folder.path)) == experiment


def test_a_second_process_is_refused_while_the_first_has_the_folder(
    config: dict[str, Any], tmp_path: Path
) -> None:
    first = claim(tmp_path / "run", config)

    def second(rank: int, world_size: int) -> str:
        with pytest.raises(InputError) as error:
            claim(first.path, config, resume=True)
        return str(error.value)

    assert "run is in use by another job" in run_ranks(second, 1)[0]


def test_a_folder_is_free_again_when_its_job_has_ended(
    config: dict[str, Any], tmp_path: Path
) -> None:
    run_ranks(lambda rank, world_size: claim(tmp_path / "run", config).path, 1)
    claim(tmp_path / "run", config, resume=True)
    assert read_config(tmp_path / "run") == config


def test_a_run_is_not_overwritten_unasked(config: dict[str, Any], tmp_path: Path) -> None:
    claim(tmp_path / "run", config)
    with pytest.raises(InputError, match=r"holds a run already.* --resume.* --replace"):
        claim(tmp_path / "run", config | {"experiment": "other"})
    assert read_config(tmp_path / "run") == config


def test_a_folder_with_foreign_files_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for options in ({}, {"resume": True}, {"replace": True}):
        with pytest.raises(InputError, match="not empty and holds no run"):
            claim(tmp_path, config, **options)
    assert files(tmp_path) == {"thesis.tex"}


def test_what_a_kill_left_of_a_file_does_not_bar_the_folder(
    config: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / ".config.json").write_text('{"experi')
    claim(tmp_path, config)
    assert read_config(tmp_path) == config


def test_a_disk_that_is_full_at_the_start_is_told_of(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunFolder, "write", full)
    with pytest.raises(InputError, match=r"No space left.*Make room and start again"):
        claim(tmp_path / "run", config)


def test_replace_deletes_the_run_and_nothing_else(config: dict[str, Any], tmp_path: Path) -> None:
    old = claim(tmp_path / "run", config)
    old.append({"step": 1})
    old.write("summary.json", {})
    (old.path / "checkpoints" / "step-00000001").mkdir(parents=True)
    (old.path / "notes.txt").write_text("mine")
    del old  # its job ends
    new = claim(tmp_path / "run", config | {"experiment": "other"}, replace=True)
    assert files(new.path) == {"config.json", "notes.txt"}
    assert read_config(new.path)["experiment"] == "other"


def test_a_run_of_an_older_version_goes_on(config: dict[str, Any], tmp_path: Path) -> None:
    """Settings that were added since leave it as it was."""
    older = json.loads(json.dumps(config))
    del older["config"]["plateau_patience"], older["config"]["model"]["crossing"]
    claim(tmp_path / "run", older)
    claim(tmp_path / "run", config, resume=True)
    assert read_config(tmp_path / "run") == config


def test_another_store_cannot_be_resumed_on(config: dict[str, Any], tmp_path: Path) -> None:
    claim(tmp_path / "run", config)
    data = config["data"] | {"fingerprint": "0" * 64}
    with pytest.raises(InputError, match=r"other settings \(data: another store\)"):
        claim(tmp_path / "run", config | {"data": data}, resume=True)


def test_a_run_that_fails_before_its_first_checkpoint_takes_its_folder_along(
    config: dict[str, Any], tmp_path: Path
) -> None:
    folder = claim(tmp_path / "run", config)
    folder.append({"step": 1})
    folder.abandon()
    assert not folder.path.exists()


def test_a_folder_that_was_there_before_stays_with_what_is_not_the_runs(
    config: dict[str, Any], tmp_path: Path
) -> None:
    folder = claim(tmp_path, config)
    folder.append({"step": 1})
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "notes.txt").write_text("written meanwhile")
    folder.abandon()
    assert files(tmp_path) == {"notes.txt"}


def test_a_run_with_a_checkpoint_survives_a_failure(config: dict[str, Any], tmp_path: Path) -> None:
    folder = claim(tmp_path / "run", config)
    (folder.path / "checkpoints" / "last").mkdir(parents=True)
    folder.abandon()
    assert files(folder.path) == {"config.json", "checkpoints", "checkpoints/last"}


def test_lines_after_the_checkpoint_and_cut_ones_are_forgotten(
    config: dict[str, Any], tmp_path: Path
) -> None:
    folder = claim(tmp_path / "run", config)
    for step in (5, 10, 12):
        folder.append({"step": step})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # here a job was killed
    folder.forget_after(10)
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 10]


def test_a_folder_that_cannot_be_made_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/run cannot be made"):
        claim(tmp_path / "file" / "run", config)


def test_a_folder_that_is_gone_does_not_hide_what_went_wrong(tmp_path: Path) -> None:
    """The first rank removes it while the others still end."""
    with pytest.raises(ConnectionError, match="the other rank"), disk_errors(tmp_path / "gone"):
        raise ConnectionError("the other rank has left")


def test_a_full_disk_is_told_of_also_where_the_folder_is_gone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No space left"), disk_errors(tmp_path / "gone"):
        raise OSError(errno.ENOSPC, "No space left on device")
