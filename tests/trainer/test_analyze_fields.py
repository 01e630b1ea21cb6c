"""``analyze`` of models over fields: what each field is worth, and what it says of rare ids."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from data.prepare import prepare
from data.sources.criteo import Criteo
from data.store import EventStore
from sharding.apply import sharded_collections
from tests.data.flat_logs import IDS, criteo_rows, write_criteo
from tests.ranks import run_ranks
from tests.trainer.conftest import MakeRun
from tests.trainer.small_runs import EXPERIMENT, content, ranks_of, read, train
from trainer.analyses import fields
from trainer.analyses.subject import Subject
from trainer.analyze import analyze_run
from trainer.checkpoint import Position
from trainer.experiment import Experiment
from trainer.experiments import EXPERIMENTS
from trainer.metrics import Predictions
from trainer.progress import Display
from trainer.report.analysis_page import write_analysis_report
from trainer.state import build_state

ROWS = 900
LEFT_OUT = tuple(IDS[3:])
"""Of the crossing network, to be quick."""


def small(name: str, **changes: object) -> Experiment:
    widths = dataclasses.replace(EXPERIMENT.fields, attention_init_std=0.3)
    return EXPERIMENTS[name]().changed(
        fields=dataclasses.replace(widths, representation_init_std=0.3, **changes),
        tables=EXPERIMENT.tables,
        requests_per_batch=50,
        dense_learning_rate=0.01,
        bootstrap=10,
    )


@pytest.fixture(scope="module")
def criteo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A click says whether the first number is large."""
    folder = tmp_path_factory.mktemp("criteo")
    rows = criteo_rows(ROWS)
    for cells in rows:
        cells[0] = str(int(int(cells[1] or 0) > 2))
    file = write_criteo(folder / "train.txt", rows)
    prepare(Criteo(path=(file,), preparation="x1"), folder / "store", partitions=2)
    return folder / "store"


