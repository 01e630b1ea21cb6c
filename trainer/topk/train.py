"""One top-K run: from a store to metrics of full rankings, on one process."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from data.errors import InputError
from data.source import Split
from data.store import EventStore, write_arrow
from modules.retrieval.config import FrequentConfig, PopularConfig, SelfAttentionConfig
from modules.retrieval.loss import Pairs, Windows, bpr, half_squares, sampled_softmax
from modules.retrieval.vectors import Counts, Vectors
from trainer.progress import Display
from trainer.provenance import commit, describe_data, versions
from trainer.run_folder import RunFolder, disk_errors
from trainer.topk.batches import PairBatches, WindowBatches, histories
from trainer.topk.experiment import TopKExperiment
from trainer.topk.interactions import Interactions
from trainer.topk.metrics import METRICS, Interval, Ranked, rank
from trainer.topk.models import build
from trainer.topk.tables import metrics_table

JUDGE = "ndcg@20"
"""Metric of the validation period that chooses the epoch."""


class TopKTrainer:
    """Trains, ranks and records one experiment."""

    def __init__(
        self,
        name: str,
        experiment: TopKExperiment,
        data: Path,
        out: Path,
        device: torch.device,
        *,
        replace: bool = False,
    ) -> None:
        """Reads the log.

        Raises:
            InputError: there is a run at ``out`` already, the store cannot be ranked on, or the
                graph library is missing.
        """
        self.name, self.experiment, self.device = name, experiment, device
        self.folder = RunFolder(out)
        if self.folder.started and not replace:
            raise InputError(
                f"{self.folder.path} holds a run already. Give another --out, or start over with "
                "--replace."
            )
        self.replace = replace
        self.store = EventStore.open(data)
        self.log = Interactions.of(self.store)
        self.wanted = {
            split: self.log.wanted(split, experiment.candidates) for split in ("val", "test")
        }
        for split, wanted in self.wanted.items():
            if not len(wanted.items):
                raise InputError(
                    f"Nobody bought anything in the {split} period that could be found, with "
                    f"--candidates {experiment.candidates}. Take a longer log, or --candidates all."
                )
        torch.manual_seed(experiment.seed)
        self.model = build(experiment.model, self.log).to(device)
        self.seconds, self.best_epoch, self.best = 0.0, 0, -math.inf
        self.vectors: Vectors | Counts

    def main(self) -> dict[str, Any]:
        """The whole run; returns its summary.

        Raises:
            InputError: the model diverged. Nothing is left of the run.
        """
        self.folder.claim(self._describe(), resume=False, replace=self.replace)
        try:
            with (
                Display(shown=True) as display,
                disk_errors(
                    self.folder.path,
                    way_out="Nothing is left of this run; make room and start again.",
                ),
            ):
                self._fit(display)
                return self._finish(display)
        except BaseException:
            self.folder.abandon()
            raise

    def _fit(self, display: Display) -> None:
        """The train loop; keeps the vectors of the best epoch."""
        experiment = self.experiment
        if isinstance(experiment.model, (PopularConfig, FrequentConfig)):
            self._validate(0, display)
            return
        kind = WindowBatches if isinstance(experiment.model, SelfAttentionConfig) else PairBatches
        batches = kind(self.log, experiment)
        optimizers = make_optimizers(self.model, experiment.learning_rate)
        for epoch in range(1, experiment.epochs + 1):
            begin, total = time.perf_counter(), 0.0
            for done, batch in enumerate(batches.epoch(epoch), start=1):
                loss = train_step(self.model, batch.to(self.device), optimizers, experiment)
                total += loss.item()
                if not math.isfinite(total):
                    raise InputError(
                        f"The loss of step {done} of epoch {epoch} is {loss.item()}: the model has "
                        "diverged. Lower --learning-rate."
                    )
                note = f"epoch {epoch}  loss {total / done:.4f}"
                display.update("train", done, len(batches), note)
            seconds = time.perf_counter() - begin
            self.seconds += seconds
            self.folder.append(
                {
                    "kind": "train",
                    "epoch": epoch,
                    "step": epoch * len(batches),
                    "loss": total / len(batches),
                    "seconds": seconds,
                }
            )
            if epoch % experiment.evaluate_every == 0 or epoch == experiment.epochs:
                self._validate(epoch, display)
            if epoch - self.best_epoch >= experiment.patience * experiment.evaluate_every:
                display.print(f"Validation {JUDGE} has stopped rising: early stop.")
                break

    def _validate(self, epoch: int, display: Display) -> None:
        vectors = self._encode()
        means = self._rank("val", vectors).means()
        self.folder.append({"kind": "eval", "split": "val", "epoch": epoch, **means})
        better = means[JUDGE] > self.best
        if better:
            self.best, self.best_epoch = means[JUDGE], epoch
            # tables go on changing in place
            self.vectors = copy.deepcopy(vectors)
        display.print(
            f"epoch {epoch:>4}  validation NDCG@20 {means[JUDGE]:.4f}  "
            f"recall@20 {means['recall@20']:.4f}{'  (best)' if better else ''}"
        )

    def _encode(self) -> Vectors | Counts:
        config = self.experiment.model
        length = config.history_length if isinstance(config, SelfAttentionConfig) else 1
        self.model.eval()
        vectors = self.model.encode(
            histories(self.log, length, self.experiment.users_chunk, self.device)
        )
        self.model.train()
        return vectors

    def _rank(self, split: Split, vectors: Vectors | Counts) -> Ranked:
        known = self.log.bought if self.experiment.candidates == "new" else None
        return rank(vectors, self.wanted[split], known, self.experiment.users_chunk)

    def _finish(self, display: Display) -> dict[str, Any]:
        """Ranks the test period by the best epoch and writes what is left of the run folder."""
        ranked = self._rank("test", self.vectors)
        validation = self._rank("val", self.vectors).means()
        summary = {
            "model": self.name,
            "dataset": self.store.info.source,
            "split": "test",
            "candidates": self.experiment.candidates,
            **ranked.means(),
            "intervals": _known(ranked.intervals(self.experiment.bootstrap)),
            "users": len(ranked.user),
            "wanted": len(self.wanted["test"].items),
            "catalogue": self.log.num_items - 1,
            "validation": validation,
            "best_epoch": self.best_epoch,
            "train_seconds": self.seconds,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "seed": self.experiment.seed,
            "versions": _versions(),
        }
        write_ranked(self.folder.path / "predictions-test.arrow", ranked)
        self.folder.write("summary.json", summary)
        display.print(metrics_table({self.name: summary}))
        display.print(f"Compare runs: twofold topk compare {self.folder.path} OTHER_RUN ...")
        return summary

    def _describe(self) -> dict[str, Any]:
        """What ``config.json`` holds: all that is needed to do it again."""
        return {
            "kind": "topk",
            "experiment": self.name,
            "config": dataclasses.asdict(self.experiment),
            "data": describe_data(self.store)
            | {
                "train_events": len(self.log.item),
                "train_pairs": len(self.log.bought.items),
                "wanted": {split: len(wanted.items) for split, wanted in self.wanted.items()},
            },
            "versions": _versions(),
            "commit": commit(),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        }


def make_optimizers(model: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Adam for what has dense gradients, its lazy form for tables with sparse ones."""
    tables = [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.sparse
    ]
    known = {id(table) for table in tables}
    dense = [parameter for parameter in model.parameters() if id(parameter) not in known]
    optimizers: list[torch.optim.Optimizer] = []
    if tables:
        optimizers.append(torch.optim.SparseAdam(tables, lr=learning_rate))
    if dense:
        optimizers.append(torch.optim.Adam(dense, lr=learning_rate))
    return optimizers


