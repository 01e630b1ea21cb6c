"""``analyze`` measures a run of any world size and says what it found."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from data.errors import InputError
from data.prepare import prepare
from data.store import EventStore
from tests.ranks import run_ranks
from tests.trainer.conftest import MakeRun
from tests.trainer.small_runs import EXPERIMENT, SOURCE, ranks_of, read, train
from trainer.analyses.histories import measure
from trainer.analyses.subject import Subject
from trainer.analyze import analyze_run
from trainer.checkpoint import Position
from trainer.progress import Display
from trainer.report.analysis_page import write_analysis_report
from trainer.state import build_state


def analyze(run: Path, store: Path | None, out: Path, world_size: int = 1, *others: Path) -> dict:
    def of_rank(rank: int, world_size: int) -> None:
        analyze_run(run, store, out, "best", "test", others, ranks_of(rank, world_size))

    run_ranks(of_rank, world_size, timeout=120)
    return read(out, "analysis-best.json")


@pytest.fixture(scope="module")
def recorded(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with shared tables that recorded its gradients."""
    out = tmp_path_factory.mktemp("recorded") / "run"
    model = dataclasses.replace(EXPERIMENT.model, sharing="shared")
    fields = dataclasses.replace(EXPERIMENT.fields, attention_init_std=0.1)
    train(store, out, 1, EXPERIMENT.changed(model=model, fields=fields, record_gradients=4))
    return out


