"""``evaluate`` finds in a checkpoint what the run's summary says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data.errors import InputError
from data.prepare import prepare
from tests.ranks import run_ranks
from tests.trainer.conftest import MakeRun, copy
from tests.trainer.small_runs import SOURCE, metrics_lines, ranks_of, read
from trainer.evaluate import evaluate_run

METRICS = (
    "auc", "gauc", "logloss", "normalized_entropy", "calibration", "samples", "requests", "users",
    "positives",
)  # fmt: skip


def evaluate(run: Path, store: Path, world_size: int, *order: str) -> None:
    run_ranks(
        lambda rank, world_size: evaluate_run(run, store, *order, ranks_of(rank, world_size)),
        world_size,
    )


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_any_world_size_reproduces_the_summary_from_the_best_checkpoint(
    world_size: int, finished_copy: MakeRun, store: Path
) -> None:
    run = finished_copy(2)
    evaluate(run, store, world_size, "test", "best")
    found, summary = read(run, "evaluation-best-test.json"), read(run, "summary.json")
    assert (found["step"], found["world_size"]) == (summary["best_step"], world_size)
    for name in METRICS:
        assert found[name] == pytest.approx(summary[name], abs=1e-6), name
    assert found["auc_interval"] == pytest.approx(summary["auc_interval"], abs=1e-6)


def test_the_summary_is_of_the_best_checkpoint_and_not_of_the_last(
    overfitted: Path, store: Path, tmp_path: Path
) -> None:
    run = copy(overfitted, tmp_path / "run")
    logloss = {}
    for checkpoint in ("best", "last"):
        evaluate(run, store, 1, "test", checkpoint)
        logloss[checkpoint] = read(run, f"evaluation-{checkpoint}-test.json")["logloss"]
    assert read(run, "summary.json")["logloss"] == pytest.approx(logloss["best"], abs=1e-6)
    assert abs(logloss["best"] - logloss["last"]) > 1e-3


def test_the_last_checkpoint_on_validation_is_the_last_line_of_the_metrics(
    finished_copy: MakeRun, store: Path
) -> None:
    run = finished_copy(2)
    evaluate(run, store, 2, "val", "last")
    found, line = read(run, "evaluation-last-val.json"), metrics_lines(run)[-1]
    assert (found["checkpoint"], found["step"]) == ("last", line["step"])
    for name in METRICS:
        assert found[name] == line[name], name


def test_another_store_than_the_runs_is_refused(
    finished: MakeRun, store: Path, tmp_path: Path
) -> None:
    prepare(SOURCE, tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=r"other is not the store that .* was trained on"):
        evaluate_run(finished(1), tmp_path / "other", "test", "best", ranks_of(0, 1))


def test_a_folder_without_a_run_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run folder: it has no config.json.* --out"):
        evaluate_run(tmp_path, store, "test", "best", ranks_of(0, 1))


@pytest.mark.parametrize(
    "text", ["{", "{}", "[]", '{"experiment": "", "config": {"epochs": "many"}, "data": {}}']
)
def test_a_damaged_config_is_refused(text: str, finished_copy: MakeRun, store: Path) -> None:
    run = finished_copy(1)
    (run / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        evaluate_run(run, store, "test", "best", ranks_of(0, 1))


def test_a_run_without_checkpoints_is_refused(finished_copy: MakeRun, store: Path) -> None:
    run = finished_copy(1)
    shutil.rmtree(run / "checkpoints")

    def refusal(rank: int, world_size: int) -> str:
        with pytest.raises(InputError) as error:
            evaluate_run(run, store, "test", "best", ranks_of(rank, world_size))
        return str(error.value)

    assert "no checkpoint called best" in run_ranks(refusal, 1)[0]
