"""Real runs of a second or two on a small synthetic store, and what is compared of them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from data.sources.synthetic import Synthetic
from data.store import EventStore
from modules.ranker_config import RankerConfig
from sharding.apply import TableOptimizer
from tests.ranks import run_ranks
from trainer import train as training
from trainer.checkpoint import Checkpoints
from trainer.experiment import Experiment, FieldWidths
from trainer.processes import Ranks
from trainer.reliability import Reliability
from trainer.state import TrainState, build_state

# an epoch is 8 batches of 33 or 34 requests: ranks get unequal shares
SOURCE = Synthetic(
    users=60, events_per_user=40, items=200, categories=10, history_needed=8, noise=0.3
)
EXPERIMENT = Experiment(
    model=RankerConfig(
        auxiliary="sampled",
        score="cosine",
        top_k=4,
        auxiliary_others=4,
        hidden=(8,),
        auxiliary_hidden=(8,),
    ),
    # a cosine turns small rows fast, and their rounding too: world sizes would part
    fields=FieldWidths(
        attention_dim=4, representation_dim=4, attention_init_std=1.0, representation_init_std=0.1
    ),
    # epsilon above rounding, which else moves rows without gradient (docs/findings.md)
    tables=TableOptimizer(learning_rate=0.1, eps=1e-4),
    history_length=16,
    requests_per_batch=37,
    epochs=2,
    dense_learning_rate=0.01,
    evaluate_every=5,
    patience=10,
    log_every=2,
    bootstrap=10,
)
STEPS, EVALUATIONS = 16, (5, 10, 15, 16)
IN_FOREGROUND = Reliability(checkpoint_in_background=False)
"""What a checkpoint is of has been written when the next step begins."""


def ranks_of(rank: int, world_size: int) -> Ranks:
    """As ``process_group`` would say."""
    return Ranks(rank, world_size, world_size, torch.device("cpu"))


def train(
    data: Path,
    out: Path,
    world_size: int,
    experiment: Experiment = EXPERIMENT,
    *,
    before: Callable[[], None] = lambda: None,
    report: bool = False,
    reliability: Reliability = IN_FOREGROUND,
    **options: bool,
) -> dict[str, Any]:
    """Runs a whole training; returns rank 0's summary.

    Args:
        before: called in every rank first, e.g. to break something there.
        report: writes the page too, whose pictures take as long as the training.
        reliability: where and when checkpoints are written.
        options: of ``Trainer.main``.
    """

    def main(rank: int, world_size: int) -> dict[str, Any]:
        before()
        if not report:
            training.write_report = lambda *_, **__: None
        ranks = ranks_of(rank, world_size)
        trainer = training.Trainer("small", experiment, data, out, ranks, reliability=reliability)
        return trainer.main(**options)

    return run_ranks(main, world_size)[0]


def stop_at(step: int, stop: Callable[[], None]) -> Callable[[], None]:
    """For ``before``: training comes to ``stop`` where it would take its step number ``step``."""

    def patch() -> None:
        genuine, count = training.train_step, itertools.count(1)

        def train_step(*arguments: Any) -> Any:
            if next(count) == step:
                stop()
            return genuine(*arguments)

        training.train_step = train_step

    return patch


def loaded_state(
    data: Path, run: Path, rank: int, world_size: int, experiment: Experiment = EXPERIMENT
) -> TrainState:
    """A state of this world size and experiment's plan, filled from the run's last checkpoint."""
    ranks = ranks_of(rank, world_size)
    state = build_state(experiment, EventStore.open(data), ranks)
    Checkpoints(run, ranks).load(state, "last")
    return state


def reseal(checkpoint: Path) -> None:
    """Makes the manifest of a checkpoint true again, as who forges a file would."""
    files = {
        file.name: {"bytes": len(held), "sha256": hashlib.sha256(held).hexdigest()}
        for file in checkpoint.iterdir()
        if file.name != "manifest.json" and (held := file.read_bytes())
    }
    (checkpoint / "manifest.json").write_text(json.dumps({"files": files}))


def content(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, whole, by DCP's own means: without our code or a process group.

    >>> content(run / "checkpoints" / "last")["model/score.temperature"]
    """
    file = checkpoint.parents[1] / f".{checkpoint.name}.pt"
    dcp_to_torch_save(checkpoint, file)
    whole = torch.load(file, weights_only=True)
    file.unlink()
    return dict(_leaves(whole, ""))


def _leaves(state: dict[str, Any], prefix: str) -> Any:
    for key, value in state.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def read(run: Path, name: str) -> Any:
    """One of the JSON files of a run."""
    return json.loads((run / name).read_text())


def metrics_lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock says."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [without_clock(row) for row in rows]


def without_clock(record: dict[str, Any]) -> dict[str, Any]:
    """A record without its durations, speeds and memory."""
    clocks = (
        "seconds", "train_seconds", "samples_per_second", "time_shares", "bound", "input_share",
        "memory",
    )  # fmt: skip
    return {key: value for key, value in record.items() if key not in clocks}
