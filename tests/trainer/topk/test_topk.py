"""``twofold topk`` from end to end, on logs whose answer is known."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import modules.retrieval
from data.errors import InputError
from data.store import read_arrow
from tests.trainer.test_cli_bad_input import told
from tests.trainer.topk.logs import BY_ID, OTHER_FUTURE, write_store
from trainer import cli
from trainer.topk.batches import PairBatches, WindowBatches
from trainer.topk.compare import compare_runs
from trainer.topk.experiment import MODELS, TopKExperiment, mf, self_attention
from trainer.topk.metrics import METRICS
from trainer.topk.train import TopKTrainer, make_optimizers, train_step

GRAPH = ("lightgcn", "ngcf", "gcmc")
HAS_PYG = importlib.util.find_spec("torch_geometric") is not None
needs_pyg = pytest.mark.skipif(not HAS_PYG, reason="the extra graph is not installed")
EACH = [pytest.param(name, marks=needs_pyg) if name in GRAPH else name for name in MODELS]
QUICK = ["--epochs=2", "--bootstrap=10"]
CPU = torch.device("cpu")


def topk(data: Path, out: Path, model: str, *options: str) -> int:
    return cli.run(["topk", model, "--data", str(data), "--out", str(out), *options])


def read(run: Path, name: str = "summary.json") -> dict:
    return json.loads((run / name).read_text())


def listed(run: Path) -> list[str]:
    """Each user's items of the small store, in their order; the places after them are empty."""
    lists = read_arrow(run / "predictions-test.arrow").column("items").to_pylist()
    heads = [[item for item in items if item] for items in lists]
    assert [[*head, *[0] * (20 - len(head))] for head in heads] == lists
    return ["".join(BY_ID[item] for item in head) for head in heads]