def train_step(
    model: nn.Module,
    batch: Pairs | Windows,
    optimizers: list[torch.optim.Optimizer],
    experiment: TopKExperiment,
) -> Tensor:
    """One step; returns the loss without its L2 term."""
    compared = model(batch)
    if experiment.loss == "bpr":
        loss = bpr(compared)
    else:
        loss = sampled_softmax(compared, batch.positives, batch.negatives)
    for optimizer in optimizers:
        optimizer.zero_grad()
    (loss + experiment.l2 * half_squares(compared)).backward()
    for optimizer in optimizers:
        optimizer.step()
    return loss.detach()


def write_ranked(file: Path, ranked: Ranked) -> None:
    """One row per user: id, the head of the list, metrics."""
    heads = pa.FixedSizeListArray.from_arrays(pa.array(ranked.items.ravel()), ranked.items.shape[1])
    columns = dict(zip(METRICS, np.ascontiguousarray(ranked.values.T), strict=True))
    write_arrow(file, {"user": ranked.user, "items": heads, **columns})


def _known(intervals: dict[str, Interval]) -> dict[str, Interval | None]:
    """JSON has no NaN, which the bounds are without resamples."""
    return {name: None if math.isnan(ends[0]) else ends for name, ends in intervals.items()}


def _versions() -> dict[str, str]:
    try:
        return versions() | {"torch_geometric": importlib.metadata.version("torch_geometric")}
    except importlib.metadata.PackageNotFoundError:
        return versions()
