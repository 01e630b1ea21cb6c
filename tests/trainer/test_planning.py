"""twofold plan: what it knows of a log and of a step, what it writes, what it refuses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.errors import InputError
from data.loader import RequestLoader
from data.store import EventStore
from sharding.catalogue import BUILT_IN, Cluster, load_nodes, parse_cluster
from sharding.frequency import RowFrequency
from sharding.narrow import hold_narrow_tables
from tests.ranks import run_ranks
from tests.trainer.small_runs import EXPERIMENT, ranks_of
from trainer import cli
from trainer import train as training
from trainer.build import build_ranker
from trainer.planning.follow import read_plan
from trainer.planning.load import RankBatch, table_loads
from trainer.planning.log import Log
from trainer.planning.predict import Situation, describe
from trainer.planning.report import make_report, plan_for, read_report
from trainer.planning.tables import cost, short
from trainer.report.page import write_report

MakeRun = Callable[[int], Path]
NODES = load_nodes()
DESCRIBED = """
requests = 1_000_000
candidates = 2
[history]
p50 = 100
p90 = 400
max = 1000
[fields]
item = 50_000_000
category = 1000
"""


def run(*arguments: object) -> int:
    return cli.run([str(argument) for argument in arguments])


@pytest.fixture
def described(tmp_path: Path) -> Path:
    file = tmp_path / "log.toml"
    file.write_text(DESCRIBED)
    return file


def test_a_store_says_lengths_and_frequencies(store: Path) -> None:
    log = Log.of_store(EventStore.open(store))
    batches = RequestLoader(
        EventStore.open(store), "train", requests_per_batch=64, history_length=1000
    )
    loaded = [length for batch in batches for length in batch.history_lengths.tolist()]
    assert sorted(log.lengths) == sorted(loaded)
    assert log.requests == 268
    item = log.frequencies["item"]
    assert item.share(0, 1e9) == pytest.approx(1)
    assert item.rows.sum() == dict(log.fields)["item"]


def test_a_field_and_a_column_of_requests_may_share_a_name() -> None:
    """Each is as frequent as its own values are."""
    hot, even = RowFrequency.counted(np.array([9, 1])), RowFrequency.uniform(2)
    log = Log(
        name="x", fields=[("item", 2)], context=[("item", 2)], numbers=[], users=1, flat=False,
        requests=10, candidates=1.0, lengths=np.array([3]), frequencies={"item": hot},
        context_frequencies={"item": even},
    )  # fmt: skip
    ranker = build_ranker(EXPERIMENT, log)
    loads = table_loads(ranker, EXPERIMENT, log, RankBatch.of(EXPERIMENT, log, 1), 1)
    assert loads["attention_item"].frequency is hot
    assert {load.frequency for name, load in loads.items() if "context" in name} == {even}


def test_recency_is_looked_up_as_often_as_histories_are_long(store: Path) -> None:
    log = Log.of_store(EventStore.open(store))
    frequency = log.frequency("recency", 17, 16)
    kept = np.minimum(log.lengths, 16)
    assert frequency.share(16, 17) == pytest.approx((kept == 16).sum() / kept.sum())


@pytest.mark.parametrize("world_size", [1, 2])
def test_lookups_are_those_that_a_training_counted(
    world_size: int, store: Path, finished: MakeRun
) -> None:
    counted = json.loads((finished(world_size) / "analysis.json").read_text())["lookups"]
    log = Log.of_store(EventStore.open(store))
    # an epoch of 268 requests is 8 batches, of 33.5 requests each and not of 37
    ranker = build_ranker(EXPERIMENT, log, world_size=world_size)
    hold_narrow_tables(ranker)
    batch = RankBatch.of(EXPERIMENT, log, world_size)
    loads = table_loads(ranker, EXPERIMENT, log, batch, world_size)
    assert loads.keys() == counted.keys()
    for name, load in loads.items():
        for key, gradient in (("with_gradient", True), ("without_gradient", False)):
            told = load.rows(gradient=gradient) * world_size * 33.5 / 37
            # a search in tables of this rank reads a few rows more: its blocks are padded
            assert told == pytest.approx(counted[name][key], rel=0.05), (name, key)


def test_a_full_auxiliary_attends_to_all_events_and_again_to_the_chosen(store: Path) -> None:
    log = Log.of_store(EventStore.open(store))
    # a byte takes a nanosecond, products take no time
    node = dataclasses.replace(NODES["CPU-SPR"], memory_gbs=1.0, search=1.0, stock=1.0, tflops=1e30)

    def seconds(**model: Any) -> float:
        chosen = dataclasses.replace(EXPERIMENT.model, score="dot", **model)
        experiment = EXPERIMENT.changed(model=chosen)
        situation = Situation.of(experiment, log, Cluster(1, 1, node))
        return situation.beside.search_seconds

    batch = RankBatch.of(EXPERIMENT, log, 1)
    events, chosen = batch.events, batch.candidates * EXPERIMENT.model.top_k
    # three fields, 4 wide on each side: two gradients of every event's rows are read, one written
    joined = 3 * 4 * events * 2 * (3 * 4) * 1e-9
    to_all = seconds(auxiliary="none", search="all")
    to_chosen = seconds(auxiliary="none", search="exact")
    # the chosen: their rows and scores six times, where without an auxiliary joint rows go thrice
    apart = 4 * (6 * chosen * (2 * (3 * 4) + 1) - 3 * chosen * 2 * (3 * 4)) * 1e-9
    assert seconds(auxiliary="full") == pytest.approx(to_all + to_chosen + apart + joined)


def test_the_command_writes_plan_and_page(described: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    clusters = ("--cluster", "2x8xH100-80", "--cluster", "8xL4", "--cluster", "1xL4")
    assert run("plan", "dare", "--tables", described, *clusters, "--out", out,
               "--price", "L4", "8", "--batch", "1024") == 0  # fmt: skip
    shown = capsys.readouterr().out
    assert "2x8xH100-80" in shown
    assert "representation_item" in shown
    report = json.loads((out / "plan.json").read_text())
    assert [plan["cluster"] for plan in report["plans"]] == ["2x8xH100-80", "1x8xL4", "1x1xL4"]
    for plan in report["plans"]:
        assert plan["fits"]
        ranks = plan["world_size"]
        assert all(len(values) == ranks for values in plan["memory"]["parts"].values())
        parts = np.array([*plan["step"]["parts"].values()])
        assert plan["step"]["seconds"] == pytest.approx(parts.sum(axis=0).max(), rel=1e-3)
        assert plan["samples_per_second"] == pytest.approx(2048 / plan["step"]["seconds"])
        assert all(table["rejected"] for table in plan["tables"])
    priced = {plan["cluster"]: plan["epoch_cost"] for plan in report["plans"]}
    assert priced["2x8xH100-80"] is None
    assert priced["1x8xL4"] == pytest.approx(8 * report["plans"][1]["epoch"]["seconds"] / 3600)
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 8  # two of each cluster, and two that compare them
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page


def test_what_does_not_fit_is_answered_with_changes_that_do(described: Path) -> None:
    log = Log.of_file(described)
    huge = EXPERIMENT.changed(requests_per_batch=64)
    small = parse_cluster("1x2xL4", NODES)
    fields = type(EXPERIMENT.fields)(attention_dim=64, representation_dim=256)
    adam = type(EXPERIMENT.tables)(kind="adam")
    experiment = huge.changed(fields=fields, tables=adam)  # 192 GB
    (plan,) = make_report("x", experiment, log, [small], prices={"L4": 2.0})["plans"]
    assert not plan["fits"]
    assert plan["shortage"]["table"] in ("representation_item", "attention_item")
    assert plan["shortage"]["missing"] > 0
    by_cost = {change["cluster"]: change for change in plan["remedies"]}
    more = next(change for name, change in by_cost.items() if name != "1x2xL4")
    larger = parse_cluster(more["cluster"], NODES)
    situation = Situation.of(experiment, log, larger)
    entry = describe(situation, situation.plan(), 2.0, host=False)
    assert more["samples_per_second"] == pytest.approx(entry["samples_per_second"])
    assert more["price_per_hour"] == 2.0 * larger.nodes
    # 192 GB and no less than 8 of 24 GB with a tenth kept free
    assert larger.world_size * 24e9 * 0.9 > 192e9


def test_that_no_cluster_fits_is_written_told_and_code_2(
    described: Path, tmp_path: Path, capsys: Any
) -> None:
    wide = ("--fields.representation-dim", "256", "--cluster", "1xL4")  # 51 GB of 24
    asked = ("plan", "dare", "--tables", described, *wide)
    assert run(*asked, "--out", tmp_path) == 2
    told = capsys.readouterr()
    assert "Fits on no cluster that was given: 1x1xL4 (" in told.out.splitlines()[-1]
    assert "Fits on none" not in told.err
    assert not read_report(tmp_path)["plans"][0]["fits"]
    assert "It fits on none of these clusters." in (tmp_path / "report.html").read_text()
    assert run(*asked, "--cluster", "1xB200") == 0


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), (0, "0.00"), (0.00244, "0.0024"), (1.234, "1.23")]
)
def test_a_small_cost_keeps_two_digits(value: float | None, shown: str) -> None:
    assert cost(value) == shown


def test_a_shortage_by_bytes_and_one_of_placement_are_told_apart() -> None:
    assert short({"shortage": {"missing": 3 * 2**30}}) == "3.0 GiB short"
    assert short({"shortage": {"missing": 0}}) == "no placement found"


def test_what_files_say_is_escaped_and_a_cluster_given_twice_is_one(
    described: Path, tmp_path: Path
) -> None:
    name = "<script>alert(1)</script>"
    nodes = tmp_path / "nodes.toml"
    entry = BUILT_IN.read_text().split("[L4]")[1].split("[CPU-SPR]")[0]
    nodes.write_text(f'["{name}"]{entry}'.replace("NVIDIA L4", name))
    described.write_text(f'name = "{name}"\n{DESCRIBED}'.replace("category", f'"{name}"'))
    both = ("--cluster", f"1x{name}", "--cluster", f"1x1x{name}")
    assert run("plan", "dare", "--tables", described, "--nodes", nodes, *both,
               "--out", tmp_path / "out") == 0  # fmt: skip
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert len(read_report(tmp_path / "out")["plans"]) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"experiment": None, "config": None}, "lacks experiment, config"),
        ({"plans": {}}, "lacks plans"),
        ({"plans": [3]}, "lacks cluster of a plan, world_size of a plan"),
        ({"plans": [{"cluster": "x", "world_size": 1, "fits": True}]}, "tables of a plan"),
    ],
)
def test_a_damaged_plan_is_refused(damage: dict[str, Any], message: str, tmp_path: Path) -> None:
    whole = {"kind": "plan", "format": 2, "experiment": "x", "config": {}, "log": {}, "plans": []}
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(whole))
    assert read_report(file) == whole
    file.write_text(json.dumps(whole | damage))
    with pytest.raises(InputError, match=message):
        read_report(tmp_path)


def test_where_settings_forbid_what_would_fit_that_is_said(described: Path) -> None:
    whole = dataclasses.replace(EXPERIMENT.sharding, kinds=("table_wise",))
    fields = dataclasses.replace(EXPERIMENT.fields, attention_dim=128)  # 25.6 GB
    experiment = EXPERIMENT.changed(sharding=whole, fields=fields)
    cluster = parse_cluster("8xL4", NODES)
    (plan,) = make_report("x", experiment, Log.of_file(described), [cluster], prices={})["plans"]
    assert plan["shortage"]["table"] == "attention_item"
    assert "any table may be cut by rows" in [change["change"] for change in plan["remedies"]]


def test_a_copy_of_the_keys_is_rated_beside(described: Path) -> None:
    log = Log.of_file(described)
    cluster = parse_cluster("8xH100-80", NODES)
    report = make_report("dare", EXPERIMENT, log, [cluster], prices={})
    assert report["plans"][0]["with_copy"]["samples_per_second"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cluster", "8xH100"], "Did you mean H100-80"),
        (["--cluster", "H100-80"], "NODESxDEVICESxNODE"),
        ([], "at least one --cluster"),
        (["--cluster", "8xL4", "--price", "A100-40", "3"], "--price names ['A100-40']"),
        (["--cluster", "8xL4", "--price", "L4", "-3"], "from 0 up"),
        (["--cluster", "8xL4", "--price", "L4", "nan"], "from 0 up"),
        (["--cluster", "8xL4", "--batch", "4"], "8 ranks, but a batch has 4"),
        (["--cluster", "8xL4", "--batch", "-4"], "--batch: requests_per_batch must be positive"),
        (["--cluster", "8xL4", "--out", __file__], "is no folder"),
        (["--cluster", "8xL4", "--out", f"{__file__}/below"], "is no folder"),
        (["--cluster", "8xL4", "--nodes", "nowhere.toml"], "cannot be read"),
        (["--cluster", "8xL4", "--data", "nowhere"], "one."),
        (["--cluster", "8xL4", "--sharding.table-kinds", "shop", "row_wise"], "unknown tables"),
    ],
)
def test_bad_input_is_one_message_and_code_2(
    arguments: list[str], message: str, described: Path, capsys: Any
) -> None:
    assert run("plan", "dare", "--tables", described, *arguments) == 2
    told = capsys.readouterr().err
    assert told.count("twofold: ") == 1
    assert message in told


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("requests = 1_000_000", "", "requests"),
        ("candidates = 2", "candidates = 0", "positive"),
        ("max = 1000", "", "max at least"),
        ("p90 = 400", "p90 = 4", "must rise"),
        ("item = 50_000_000", "item = 0", "one row at least"),
        ("candidates = 2", "candidates = nan", "positive"),
        ("candidates = 2", "candidates = inf", "positive"),
        ("requests = 1_000_000", "requests = inf", "infinity"),
        ("candidates = 2", "", "'candidates' is missing"),
        ("candidates = 2", "candidates = 2\nusers = -1", "users must be positive"),
        ("candidates = 2", 'candidates = 2\nnumbers = "age"', "list of names"),
        ("max = 1000", "max = nan", "must rise"),
        ("category = 1000", "recency = 1000", "two columns are called recency"),
        ("category = 1000", "category = 1000\n[context]\nitem = 5", "two columns are called item"),
        ("category = 1000", "category = { rows = 10 }", "category wants a number of rows"),
        ("category = 1000", "category = { rows = 10, count = -1 }", "category wants a number"),
        ("[history]", "[lengths]", "unknown keys ['lengths']"),
        ("[fields]", "[fields", "cannot be read"),
    ],
)
def test_a_description_that_is_wrong_is_refused(
    described: Path, old: str, new: str, message: str
) -> None:
    described.write_text(DESCRIBED.replace(old, new))
    with pytest.raises(InputError) as error:
        Log.of_file(described)
    assert message in str(error.value)


def test_two_plans_are_compared(described: Path, tmp_path: Path, capsys: Any) -> None:
    for batch in (512, 1024):
        run("plan", "dare", "--tables", described, "--cluster", "8xL4", "--batch", batch,
            "--out", tmp_path / str(batch))  # fmt: skip
    capsys.readouterr()
    assert run("plan", "--diff", tmp_path / "512", tmp_path / "1024" / "plan.json") == 0
    shown = capsys.readouterr().out
    assert "requests_per_batch" in shown
    assert "samples/s" in shown
    assert run("plan", "--diff", tmp_path / "512", tmp_path / "512") == 0
    assert "Settings and log: the same." in capsys.readouterr().out
    assert run("plan", "--diff", tmp_path / "512") == 2
    assert run("plan", "--diff", tmp_path / "512", described) == 2


def planned(store: Path, out: Path, cluster: str) -> Path:
    """A plan of the small experiment for its store."""
    log, clusters = Log.of_store(EventStore.open(store)), [parse_cluster(cluster, NODES)]
    report = make_report("small", EXPERIMENT, log, clusters, prices={})
    out.write_text(json.dumps(report))
    return out


def train_by(plan: Path, store: Path, out: Path, world_size: int) -> list[dict[str, Any]]:
    def main(rank: int, world_size: int) -> dict[str, Any]:
        training.write_report = lambda *_, **__: None
        short = EXPERIMENT.changed(epochs=1)
        trainer = training.Trainer("small", short, store, out, ranks_of(rank, world_size), plan)
        return trainer.main()

    return run_ranks(main, world_size)


def test_training_follows_a_plan_that_was_edited(store: Path, tmp_path: Path) -> None:
    file = planned(store, tmp_path / "plan.json", "2x1xCPU-SPR")
    report = read_report(file)
    tables = {table["name"]: table for table in report["plans"][0]["tables"]}
    assert {table["sharding_type"] for table in tables.values()} == {"data_parallel"}
    fused = {"compute_kernel": "fused"}
    tables["attention_category"].update(fused, sharding_type="row_wise", shards=[])
    recency = tables["attention_recency"]
    whole = {"rank": 1, "offset": [0, 0], "size": [recency["rows"], recency["width"]]}
    recency.update(fused, sharding_type="table_wise", shards=[whole])
    file.write_text(json.dumps(report))
    train_by(file, store, tmp_path / "run", 2)
    followed = json.loads((tmp_path / "run" / "plan.json").read_text())
    used = {table["name"]: table for table in followed["tables"]}
    assert used["attention_category"]["sharding_type"] == "row_wise"
    assert used["attention_recency"]["shards"] == tables["attention_recency"]["shards"]
    assert used["representation_item"]["shards"] == tables["representation_item"]["shards"]
    predicted = report["plans"][0]["samples_per_second"]
    assert followed["predicted"]["samples_per_second"] == predicted
    write_report(tmp_path / "page.html", [tmp_path / "run"], title="by a plan")
    assert f"(predicted {predicted:,.0f})" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "sgd"}, "--tables.kind rowwise_adagrad, and this training has sgd"),
        ({"dtype": "float16"}, "--tables.dtype float32, and this training has float16"),
    ],
)
def test_a_plan_for_tables_of_other_bytes_is_refused(
    changes: dict[str, str], message: str, store: Path, tmp_path: Path
) -> None:
    file = planned(store, tmp_path / "plan.json", "1xCPU-SPR")
    tables = dataclasses.replace(EXPERIMENT.tables, **changes)
    with pytest.raises(InputError, match=message):
        read_plan(file, ranks_of(0, 1), "small", EXPERIMENT.changed(tables=tables))


def test_what_else_a_plan_was_made_for_is_told_on_the_first_rank(
    store: Path, tmp_path: Path, capsys: Any
) -> None:
    file = planned(store, tmp_path / "plan.json", "2x1xCPU-SPR")
    read_plan(file, ranks_of(0, 2), "small", EXPERIMENT.changed(seed=9, epochs=7))
    assert capsys.readouterr().err == ""
    larger = EXPERIMENT.changed(requests_per_batch=99)
    read_plan(file, ranks_of(1, 2), "dare", larger)
    assert capsys.readouterr().err == ""
    read_plan(file, ranks_of(0, 2), "dare", larger)
    told = capsys.readouterr().err
    before = EXPERIMENT.requests_per_batch
    assert f"experiment small, dare; requests_per_batch {before}, 99." in told


def test_a_plan_for_other_ranks_is_refused(store: Path, tmp_path: Path) -> None:
    report = read_report(planned(store, tmp_path / "plan.json", "2x1xCPU-SPR"))
    with pytest.raises(InputError, match=r"for 2x1xCPU-SPR \(2 ranks\), but this job has 4"):
        plan_for(report, 4)
    twice = report | {"plans": 2 * report["plans"]}
    with pytest.raises(InputError, match="several clusters of 2 ranks"):
        plan_for(twice, 2)
    failing = report | {"plans": [report["plans"][0] | {"fits": False}]}
    with pytest.raises(InputError, match="does not fit"):
        plan_for(failing, 2)


def test_a_plan_of_another_model_ends_training_with_code_2(
    store: Path, tmp_path: Path, capsys: Any
) -> None:
    file = planned(store, tmp_path / "plan.json", "1xCPU-SPR")
    code = run("train", "dare", "--data", store, "--out", tmp_path / "run", "--plan", file)
    assert code == 2
    assert "another model or store" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert run("train", "dare", "--data", store, "--out", tmp_path / "run",
               "--plan", tmp_path / "nowhere.json") == 2  # fmt: skip