@pytest.mark.parametrize("name", EACH)
def test_every_model_leaves_a_whole_run(small: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    options = [] if name in ("popular", "frequent") else ["--model.width=4"]
    assert topk(small, run, name, *QUICK, *options) == 0
    config, summary = read(run, "config.json"), read(run)
    assert config["experiment"] == summary["model"] == name
    assert config["data"]["train_events"] == 14
    assert config["data"]["wanted"] == {"val": 2, "test": 2}
    assert summary["users"] == 2 and summary["catalogue"] == 6
    assert all(0 <= summary[metric] <= 1 for metric in METRICS)
    lists = read_arrow(run / "predictions-test.arrow")
    assert lists.column("user").to_pylist() == [1, 2]
    # ann's new items are d e f, bob's b c e f
    assert [{*items} for items in listed(run)] == [{*"def"}, {*"bcef"}]
    assert not [*run.glob(".metrics*"), *run.glob(".summary*")]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mf", "--epochs=60 --learning-rate=0.05"),
        ("mf", "--epochs=40 --learning-rate=0.05 --loss=sampled_softmax --negatives=30"),
        pytest.param("lightgcn", "--epochs=60 --learning-rate=0.05", marks=needs_pyg),
        pytest.param("ngcf", "--epochs=60 --learning-rate=0.05", marks=needs_pyg),
        pytest.param("gcmc", "--epochs=60 --learning-rate=0.05", marks=needs_pyg),
        ("self_attention", "--epochs=40 --learning-rate=0.02 --negatives=30 --batch-size=8"),
        ("self_attention", "--epochs=40 --learning-rate=0.02 --loss=bpr --batch-size=8"),
    ],
)
def test_models_find_the_half_that_a_user_buys_from(
    groups: Path, tmp_path: Path, name: str, options: str
) -> None:
    run = tmp_path / "run"
    words = options.split()
    width = ["--model.width=8", "--bootstrap=0", "--patience=100"]
    assert topk(groups, run, name, *width, *words) == 0
    # 18 of the items that are left are of the half, 30 are not; of the 18, 8 are wanted
    lists = read_arrow(run / "predictions-test.arrow")
    originals = read_arrow(groups / "items.arrow").column("original").to_pylist()
    users = {user: name for part in groups.glob("part-*") for user, name in _users(part).items()}
    shares = []
    for user, items in zip(lists.column("user").to_pylist(), lists.column("items").to_pylist(),
                           strict=True):  # fmt: skip
        half = int(users[user][1:]) % 2
        shares.append(np.mean([int(originals[item][1:]) // 30 == half for item in items[:10]]))
    assert np.mean(shares) > 0.95


def _users(part: Path) -> dict[int, str]:
    batch = read_arrow(part / "users.arrow")
    names = batch.column("original").to_pylist()
    return dict(zip(batch.column("user").to_pylist(), names, strict=True))


def test_popular_ranks_by_purchases_and_repeats_where_asked(small: Path, tmp_path: Path) -> None:
    assert topk(small, tmp_path / "all", "popular", "--candidates=all") == 0
    # a was bought 5 times, c 3 times, b and d twice, e and f once
    assert listed(tmp_path / "all") == ["acbdef"] * 3


def test_frequent_ranks_by_a_user_s_own_purchases_first(small: Path, tmp_path: Path) -> None:
    assert topk(small, tmp_path / "all", "frequent", "--candidates=all") == 0
    # ann: a twice, b and c once, of which c is the more popular; bob: a and d; cid: a and c
    assert listed(tmp_path / "all") == ["acbdef", "adcbef", "acbdef"]


def trained(experiment: TopKExperiment, data: Path, out: Path) -> TopKTrainer:
    trainer = TopKTrainer("some", experiment, data, out, CPU)
    trainer.main()
    return trainer


def changed(experiment: TopKExperiment, **changes: object) -> TopKExperiment:
    return type(experiment)(**(vars(experiment) | {"bootstrap": 0} | changes))


@pytest.mark.parametrize("make", [mf, self_attention, pytest.param("lightgcn", marks=needs_pyg)])
def test_no_event_of_the_future_reaches_a_model(small: Path, tmp_path: Path, make: object) -> None:
    """The same training log with another future gives the same vectors, bit for bit."""
    experiment = changed(MODELS[make]() if isinstance(make, str) else make(), epochs=1)
    other = write_store(tmp_path / "log", OTHER_FUTURE)
    one, two = (
        trained(experiment, data, tmp_path / f"run-{number}").vectors
        for number, data in enumerate((small, other))
    )
    assert one.users.equal(two.users) and one.items.equal(two.items)


def test_a_run_is_a_function_of_its_seed(groups: Path, tmp_path: Path) -> None:
    one, same, other = (
        trained(changed(mf(), epochs=3, seed=seed), groups, tmp_path / f"run-{number}")
        for number, seed in enumerate((1, 1, 2))
    )
    assert one.vectors.items.equal(same.vectors.items)
    assert not one.vectors.items.equal(other.vectors.items)


def test_the_best_epoch_of_validation_is_tested(groups: Path, tmp_path: Path) -> None:
    experiment = changed(mf(), epochs=30, learning_rate=0.1, patience=3)
    trainer = trained(experiment, groups, tmp_path / "run")
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    judged = {line["epoch"]: line["ndcg@20"] for line in lines if line["kind"] == "eval"}
    summary = read(tmp_path / "run")
    best = max(judged.values())
    assert (
        summary["best_epoch"]
        == trainer.best_epoch
        == min(epoch for epoch, value in judged.items() if value == best)
    )
    assert summary["validation"]["ndcg@20"] == best
    # patience ended it, or the epochs did
    assert max(judged) == min(30, trainer.best_epoch + 3)


@pytest.mark.parametrize("name", ["mf", "self_attention"])
def test_a_step_leaves_rows_of_other_items_alone(groups: Path, tmp_path: Path, name: str) -> None:
    experiment = changed(MODELS[name](), batch_size=1, negatives=2, loss="sampled_softmax")
    trainer = TopKTrainer(name, experiment, groups, tmp_path / "run", CPU)
    kind = PairBatches if name == "mf" else WindowBatches
    batch = next(kind(trainer.log, experiment).epoch(1))
    before = trainer.model.items.weight.detach().clone()
    train_step(trainer.model, batch, make_optimizers(trainer.model, 0.1), experiment)
    moved = (trainer.model.items.weight != before).any(1).nonzero().flatten().tolist()
    seen = {*batch.positives.tolist(), *batch.negatives.tolist()}
    seen |= {*batch.events.flatten().tolist()} if name == "self_attention" else set()
    assert moved and {*moved} <= seen


def test_a_run_folder_in_the_way_is_refused_or_replaced(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert topk(small, run, "mf", *QUICK) == 0
    before = (run / "summary.json").read_text()
    assert topk(small, run, "popular") == 2
    told(capsys.readouterr().err, "holds a run already", "--replace")
    assert (run / "summary.json").read_text() == before
    assert topk(small, run, "popular", "--replace") == 0
    assert read(run)["model"] == "popular"


def test_a_run_that_fails_leaves_nothing(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert topk(small, tmp_path / "run", "mf", *QUICK, "--learning-rate=1e38") == 2
    told(capsys.readouterr().err, "diverged", "--learning-rate")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lightgnc --data x --out y", "Did you mean lightgcn?"),
        ("mf --data nowhere --out y", "does not exist, so it is no event store"),
        ("mf --data x --out y --epochs 0", "epochs must be at least 1"),
        ("mf --data x --out y --learning-rate nan", "learning_rate must be positive"),
        ("compare", "Which runs?"),
        ("compare nowhere", "nowhere is no run folder"),
    ],
)
def test_mistakes_are_one_message(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["topk", *words.split()]) == 2
    told(capsys.readouterr().err, message)


def test_several_processes_are_refused(
    small: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert topk(small, tmp_path / "run", "mf") == 2
    told(capsys.readouterr().err, "runs in one process, but was started in 2")


def test_without_the_graph_library_the_extra_is_named(
    small: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ["torch_geometric", *(n for n in sys.modules if n.startswith("torch_geometric."))]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "modules.retrieval.graph", raising=False)
    monkeypatch.delattr(modules.retrieval, "graph", raising=False)
    assert topk(small, tmp_path / "run", "lightgcn") == 2
    told(capsys.readouterr().err, "pip install 'twofold[graph]'")
    assert not (tmp_path / "run").exists()


def test_a_period_with_nothing_to_find_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    future = [("ann", "a", 100), ("bob", "a", 101), ("ann", "d", 200), ("bob", "b", 201)]
    store = write_store(tmp_path / "log", future)
    assert topk(store, tmp_path / "run", "popular") == 2
    told(capsys.readouterr().err, "val period", "--candidates all")


def test_help_lists_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["topk", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in [*MODELS, "compare"])
    assert cli.run(["topk", "compare", "--help"]) == 0
    assert cli.run(["topk", "lightgcn", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--model.layers" in out and "Args:" not in out and "``" not in out


@pytest.fixture(scope="module")
def runs(groups: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """popular, and mf with two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    lines = [("popular", "1"), ("mf", "1"), ("mf", "2")]
    paths = [folder / f"{name}-{seed}" for name, seed in lines]
    for path, (name, seed) in zip(paths, lines, strict=True):
        assert topk(groups, path, name, f"--seed={seed}", *QUICK) == 0
    return paths


def test_compared_runs_are_means_over_seeds(runs: list[Path], tmp_path: Path) -> None:
    assert cli.run(["topk", "compare", *map(str, runs), "--out", str(tmp_path / "out")]) == 0
    rows = [*csv.DictReader((tmp_path / "out" / "topk.csv").open())]
    assert [(row["model"], row["seeds"]) for row in rows] == [("popular", "1"), ("mf", "2")]
    seeds = [read(run)["ndcg@20"] for run in runs]
    row = rows[1]
    assert float(row["ndcg@20"]) == pytest.approx(np.mean(seeds[1:]))
    assert float(row["ndcg@20_sd"]) == pytest.approx(np.std(seeds[1:], ddof=1))
    difference = np.mean(seeds[1:]) - seeds[0]
    assert float(row["ndcg@20_difference"]) == pytest.approx(difference)
    low, high = (float(row[f"ndcg@20_difference_{end}"]) for end in ("low", "high"))
    assert low <= difference <= high
    assert "| mf | 2 |" in (tmp_path / "out" / "topk.md").read_text()


def test_runs_of_other_data_or_candidates_are_not_compared(
    runs: list[Path], small: Path, groups: Path, tmp_path: Path
) -> None:
    assert topk(small, tmp_path / "small", "popular") == 0
    assert topk(groups, tmp_path / "all", "popular", "--candidates=all") == 0
    for other in ("small", "all"):
        with pytest.raises(InputError, match="cannot be compared"):
            compare_runs([runs[0], tmp_path / other])


def test_one_training_twice_is_no_second_seed(runs: list[Path]) -> None:
    with pytest.raises(InputError, match=r"have seeds \[1, 1\].*Leave one out"):
        compare_runs([runs[0], runs[1], runs[1]])


@pytest.mark.parametrize("name", ["small", "groups"])
def test_windows_after_which_nothing_was_bought_teach_nothing(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    flags = ("--batch-size=1", "--model.history-length=1", "--epochs=1")
    assert topk(request.getfixturevalue(name), tmp_path / "run", "self_attention", *flags) == 0
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses and all(math.isfinite(loss) for loss in losses)


def test_a_run_that_is_not_done_is_not_compared(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text((runs[0] / "config.json").read_text())
    with pytest.raises(InputError, match="no finished run"):
        compare_runs([tmp_path / "half"])