@pytest.fixture(scope="module")
def analyzed(recorded: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("analyzed")
    analyze(recorded, store, out)
    return out


def close(found: object, expected: object, where: str = "") -> None:
    """Equal but for rounding, at any depth."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            close(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, (a, b) in enumerate(zip(found, expected, strict=True)):
            close(a, b, f"{where}/{number}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5), where
    else:
        assert found == expected, where


def test_two_ranks_measure_what_one_measures(
    analyzed: Path, recorded: Path, store: Path, tmp_path: Path
) -> None:
    found, expected = analyze(recorded, store, tmp_path, 2), read(analyzed, "analysis-best.json")
    assert (found.pop("world_size"), expected.pop("world_size")) == (2, 1)
    for content in (found, expected):  # sixteen bits round by the size of a batch
        del content["precision"]["gradients"]["bfloat16"]
        content["precision"] |= {
            name: content["precision"][name][:1] for name in ("auc", "logloss")
        }
    close(found, expected)


def test_the_numbers_are_there(analyzed: Path, recorded: Path) -> None:
    content, summary = read(analyzed, "analysis-best.json"), read(recorded, "summary.json")
    assert content["step"] == summary["best_step"]
    assert content["gradients"] == read(recorded, "gradients.json")
    assert [entry["step"] for entry in content["training"]] == [0, 5, 10, 15, 16]
    quality = content["search_quality"]
    assert quality["agreement_with_exact"] == pytest.approx(1)
    assert quality["candidates"] <= summary["samples"]
    for parts in (*content["parts"].values(), content["rarity"]["bins"]):
        assert sum(part["samples"] for part in parts) == summary["samples"]
    tables = {table["name"] for table in read(recorded, "plan.json")["tables"]}
    assert content["norms"].keys() == tables
    assert content["discriminability"]["interest"]["candidates"] == summary["samples"]


def test_the_page_needs_nothing_else_and_says_what_the_numbers_say(analyzed: Path) -> None:
    page = (analyzed / "analysis-best.html").read_text()
    assert page.rstrip().endswith("</html>")
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", page)
    assert page.count("<svg") == page.count("<figcaption") > 8
    assert page.count("<table>") == 3  # spread of attention, rare ids, precision
    content = read(analyzed, "analysis-best.json")
    share = content["gradients"]["conflicting_steps"]
    assert f"negative in {100 * share:.0f}\N{NO-BREAK SPACE}% of the steps" in page
    assert "NaN" not in page


def test_the_captions_follow_the_numbers(analyzed: Path, tmp_path: Path) -> None:
    content = read(analyzed, "analysis-best.json")
    for ratio, words in ((4.0, "representation dominates"), (0.1, "attention dominates")):
        content["gradients"]["domination"] = ratio
        (tmp_path / "analysis-best.json").write_text(json.dumps(content))
        write_analysis_report(tmp_path / "page.html", [tmp_path / "analysis-best.json"])
        assert words in (tmp_path / "page.html").read_text()


def test_without_recorded_gradients_the_page_says_how_to_record_them(
    finished: MakeRun, store: Path, analyzed: Path, tmp_path: Path
) -> None:
    # and draws another analysis beside, whose run did record them
    analyze(finished(1), store, tmp_path, 1, analyzed / "analysis-best.json")
    page = (tmp_path / "analysis-best.html").read_text()
    assert "small run did not record its gradients: train it with --record-gradients" in page
    assert page.count("small run") > 5


def test_the_store_is_found_where_the_runs_command_found_it(
    recorded: Path, store: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(recorded, tmp_path / "run", symlinks=True))
    config = read(run, "config.json")
    config["command"] = ["twofold", "train", "small", "--data", str(store), "--out", str(run)]
    (run / "config.json").write_text(json.dumps(config))
    assert analyze(run, None, run)["model"] == "small"
    config["command"] = ["twofold", "train"]
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="Give --data STORE"):
        analyze_run(run, None, run, "best", "test", (), ranks_of(0, 1))


def test_what_is_no_run_or_of_another_store_is_refused(
    recorded: Path, store: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"no run folder: it has no config.json"):
        analyze_run(tmp_path, store, None, "best", "test", (), ranks_of(0, 1))
    prepare(SOURCE, tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="is not the store that"):
        analyze_run(recorded, tmp_path / "other", None, "best", "test", (), ranks_of(0, 1))


def test_a_run_without_checkpoint_is_refused(recorded: Path, store: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(recorded, tmp_path / "run", symlinks=True))
    shutil.rmtree(run / "checkpoints")

    def refusal(rank: int, world_size: int) -> str:
        with pytest.raises(InputError) as error:
            analyze_run(run, store, None, "best", "test", (), ranks_of(rank, world_size))
        return str(error.value)

    assert "no checkpoint called best" in run_ranks(refusal, 1)[0]


@pytest.mark.parametrize("text", [None, "{", "[]", '{"auc": 1}'])
def test_what_is_no_analysis_is_not_drawn_beside(
    text: str | None, analyzed: Path, tmp_path: Path
) -> None:
    file = tmp_path / "analysis-best.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=r"analysis-best\.json"):
        write_analysis_report(tmp_path / "page.html", [analyzed / "analysis-best.json", file])
    assert not (tmp_path / "page.html").exists()


KINDS = {
    "hashed search": {"sharing": "shared", "search": "simhash", "auxiliary": "none"},
    "clusters": {"sharing": "shared", "search": "clusters", "auxiliary": "none"},
    "hash collisions": {
        "sharing": "shared", "search": "all", "pooling": "collisions", "auxiliary": "none",
    },
    "mean": {"sharing": "shared", "search": "all", "pooling": "mean", "auxiliary": "none"},
    "network": {"sharing": "shared", "score": "mlp", "auxiliary": "full"},
    "maps by event": {"sharing": "projected", "projection": "event"},
    "maps by field": {"sharing": "projected", "projection": "field"},
    "category search": {"search": "category", "auxiliary": "none"},
    "four tables": {"sharing": "four", "short_window": 3},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_can_be_analyzed(kind: str, store: Path, tmp_path: Path) -> None:
    model = dataclasses.replace(EXPERIMENT.model, **{"score": "dot", **KINDS[kind]})
    fields = dataclasses.replace(EXPERIMENT.fields, attention_init_std=0.1)
    experiment = EXPERIMENT.changed(model=model, fields=fields)

    def measured(rank: int, world_size: int) -> dict:
        ranks, opened = ranks_of(rank, world_size), EventStore.open(store)
        state = build_state(experiment, opened, ranks)
        subject = Subject(experiment, opened, state, Position(), ranks, "test")
        return measure(subject, Display(shown=False))

    content = run_ranks(measured, 1, timeout=120)[0]
    quality = content["search_quality"]
    if kind == "hashed search":
        assert 0 < quality["agreement_with_exact"] < 1
    if kind in ("clusters", "hash collisions", "mean"):
        assert quality["agreement_with_exact"] is None
    if kind in ("network", "maps by event"):
        assert all("tables" not in entry for entry in content["attention"]["maps"])
    file = tmp_path / "analysis-best.json"
    names = {"model": kind, "run": "run", "checkpoint": "best", "step": 0, "split": "test"}
    content |= {**names, "top_k": 4, "data": {"source": "x"}, "gradients": None, "training": []}
    file.write_text(json.dumps(content, allow_nan=False))
    write_analysis_report(tmp_path / "page.html", [file])
