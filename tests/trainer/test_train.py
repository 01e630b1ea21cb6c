"""Whole runs: what they write, that world sizes agree, and how they end."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.loader import RequestLoader
from data.store import EventStore, write_requests
from sharding.plan import ShardingConfig
from tests.ranks import RankError
from tests.trainer.conftest import MakeRun
from tests.trainer.small_runs import (
    EVALUATIONS,
    EXPERIMENT,
    STEPS,
    content,
    metrics_lines,
    read,
    stop_at,
    train,
    without_clock,
)
from trainer.run_folder import RunFolder

METRICS = {
    "auc", "auc_interval", "gauc", "logloss", "normalized_entropy", "calibration", "samples",
    "requests", "users", "positives",
}  # fmt: skip
SEARCH = {
    "same_item_recall", "same_item_candidates", "same_category_recall", "same_category_candidates",
    "attention_entropy", "attention_candidates",
}  # fmt: skip


def test_ranks_get_unequal_numbers_of_requests(store: Path) -> None:
    for world_size in (2, 4):
        shares = [
            [len(batch.request_ids) for batch in RequestLoader(
                EventStore.open(store), "train", requests_per_batch=37, history_length=16,
                rank=rank, world_size=world_size,
            )]
            for rank in range(world_size)
        ]  # fmt: skip
        assert any(len(set(step)) > 1 for step in zip(*shares, strict=True))


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_world_size_trains_the_same_model(world_size: int, finished: MakeRun) -> None:
    run, alone = finished(world_size), finished(1)
    found, expected = (without_clock(read(folder, "summary.json")) for folder in (run, alone))
    assert found.pop("world_size") == world_size
    expected.pop("world_size")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        near = pytest.approx(value, abs=1e-3) if _is_number(value) else value
        assert found[key] == near, key
    ours, theirs = (content(folder / "checkpoints" / "last") for folder in (run, alone))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or (
        isinstance(value, list) and all(isinstance(entry, float) for entry in value)
    )


def test_training_lowers_the_loss_and_beats_chance(finished: MakeRun) -> None:
    summary = read(finished(1), "summary.json")
    assert summary["loss_last"] < summary["loss_first"] - 0.05
    assert 0.6 < summary["auc"] < 0.9  # the truth itself reaches about 0.85


def test_a_run_writes_all_that_the_architecture_promises(finished: MakeRun) -> None:
    run = finished(2)
    assert {entry.name for entry in run.iterdir()} == {
        ".lock", "config.json", "plan.json", "metrics.jsonl", "analysis.json", "summary.json",
        "predictions-test.arrow", "checkpoints", "tensorboard", "report.html", "attempts.jsonl",
        "progress.json",
    }  # fmt: skip
    summary = read(run, "summary.json")
    assert summary.keys() >= METRICS | {
        "model", "dataset", "split", "train_samples", "train_seconds", "samples_per_second",
        "loss_first", "loss_last", "world_size", "versions",
    }  # fmt: skip
    assert (summary["model"], summary["dataset"], summary["split"]) == (
        "small",
        "synthetic",
        "test",
    )
    assert (summary["world_size"], summary["steps"], summary["seed"]) == (2, STEPS, 1)
    assert summary["versions"].keys() >= {"python", "torch", "torchrec"}
    assert (run / "report.html").read_text().rstrip().endswith("</html>")


def test_every_candidate_of_every_epoch_counts_as_trained(finished: MakeRun, store: Path) -> None:
    candidates = EventStore.open(store).info.candidates["train"]
    assert read(finished(2), "summary.json")["train_samples"] == 2 * candidates


def test_metrics_jsonl_has_a_line_every_log_every_steps_and_at_each_evaluation(
    finished: MakeRun,
) -> None:
    lines = metrics_lines(finished(2))
    trained = [line for line in lines if line["kind"] == "train"]
    evaluated = [line for line in lines if line["kind"] == "eval"]
    assert [line["step"] for line in trained] == sorted({*range(2, STEPS + 1, 2), *EVALUATIONS})
    assert [line["step"] for line in evaluated] == list(EVALUATIONS)
    for line in trained:
        assert line.keys() == {"kind", "step", "epoch", "samples", "loss", "auxiliary", "l2"}
    for line in evaluated:
        assert line.keys() == {"kind", "split", "step"} | METRICS | SEARCH
        assert line["split"] == "val"


def test_the_search_is_looked_at_before_the_first_step(finished: MakeRun) -> None:
    first = metrics_lines(finished(2))[0]
    assert first.keys() == {"kind", "split", "step"} | SEARCH
    assert (first["kind"], first["split"], first["step"]) == ("search", "val", 0)
    assert 0 < first["attention_entropy"] <= np.log(EXPERIMENT.model.top_k)
    assert first["same_category_candidates"] > 0


def test_gradients_of_the_first_steps_are_recorded_on_request(
    store: Path, finished: MakeRun, tmp_path: Path
) -> None:
    found = []
    for world_size in (1, 2):
        run = tmp_path / str(world_size)
        train(store, run, world_size, EXPERIMENT.changed(record_gradients=3, epochs=1))
        found.append(read(run, "gradients.json"))
        # watching changes nothing
        lines, expected = metrics_lines(run), metrics_lines(finished(world_size))
        losses = [line["loss"] for line in lines if line["kind"] == "train"]
        assert losses[:3] == [line["loss"] for line in expected if line["kind"] == "train"][:3]
    alone, together = found
    assert alone["steps"] == together["steps"] == 3
    assert min(alone["attention_norm"]) > 0
    for name in ("attention_norm", "representation_norm", "mean_cosine", "domination"):
        assert together[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-6), name


def test_analysis_json_has_lookups_attention_and_calibration(finished: MakeRun) -> None:
    run = finished(2)
    analysis, samples = read(run, "analysis.json"), read(run, "summary.json")["samples"]
    tables = {table["name"] for table in read(run, "plan.json")["tables"]}
    assert analysis["lookups"].keys() == tables
    attention = analysis["attention_by_recency"]
    assert attention["recency"] == list(range(1, 17))
    # weights of each candidate with a history sum to 1
    assert sum(attention["weight"]) == pytest.approx(1, abs=1e-5)
    assert sum(attention["uniform"]) == pytest.approx(1, abs=1e-5)
    assert sum(analysis["calibration"]["count"]) == samples


def test_plan_json_places_every_row_of_every_table_once(finished: MakeRun) -> None:
    plan = read(finished(4), "plan.json")
    assert plan["world_size"] == 4
    for table in plan["tables"]:
        held = np.zeros((table["rows"], table["width"]), int)
        for shard in table["shards"]:
            (row, column), (rows, columns) = shard["offset"], shard["size"]
            held[row : row + rows, column : column + columns] += 1
            assert shard["rank"] in range(4)
        replicated = table["sharding_type"] == "data_parallel"  # whole on every rank: no shards
        assert (held == (0 if replicated else 1)).all()
        assert (table["compute_kernel"], table["optimizer"]) == (
            "dense" if replicated else "fused",
            "rowwise_adagrad",
        )


def test_tensorboard_shows_the_losses_and_the_validation(finished: MakeRun) -> None:
    board = EventAccumulator(str(finished(2) / "tensorboard"))
    board.Reload()
    assert {"train/loss", "train/auxiliary", "val/auc", "val/logloss"} <= {*board.Tags()["scalars"]}
    assert [event.step for event in board.Scalars("val/auc")] == list(EVALUATIONS)
    lines = [line for line in metrics_lines(finished(2)) if line["kind"] == "train"]
    losses = [event.value for event in board.Scalars("train/loss")]
    assert losses == pytest.approx([line["loss"] for line in lines], rel=1e-6)


def test_training_stops_after_patience_evaluations_without_a_better_one(overfitted: Path) -> None:
    summary = read(overfitted, "summary.json")
    auc = [line["auc"] for line in metrics_lines(overfitted) if line["kind"] == "eval"]
    best = int(np.argmax(auc))
    assert len(auc) == summary["steps"] < 20 * 8
    assert (summary["best_step"], summary["validation_auc"]) == (best + 1, auc[best])
    assert summary["steps"] == summary["best_step"] + 3
    links = {link: (overfitted / "checkpoints" / link).readlink() for link in ("best", "last")}
    assert str(links["best"]) == f"step-{summary['best_step']:08d}"
    assert str(links["last"]) == f"step-{summary['steps']:08d}"


def test_checkpoints_hold_batch_norm_statistics_taken_anew(finished: MakeRun) -> None:
    # of the 8 batches of an epoch, taken again before each evaluation; not of all 16 steps
    for name, value in content(finished(2) / "checkpoints" / "last").items():
        if name.endswith("num_batches_tracked"):
            assert value == 8


def test_clicks_of_one_class_have_no_auc_but_train_on(store: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(store, tmp_path / "store"))
    for partition, split in itertools.product(EventStore.open(store).partitions, ("val", "test")):
        requests = partition.requests(split)
        silent = dataclasses.replace(requests, labels=np.zeros_like(requests.labels))
        write_requests(data / partition.path.name / f"{split}.arrow", silent)
    summary = train(data, tmp_path / "run", 1, report=True)
    assert (summary["steps"], summary["best_step"]) == (STEPS, STEPS)  # the latest is the best
    assert (summary["auc"], summary["validation_auc"], summary["positives"]) == (None, None, 0)
    assert summary["logloss"] > 0


def test_a_first_run_that_fails_before_a_checkpoint_leaves_nothing_behind(
    store: Path, tmp_path: Path
) -> None:
    def crash() -> None:
        raise ZeroDivisionError

    with pytest.raises(RankError, match="ZeroDivisionError"):
        train(store, tmp_path / "run", 2, before=stop_at(3, crash))
    assert not (tmp_path / "run").exists()


def test_a_plan_that_does_not_fit_leaves_nothing_behind(store: Path, tmp_path: Path) -> None:
    tiny = EXPERIMENT.changed(sharding=ShardingConfig(memory_gib=1e-6))
    with pytest.raises(RankError, match=r"rank 0 raised(.|\n)*do not fit(.|\n)*rank 1 raised"):
        train(store, tmp_path / "run", 2, tiny)
    assert not (tmp_path / "run").exists()


def test_a_field_that_the_store_lacks_is_refused(store: Path, tmp_path: Path) -> None:
    fields = dataclasses.replace(EXPERIMENT.fields, attention_dims={"colour": 4})
    with pytest.raises(RankError, match=r"InputError: attention_dims names \['colour'\]"):
        train(store, tmp_path / "run", 1, EXPERIMENT.changed(fields=fields))


def test_a_split_too_small_for_the_ranks_is_refused_before_training(
    store: Path, tmp_path: Path
) -> None:
    # 53 requests of test in 14 batches: some have 3, while those of training all have 4
    with pytest.raises(RankError, match=r"4 ranks are too many: the 53 test requests"):
        train(
            store, tmp_path / "run", 4, EXPERIMENT.changed(requests_per_batch=4, evaluate_every=1)
        )
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_in_mid_run_is_told_and_the_run_resumes(
    store: Path, finished: MakeRun, tmp_path: Path
) -> None:
    def fill() -> None:
        genuine = RunFolder.append

        def append(folder: RunFolder, record: dict[str, Any]) -> None:
            if record["step"] == 12:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            genuine(folder, record)

        RunFolder.append = append

    run = tmp_path / "run"
    with pytest.raises(RankError, match=r"InputError: .*run could not be written to: No space"):
        train(store, run, 1, before=fill)
    train(store, run, 1, resume=True)
    assert metrics_lines(run) == metrics_lines(finished(1))
