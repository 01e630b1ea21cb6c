"""``--model.head separation`` on the command line, with every model that reads histories."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.store import EventStore
from modules.crossing.presets import PRESETS
from modules.head import CrossingHead
from trainer import cli
from trainer.experiments import EXPERIMENTS
from trainer.state import build_ranker
from trainer.sweep.cells import experiment_of
from trainer.sweep.rows import Row

FLAGS = ("--model.head", "separation")
LIFELONG = [name for name in EXPERIMENTS if name not in PRESETS]


@pytest.mark.parametrize("name", LIFELONG)
def test_any_search_model_takes_the_head(name: str, store: Path) -> None:
    experiment = experiment_of(Row(name, name), FLAGS)
    ranker = build_ranker(experiment, EventStore.open(store))
    assert isinstance(ranker.head, CrossingHead)
    assert next(iter(ranker.head.layers.parts)) == "interactions"
    of_before = EXPERIMENTS[name]().model
    for part in ("sharing", "search", "pooling", "score", "auxiliary"):
        assert getattr(ranker.config, part) == getattr(of_before, part)


def test_its_network_is_chosen_by_the_flags_of_crossing() -> None:
    words = ("--model.crossing.form", "cross", "--model.crossing.residual")
    crossing = experiment_of(Row("twin", "twin"), (*FLAGS, *words)).model.crossing
    assert (crossing.kind, crossing.form, crossing.residual) == ("separation", "cross", True)


@pytest.mark.parametrize(
    ("experiment", "words"), [("deepfm", ()), ("dare", ("--model.crossing.kind", "fm"))]
)
def test_a_network_of_another_kind_is_one_message(
    experiment: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", experiment, "--data", "store", "--out", "run", *FLAGS, *words]
    assert cli.run(command) == 2
    shown = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert "head='separation' crosses by crossing.kind='separation', got 'fm'" in shown
    assert "Traceback" not in shown
