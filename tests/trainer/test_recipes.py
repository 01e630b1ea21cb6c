"""The recipes are flags that the command line takes, and they say what BARS says."""

from __future__ import annotations

import pytest

from modules.crossing.presets import PRESETS
from sharding.apply import TableOptimizer
from trainer.experiment import Experiment
from trainer.recipes import CRITEO_X1, CRITEO_X4, MODELS_X1, MODELS_X4, ON_GPUS, Flags
from trainer.sweep.cells import experiment_of
from trainer.sweep.tables import Row


def read(name: str, flags: Flags) -> Experiment:
    return experiment_of(Row(name, name), flags)


RECIPES = [(CRITEO_X1, MODELS_X1, 4096, 12), (CRITEO_X4, MODELS_X4, 10_000, 16)]


@pytest.mark.parametrize(("common", "models", "batch", "width"), RECIPES, ids=["x1", "x4"])
def test_every_network_follows_the_protocol(
    common: Flags, models: dict[str, Flags], batch: int, width: int
) -> None:
    assert models.keys() == PRESETS.keys()
    # reading takes half a second: one without flags of its own stands for all of those
    for name in ("lr", *(name for name, own in models.items() if own)):
        experiment = read(name, (*common, *models[name]))
        assert experiment.requests_per_batch == batch
        assert experiment.fields.representation_dim == width
        assert (experiment.plateau_patience, experiment.patience) == (1, 2)
        assert (experiment.evaluations_per_epoch, experiment.epochs) == (1, 100)
        assert (experiment.dense_learning_rate, experiment.plateau_factor) == (1e-3, 0.1)
        assert 0 < experiment.tables.weight_decay < 1e-3


def test_deepfm_on_x4_is_that_of_the_leaderboard() -> None:
    experiment = read("deepfm", (*CRITEO_X4, *MODELS_X4["deepfm"]))
    crossing = experiment.model.crossing
    assert (crossing.deep, crossing.dropout) == ((1000,) * 5, 0.2)
    assert experiment.tables == TableOptimizer(learning_rate=0.01, weight_decay=1e-5)


def test_on_gpus_tables_take_adam() -> None:
    tables = read("fm", (*CRITEO_X1, *ON_GPUS, *MODELS_X1["fm"])).tables
    assert tables == TableOptimizer(kind="adam", learning_rate=1e-3, weight_decay=5e-6)
