"""``twofold verify-checkpoint``: the same run at any world size and plan, or else it says so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from data.store import EventStore
from sharding.catalogue import load_nodes, parse_cluster
from sharding.plan import ShardingConfig
from tests.ranks import run_ranks
from tests.trainer.conftest import MakeRun
from tests.trainer.small_runs import EXPERIMENT, IN_FOREGROUND, ranks_of
from trainer import cli
from trainer.checkpoint import Checkpoints, Position
from trainer.experiment import FieldWidths
from trainer.planning.log import Log
from trainer.planning.report import make_report
from trainer.state import build_state
from trainer.verify import Case, Finding, differs, loss_difference, verify_checkpoint

WORLDS = (1, 2, 4)


def column_wise(rank: int, world_size: int, store: Path, out: Path, kind: str) -> None:
    """Saves a state whose attention tables are cut in two."""
    experiment = wide(kind).changed(sharding=ShardingConfig(kinds=("column_wise",)))
    state = build_state(experiment, EventStore.open(store), ranks_of(rank, world_size))
    checkpoints = Checkpoints(out, ranks_of(rank, world_size), IN_FOREGROUND)
    checkpoints.save(_Loadable(state), Position(step=1), ("last",))


def wide(kind: str) -> Any:
    return EXPERIMENT.changed(
        fields=FieldWidths(attention_dim=256, representation_dim=4),
        tables=EXPERIMENT.tables.__class__(kind=kind),
    )


class _Loadable:
    """A state with slots for Adam, as after a step."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def to_save(self, *, replica: bool) -> dict[str, Any]:
        return self.state.to_load()


@pytest.mark.parametrize("saved_by", WORLDS)
def test_every_world_size_and_kind_loads_the_checkpoint_of_every_world_size(
    saved_by: int, finished: MakeRun, store: Path
) -> None:
    cases = [Case(world_size=size, kind="table_wise") for size in WORLDS]
    if saved_by == 2:  # kinds of the shards that are written do not depend on who reads them
        cases += [Case(world_size=size, kind="row_wise") for size in (1, 4)]
        cases += [Case(world_size=2, kind="data_parallel")]
    findings = verify_checkpoint(finished(saved_by), EXPERIMENT, store, "last", cases, 2)
    for case, finding in zip(cases, findings, strict=True):
        assert (finding.refused, finding.tables, finding.optimizers) == ("", 0, 0), case
        assert finding.numbers >= findings[0].numbers > 2_000
        assert len(finding.losses) == 2
        assert loss_difference(finding, findings[0]) < 1e-5


def test_column_shards_move_anywhere_with_an_optimizer_by_number(
    store: Path, tmp_path: Path
) -> None:
    run_ranks(column_wise, 2, store, tmp_path, "adagrad")
    kinds = ("column_wise", "table_wise", "row_wise")
    cases = [Case(world_size=size, kind=kind) for kind in kinds for size in (1, 4)]
    for finding in verify_checkpoint(tmp_path, wide("adagrad"), store, "last", cases, 1):
        assert not differs(finding, finding, 0)


def test_column_shards_of_a_row_wise_optimizer_are_refused_elsewhere(
    store: Path, tmp_path: Path
) -> None:
    run_ranks(column_wise, 2, store, tmp_path, "rowwise_adagrad")
    cases = [Case(world_size=2, kind=kind) for kind in ("column_wise", "table_wise")]
    same, other = verify_checkpoint(tmp_path, wide("rowwise_adagrad"), store, "last", cases, 1)
    assert not differs(same, same, 0)
    assert "one state for each column shard" in other.refused
    assert "--tables.kind adagrad" in other.refused


@pytest.mark.parametrize(("added", "told"), [(0.125, 0.125), (math.nan, math.inf)])
def test_one_wrong_number_of_one_rank_is_found(
    added: float, told: float, finished: MakeRun, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = Checkpoints.load

    def load(self: Checkpoints, state: Any, link: Any) -> Position:
        position = genuine(self, state, link)
        if self.ranks.rank == 1:
            name = next(name for name in state.model.state_dict() if "attention_item" in name)
            state.model.state_dict()[name].local_shards()[0].tensor[-1, -1] += added
        return position

    monkeypatch.setattr(Checkpoints, "load", load)
    (finding,) = verify_checkpoint(
        finished(1), EXPERIMENT, store, "last", [Case(world_size=2, kind="row_wise")], 0
    )
    assert finding.tables == pytest.approx(told, rel=1e-5)
    assert differs(finding, finding, 0.5)


@pytest.mark.parametrize(
    ("losses", "expected"), [([0.5, 0.7], False), ([0.5, 0.8], True), ([0.5, float("nan")], True)]
)
def test_losses_may_differ_by_rounding_alone(losses: list[float], expected: bool) -> None:
    assert differs(Finding(losses=losses), Finding(losses=[0.5, 0.70001]), 1e-3) is expected


def test_the_command_prints_a_table_and_ends_with_what_it_found(
    finished: MakeRun, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["verify-checkpoint", str(finished(2)), "--data", str(store), "--steps", "1"]
    assert cli.run([*line, "--world", "2", "--kinds", "row_wise"]) == 0
    assert "row_wise" in (out := capsys.readouterr().out)
    assert "same" in out
    assert cli.run([*line, "--world", "0"]) == 2
    assert "--world takes world sizes" in capsys.readouterr().err


def test_a_plan_is_loaded_at_the_world_size_that_it_is_for(
    finished: MakeRun, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = Log.of_store(EventStore.open(store))
    clusters = [parse_cluster("2x1xCPU-SPR", load_nodes())]
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(make_report("small", EXPERIMENT, log, clusters, prices={})))
    line = ["verify-checkpoint", str(finished(1)), "--data", str(store), "--plan", str(plan)]
    assert cli.run([*line, "--steps", "1"]) == 0
    (row,) = [row for row in capsys.readouterr().out.splitlines() if "plan.json" in row]
    assert (row.split()[0], row.split()[-1]) == ("2", "same")
    assert cli.run([*line, "--world", "1", "--steps", "1"]) == 1
    assert "but this job has 1" in " ".join(capsys.readouterr().out.split())
    assert cli.run([*line, "--kinds", "row_wise"]) == 2
    assert "give it or --kinds, not both" in capsys.readouterr().err