@pytest.fixture(scope="module")
def secn(criteo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("secn") / "run"
    train(criteo, out, 1, small("secn_a1", without=LEFT_OUT).changed(epochs=5))
    return out


def analyze(run: Path, store: Path, out: Path, world_size: int = 1, *others: Path) -> dict:
    def of_rank(rank: int, world_size: int) -> None:
        analyze_run(run, store, out, "best", "test", others, ranks_of(rank, world_size))

    run_ranks(of_rank, world_size, timeout=120)
    return read(out, "analysis-best.json")


@pytest.fixture(scope="module")
def analyzed(secn: Path, criteo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("analyzed")
    analyze(secn, criteo, out)
    return out


def by_name(content: dict) -> dict[str, dict]:
    return {entry["field"]: entry for entry in content["importance"]["fields"]}


def test_permuting_by_hand_loses_what_is_reported(store: Path, tmp_path: Path) -> None:
    """A linear model's log odds are a sum that numpy can do."""
    train(store, tmp_path / "run", 1, small("lr", user=True))
    found = by_name(analyze(tmp_path / "run", store, tmp_path))
    saved = content(tmp_path / "run" / "checkpoints" / "best")
    weights, bias = {}, 0.0
    for key, tensor in saved.items():
        if key.startswith("model/") and "linear_" in key:
            name = key.split("linear_")[1].split(".")[0].partition("_")[2]
            weights[name] = tensor[:, 0].double().numpy()
        elif key == "model/head.layers.bias":
            bias = float(tensor)
    opened = EventStore.open(store)
    parts = [part.requests("test") for part in opened.partitions]
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    label = np.concatenate([part.labels for part in parts])
    items = np.concatenate([part.candidates for part in parts])
    users = np.concatenate([part.user for part in parts])
    columns = {"item": items, "category": opened.items["category"][items], "user": users}
    assert weights.keys() == columns.keys()

    def probability(changed: dict[str, np.ndarray]) -> np.ndarray:
        ids = {**columns, **changed}
        ids["user"] = np.repeat(ids["user"], counts)
        return 1 / (1 + np.exp(-bias - sum(weights[name][ids[name]] for name in ids)))

    whole = probability({})
    for name, values in columns.items():
        drawn = [
            probability({name: np.random.default_rng(seed).permutation(values)})
            for seed in range(fields.PERMUTATIONS)
        ]
        auc = np.mean([roc_auc_score(label, p) for p in drawn])
        cost = np.mean([log_loss(label, p) for p in drawn])
        entry = found[name]
        assert entry["auc_lost"] == pytest.approx(roc_auc_score(label, whole) - auc, abs=1e-4)
        assert entry["logloss_lost"] == pytest.approx(cost - log_loss(label, whole), abs=1e-5)
    assert {entry["kind"] for entry in found.values()} == {"candidate", "context"}


def test_a_field_whose_rows_say_nothing_is_worth_exactly_nothing(store: Path) -> None:
    experiment = small("fm", user=True)

    def measured(rank: int, world_size: int) -> dict:
        ranks, opened = ranks_of(rank, world_size), EventStore.open(store)
        state = build_state(experiment, opened, ranks)
        for _, bags in sharded_collections(state.model):
            for name, weight in bags.state_dict().items():
                for shard in weight.local_shards():
                    tensor = shard.tensor.detach()
                    tensor.normal_(generator=torch.Generator().manual_seed(len(name)))
                    if "category" in name:
                        tensor.zero_()
        subject = Subject(experiment, opened, state, Position(), ranks, "test")
        return fields.measure(subject, Display(shown=False))

    found = by_name(run_ranks(measured, 1)[0])
    lost = found["category"]
    assert (lost["auc_lost"], lost["auc_lost_interval"], lost["logloss_lost"]) == (0, [0, 0], 0)
    assert found["item"]["auc_lost"] != 0
    assert found["user"]["logloss_lost"] != 0


def test_two_ranks_measure_what_one_measures(
    analyzed: Path, secn: Path, criteo: Path, tmp_path: Path
) -> None:
    found, expected = analyze(secn, criteo, tmp_path, 2), read(analyzed, "analysis-best.json")
    for name, entry in by_name(expected).items():
        for key, value in entry.items():
            same = pytest.approx(value, abs=1e-4) if key not in ("field", "kind") else value
            assert by_name(found)[name][key] == same, (name, key)
    np.testing.assert_allclose(found["pairs"]["norms"], expected["pairs"]["norms"], rtol=1e-6)
    for a, b in zip(found["rarity"]["bins"], expected["rarity"]["bins"], strict=True):
        assert a["count"] == b["count"]
        assert a["samples"] == b["samples"]
        assert a["logloss"] == pytest.approx(b["logloss"], abs=1e-5)


def test_the_numbers_are_there(analyzed: Path, secn: Path, criteo: Path) -> None:
    content, summary = read(analyzed, "analysis-best.json"), read(secn, "summary.json")
    opened = EventStore.open(criteo)
    assert by_name(content).keys() == {*opened.numbers, *IDS} - {*LEFT_OUT}
    first = max(content["importance"]["fields"], key=lambda entry: entry["auc_lost"])
    assert first["field"] == "I1"
    assert first["auc_lost_interval"][0] > 0.05
    assert content["importance"]["resampled"] == "request"  # there are no users
    assert content["pairs"]["fields"] == [e["field"] for e in content["importance"]["fields"]]
    bins = content["rarity"]["bins"]
    for key in ("samples", "positives"):
        assert sum(part[key] for part in bins) == summary[key]
    weighted = sum(part["logloss"] * part["samples"] for part in bins) / summary["samples"]
    assert weighted == pytest.approx(summary["logloss"])
    assert content["parts"] == {}


def test_the_page_shows_fields_pairs_and_rare_ids(analyzed: Path) -> None:
    page = (analyzed / "analysis-best.html").read_text()
    for title in ("What each field is worth", "Filters by pair of fields", "Rare ids"):
        assert f"<h2>{title}</h2>" in page
    assert "What the search finds" not in page
    assert page.count("<svg") == page.count("<figcaption") == 3
    assert "training rows of the rarest id" in page
    assert "NaN" not in page


def test_models_of_both_kinds_stand_side_by_side(
    analyzed: Path, store: Path, finished: MakeRun, tmp_path: Path
) -> None:
    of_fields = analyzed / "analysis-best.json"
    analyze(finished(1), store, tmp_path, 1, of_fields)
    page = (tmp_path / "analysis-best.html").read_text()
    assert "different event stores" in page
    assert "<h2>What each field is worth</h2>" in page
    assert "<h2>Where the model is right</h2>" in page
    assert page.count("<h3>small run</h3>") == 3  # rare ids of both, who have one name; attention
    write_analysis_report(tmp_path / "page.html", [of_fields, tmp_path / "analysis-best.json"])
    assert "<h2>Rare ids</h2>" in (tmp_path / "page.html").read_text()


def test_a_store_that_counts_nothing_says_so(tmp_path: Path) -> None:
    file = write_criteo(tmp_path / "train.txt", criteo_rows(ROWS))
    prepare(Criteo(path=(file,), hash_buckets=40), tmp_path / "store")
    train(tmp_path / "store", tmp_path / "run", 1, small("lr"))
    content = analyze(tmp_path / "run", tmp_path / "store", tmp_path)
    assert content["rarity"] is None
    assert content["pairs"] is None
    page = (tmp_path / "analysis-best.html").read_text()
    assert "its store does not count ids" in page


def test_what_is_not_defined_is_null() -> None:
    """Of clicks alone nothing can be ranked."""
    one = Predictions(*(np.array(x) for x in ([0.5, 0.25], [1, 1], [0, 0], [0, 1])))
    lost = fields.lost(fields.ReadField("C1", "context"), one, [one, one], 5)
    assert json.loads(json.dumps(lost, allow_nan=False)) == {
        "field": "C1", "kind": "context", "auc_lost": None, "auc_lost_interval": [None, None],
        "logloss_lost": 0.0,
    }  # fmt: skip
