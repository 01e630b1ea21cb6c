"""Steps that are measured: what they do, and what is said of them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from modules.crossing.network import make_crossing
from modules.crossing.presets import PRESETS
from trainer.steps.__main__ import main
from trainer.steps.kinds import STEPS
from trainer.steps.network_step import NetworkStep
from trainer.steps.table_step import (
    COMPRESSION,
    FusedTable,
    Lookups,
    QuotientRemainder,
    TableStep,
    TwoHashes,
)

REPOSITORY = Path(__file__).parents[3]
IDS = torch.tensor([3, 95, 3, 0])


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def rows_of(step: Any) -> torch.Tensor:
    """The largest weight of a made table."""
    module = step.model if isinstance(step, FusedTable) else step.table
    weights = module.state_dict().values()
    tensors = [getattr(w, "local_shards", lambda w=w: [w])()[0] for w in weights]
    return max((getattr(t, "tensor", t) for t in tensors), key=torch.numel)


@pytest.mark.parametrize("table", ["dense-adam", "dense-adam-fused", "sparse-adam"])
def test_adam_moves_the_rows_looked_up_by_its_rate_against_the_gradient(table: Any) -> None:
    """The first step of Adam is of length 1e-3 in each number, whatever the gradient."""
    run = TableStep(table=table, ids=100, width=4).make()
    before = rows_of(run).clone()
    run(Lookups(IDS, torch.tensor([[1.0], [-2.0], [3.0], [5.0]]).expand(4, 4)))
    expected = torch.zeros(100, 4)
    expected[[0, 3]], expected[95] = -1e-3, 1e-3
    torch.testing.assert_close(rows_of(run) - before, expected, atol=1e-6, rtol=0)


def test_the_fused_table_updates_within_the_backward_pass(group: None) -> None:
    """Row-wise Adagrad from nothing: a row moves by its rate times gradient over its norm."""
    run = TableStep(ids=100, width=4).make()
    before = rows_of(run).clone()
    gradient = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).repeat(4, 1)
    run(Lookups(IDS, gradient))
    moved = rows_of(run) - before
    direction = gradient[0] / gradient[0].square().mean().sqrt()
    for row in (0, 3, 95):  # id 3 twice: twice the gradient, the same direction
        torch.testing.assert_close(moved[row], -0.05 * direction, atol=1e-6, rtol=1e-5)
    assert moved.abs().sum(1).count_nonzero() == 3


def test_compressed_tables_combine_two_rows() -> None:
    ids = torch.arange(1000)
    remainder = QuotientRemainder(1000, 4)
    rows, quotients = remainder.remainders.weight, remainder.quotients.weight
    assert (len(rows), len(quotients)) == (1000 // COMPRESSION, COMPRESSION + 1)
    torch.testing.assert_close(remainder(ids)[723], rows[23] * quotients[7])
    hashes = TwoHashes(1000, 4)
    sums = hashes.rows.weight[:, None] + hashes.rows.weight
    distance = (hashes(ids)[:, None, None] - sums).abs().sum(-1)
    assert (distance.flatten(1).min(1).values == 0).all()
    # no id is alone in both of its rows, yet most pairs of rows are one id's own
    assert len(hashes(ids).unique(dim=0)) > 800


def test_a_batch_looks_up_each_field_in_its_own_share_of_the_ids() -> None:
    step = TableStep(batch=500, fields=4, ids=100, width=8)
    batch = step.draw()
    assert batch.gradient.shape == (2000, 8)
    by_field = batch.ids.view(500, 4)
    assert (by_field // 25 == torch.arange(4)).all()
    first, last = (by_field % 25 == 0).sum(), (by_field % 25 == 24).sum()
    assert first > 5 * last  # log-uniform


@pytest.mark.parametrize("network", ["secn_b", "secn_a1", "cross_v2", "fm"])
def test_a_network_goes_forward_and_backward_and_keeps_no_gradient(
    network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[nn.Module] = []

    def remember(*arguments: Any) -> nn.Module:
        made.append(make_crossing(*arguments))
        return made[0]

    monkeypatch.setattr("trainer.steps.network_step.make_crossing", remember)
    step = NetworkStep(network=network, batch=3, fields=5, width=4)
    vectors, with_gradient = step.draw(), []
    assert vectors.shape == (3, 5, 4)
    run = step.make()
    for tensor in (vectors, *made[0].parameters()):
        tensor.register_post_accumulate_grad_hook(lambda t: with_gradient.append(id(t)))
    run(vectors)
    assert set(with_gradient) == {id(t) for t in (vectors, *made[0].parameters())}
    assert all(tensor.grad is None for tensor in (vectors, *made[0].parameters()))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("table", {"batch": 0}, "batch must be at least 1, got 0"),
        ("table", {"table": "adam"}, "table is one of dense-adam, .*; got 'adam'"),
        ("table", {"ids": 20}, "ids must be at least 39, got 20"),
        ("table", {"width": 10}, "multiples of 4 floats, got width=10"),
        ("network", {"network": "secn"}, "network is one of lr, .*; got 'secn'"),
        ("network", {"fields": -1}, "fields must be at least 1, got -1"),
    ],
)
def test_bad_settings_are_refused(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        STEPS[kind](**settings)


@pytest.mark.parametrize("kind", STEPS)
def test_the_warm_up_is_the_same_step_but_small(kind: str) -> None:
    step = STEPS[kind](fields=50)
    small = step.small()
    changed = {f.name for f in dataclasses.fields(step)
               if getattr(step, f.name) != getattr(small, f.name)}  # fmt: skip
    assert changed <= {"batch", "fields", "ids"}
    assert small.draw() is not None


def test_every_network_between_fields_can_be_measured() -> None:
    for name in PRESETS:
        small = NetworkStep(network=name, width=8).small()
        step, batch = small.make(), small.draw()
        with torch.autograd.profiler.profile() as ran:
            step(batch)
        assert any("Backward" in event.name for event in ran.function_events), name


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_is_that_of_weights_and_optimizer(tmp_path: Path) -> None:
    """In a process of its own: Adam has two numbers for each weight."""
    words = ["table", str(tmp_path), "--table", "dense-adam", "--ids", "300000", "--batch", "64"]
    command = [sys.executable, "-m", "trainer.steps", *words, "--repeats", "3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=REPOSITORY, env=environment, capture_output=True)
    summary = json.loads((tmp_path / "summary.json").read_text())
    table = 300_000 * 16 * 4
    assert summary["resident_bytes"] == pytest.approx(3 * table, rel=0.02)
    assert summary["peak_bytes"] >= 4 * table  # and a dense gradient at least
    assert len(summary["steps"]) == 3
    assert summary["milliseconds"] == sorted(summary["steps"])[1]
    assert summary["rows_per_second"] == pytest.approx(64e3 / summary["milliseconds"])
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["config"]["ids"] == 300_000


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "The STEP comes first"),
        (["tables", "out"], "There is no STEP 'tables'. Did you mean table?"),
        (["table"], "Where to write what is measured?"),
    ],
)
def test_a_wrong_call_says_how_it_is_made(
    words: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["trainer.steps", *words])
    assert main() == 2
    printed = capsys.readouterr().err
    assert says in printed
    assert "python -m trainer.steps" in printed
    monkeypatch.setattr(sys, "argv", ["trainer.steps", "--help"])
    assert main() == 0
    assert {*STEPS} <= {*capsys.readouterr().out.split()}
