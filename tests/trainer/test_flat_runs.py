"""Rows without histories, and heads that cross fields, trained end to end."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from data.errors import InputError
from data.prepare import prepare
from data.sources.criteo import Criteo
from data.store import EventStore, read_arrow
from modules.crossing.presets import PRESETS
from tests.data.flat_logs import criteo_rows, write_criteo
from tests.ranks import RankError
from tests.trainer.small_runs import EXPERIMENT, read, stop_at, train
from trainer.experiment import Experiment, FieldWidths
from trainer.experiments import EXPERIMENTS
from trainer.run_folder import read_experiment
from trainer.state import build_ranker

ROWS = 900


def clicks_follow(rows: list[list[str]]) -> list[list[str]]:
    """The label is whether the first number is large, in 19 of 20 rows."""
    draw = np.random.default_rng(0)
    for cells in rows:
        large = int(cells[1] or 0) > 2
        cells[0] = str(int(large != (draw.random() < 0.05)))
    return rows


@pytest.fixture(scope="module")
def criteo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("criteo")
    file = write_criteo(folder / "train.txt", clicks_follow(criteo_rows(ROWS)))
    prepare(Criteo(path=(file,), preparation="x1"), folder / "store")
    return folder / "store"


def small(name: str, **changes: object) -> Experiment:
    experiment = EXPERIMENTS[name]()
    return experiment.changed(
        fields=FieldWidths(attention_dim=4, representation_dim=4, representation_init_std=0.1),
        tables=EXPERIMENT.tables,
        requests_per_batch=50,
        dense_learning_rate=0.01,
        bootstrap=10,
        **changes,
    )


@pytest.mark.parametrize("name", ["lr", "fm", "secn_b"])
def test_two_processes_train_what_one_trains(name: str, criteo: Path, tmp_path: Path) -> None:
    experiment = small(name)
    one = train(criteo, tmp_path / "one", 1, experiment)
    two = train(criteo, tmp_path / "two", 2, experiment)
    for metric in ("loss_last", "auc", "logloss"):
        assert two[metric] == pytest.approx(one[metric], rel=1e-3), metric
    info = EventStore.open(criteo).info
    assert one["train_samples"] == info.candidates["train"]
    predictions = read_arrow(tmp_path / "two" / "predictions-test.arrow")
    assert len(predictions) == info.candidates["test"]


def test_dropout_goes_on_where_a_run_was_stopped(criteo: Path, tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    experiment = small("secn_b_deep", epochs=2, evaluate_every=5)
    whole = train(criteo, tmp_path / "whole", 1, experiment)
    with pytest.raises(RankError):
        train(criteo, tmp_path / "run", 1, experiment, before=stop_at(13, interrupt))
    resumed = train(criteo, tmp_path / "run", 1, experiment, resume=True)
    assert resumed["loss_last"] == whole["loss_last"]
    assert resumed["auc"] == whole["auc"]


def test_logistic_regression_is_near_scikit_learns(criteo: Path, tmp_path: Path) -> None:
    """On the same ids and numbers: the whole way from rows to predictions loses nothing."""
    store = EventStore.open(criteo)
    experiment = small("lr", epochs=20, patience=100).changed(dense_learning_rate=0.1)
    summary = train(criteo, tmp_path / "run", 1, experiment)
    splits = {}
    for split in ("train", "test"):
        parts = [partition.requests(split) for partition in store.partitions]
        numbers = np.stack(
            [np.concatenate([part.numbers[n] for part in parts]) for n in store.numbers], axis=1
        )
        known = np.where(np.isfinite(numbers), np.sign(numbers) * np.log1p(np.abs(numbers)), 0)
        columns = [known, ~np.isfinite(numbers)]
        for name, size in store.context:
            columns.append(np.eye(size)[np.concatenate([part.context[name] for part in parts])])
        labels = np.concatenate([part.labels for part in parts])
        splits[split] = (np.concatenate(columns, axis=1), labels)
    fitted = LogisticRegression(max_iter=2000).fit(*splits["train"])
    probability = fitted.predict_proba(splits["test"][0])[:, 1]
    label = splits["test"][1]
    pairs = probability[label == 1][:, None] - probability[label == 0][None]
    expected = (pairs > 0).mean() + (pairs == 0).mean() / 2
    assert expected > 0.75
    assert summary["auc"] == pytest.approx(expected, abs=0.04)


def test_a_run_says_what_its_head_was(criteo: Path, tmp_path: Path) -> None:
    experiment = small("autoint_plus")
    train(criteo, tmp_path / "run", 1, experiment)
    assert read_experiment(read(tmp_path / "run", "config.json")) == experiment


def test_a_model_that_reads_histories_is_refused_where_there_are_none(criteo: Path) -> None:
    with pytest.raises(InputError, match=r"have no histories.*deepfm"):
        build_ranker(EXPERIMENTS["dare"](), EventStore.open(criteo))


def test_fields_of_the_context_can_be_left_out(criteo: Path, tmp_path: Path) -> None:
    store = EventStore.open(criteo)
    experiment = small("secn_a")
    fewer = dataclasses.replace(experiment.fields, without=("C3", "I1"))
    ranker = build_ranker(experiment.changed(fields=fewer), store)
    names = {name for name, _ in ranker.named_parameters()}
    assert any("context_C2" in name for name in names)
    assert not any("context_C3" in name for name in names)
    assert ranker.context.numbers.vectors.shape[0] == len(store.numbers) - 1
    summary = train(criteo, tmp_path / "run", 1, experiment.changed(fields=fewer))
    assert math.isfinite(summary["logloss"])
    unknown = dataclasses.replace(experiment.fields, without=("C99",))
    with pytest.raises(InputError, match=r"without names .'C99'"):
        build_ranker(experiment.changed(fields=unknown), store)


def test_gradients_of_no_attention_are_not_recorded(criteo: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="a model that reads histories"):
        train(criteo, tmp_path / "run", 1, small("fm", record_gradients=3))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_network_crosses_candidates_of_a_log(preset: str, store: Path) -> None:
    """Fields are the candidate's own: recency says nothing of it."""
    ranker = build_ranker(EXPERIMENTS[preset](), EventStore.open(store))
    assert [field.name for field in ranker.fields] == ["item", "category"]


def test_dare_crosses_interests(store: Path, tmp_path: Path) -> None:
    model = dataclasses.replace(
        EXPERIMENT.model, head="crossing", crossing=PRESETS["secn_b_deep"]()
    )
    fields = dataclasses.replace(EXPERIMENT.fields, user=True)
    experiment = EXPERIMENT.changed(model=model, fields=fields, epochs=1)
    summary = train(store, tmp_path / "run", 2, experiment)
    assert np.isfinite(summary["loss_last"])
    ranker = build_ranker(experiment, EventStore.open(store))
    # item, category and recency of candidate and interest, and the user
    deep = ranker.head.layers.parts["deep"]
    assert next(m for m in deep.modules() if isinstance(m, nn.Linear)).in_features == 7 * 4
    assert torch.device("meta") == next(ranker.context.context.parameters()).device
