"""One training run, from a store to a report."""

from __future__ import annotations

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from analysis.gradients import GradientRecorder
from analysis.probes import SearchProbe
from data.errors import InputError
from data.loader import RequestLoader
from data.source import Split
from data.store import EventStore, write_arrow
from sharding.batch_norm import refresh_statistics
from sharding.search_tables import refresh_replica
from trainer.checkpoint import Checkpoints, Position
from trainer.experiment import Experiment
from trainer.meter import Meter, bound_by
from trainer.metrics import Metrics, Predictions, calibration_curve, evaluate
from trainer.planning.follow import compared, prediction, read_plan
from trainer.predict import (
    AttentionByRecency,
    LookupCounter,
    evaluation_loader,
    predict,
    probe_replica,
    probe_search,
)
from trainer.processes import Ranks, on_first_rank
from trainer.progress import Display
from trainer.provenance import describe_run, versions
from trainer.report.page import write_report
from trainer.run_folder import RunFolder, disk_errors
from trainer.state import TrainState, build_state, forward, train_step
from trainer.tables import plan_table, results_table

STATISTICS_BATCHES = 16
"""Training batches behind the batch-norm statistics of an evaluation."""


class Trainer:
    """Trains, evaluates and records one experiment. Every rank has one; rank 0's writes files."""

    def __init__(
        self,
        name: str,
        experiment: Experiment,
        data: Path,
        out: Path,
        ranks: Ranks,
        plan: Path | None = None,
    ) -> None:
        self.name, self.experiment, self.ranks = name, experiment, ranks
        self.given = read_plan(plan, ranks.world_size) if plan else None
        """The sharding plan to follow; None: the planner chooses."""
        self.store = EventStore.open(data)
        self.loader = self._train_loader()
        self.folder = RunFolder(out)
        self.checkpoints = Checkpoints(out, ranks)
        self.position = Position()
        self.renewed_at = 0
        """Step after which the searches' copy of the keys was last renewed."""
        self.state: TrainState
        self._board: SummaryWriter | None = None  # rank 0 has one
        for split in ("val", "test"):
            # refuses now what would end the run after its training
            evaluation_loader(self.store, split, experiment, ranks)

    def _train_loader(self) -> RequestLoader:
        return RequestLoader(
            self.store,
            "train",
            requests_per_batch=self.experiment.requests_per_batch,
            history_length=self.experiment.history_length,
            time_gap=self.experiment.time_gap,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            seed=self.experiment.seed,
        )

    def main(self, *, resume: bool = False, replace: bool = False) -> dict[str, Any]:
        """The whole run; returns its summary on rank 0 and {} elsewhere."""
        config = describe_run(self.name, self.experiment, self.store)
        on_first_rank(self.ranks, lambda: self.folder.claim(config, resume=resume, replace=replace))
        try:
            self.state = build_state(self.experiment, self.store, self.ranks, self.given)
            with Display(shown=self.ranks.first) as display, disk_errors(self.folder.path):
                self._start(resume, display)
                self._fit(display)
                return self._finish(display)
        except BaseException as error:
            if self.ranks.first:
                self.folder.abandon()
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(self._what_is_kept()) from None
            raise
        finally:
            if self._board:
                self._board.close()

    def _what_is_kept(self) -> str:
        if not self.checkpoints.exists("last"):
            return "Interrupted before the first checkpoint; nothing is kept."
        return "Interrupted. Complete checkpoints are kept: --resume goes on from the last one."

    def _start(self, resume: bool, display: Display) -> None:
        if resume and self.checkpoints.exists("last"):
            self.position = self.checkpoints.load(self.state, "last")
            self.renewed_at = self.position.step
            self.loader.load_state_dict(
                {"epoch": self.position.epoch, "batch": self.position.batch}
            )
            self.state.scale_learning_rates(self.experiment, self.position.learning_rate_scale)
            display.print(f"Resuming {self.folder.path} at step {self.position.step}.")
        elif resume:
            display.print(f"No checkpoint at {self.folder.path}; starting over.")
        if self.ranks.first:
            # nothing of a run that had not got to its first checkpoint
            self.folder.forget_after(self.position.step or -1)
            predicted = {"predicted": prediction(self.given)} if self.given else {}
            self.folder.write("plan.json", {**self.state.plan, **predicted})
            self._board = SummaryWriter(
                str(self.folder.path / "tensorboard"), purge_step=self.position.step + 1
            )
        display.print(plan_table(self.state.plan))
        if self.position.step == 0:
            found = probe_search(self.state.model, self.store, "val", self.experiment, self.ranks)
            self._record({"kind": "search", "split": "val", "step": 0, **found})

    def _fit(self, display: Display) -> None:
        """The train loop."""
        experiment, position = self.experiment, self.position
        steps = experiment.epochs * len(self.loader)
        every = experiment.evaluate_every or math.ceil(
            len(self.loader) / experiment.evaluations_per_epoch
        )
        counter = LookupCounter(self.state.model.module)
        meter = Meter(self.ranks)
        gradients, renewed_after = self._gradient_recorder(), experiment.replica_steps
        while position.step < steps and not self._stopped_early():
            for batch in meter.waiting_for(self.loader):
                batch = batch.to(self.ranks.device, non_blocking=True)
                with meter.step():
                    if renewed_after and position.step % renewed_after == 0:
                        self._renew_replica()
                    losses = train_step(self.state, batch, experiment, self.ranks.world_size)
                meter.add(losses, batch)
                position.step += 1
                if gradients:
                    gradients.end_of_step()
                position.epoch, position.batch = self.loader.state_dict().values()
                evaluates = position.step % every == 0 or position.step == steps
                if evaluates or position.step % experiment.log_every == 0:
                    self._log(meter.record(position), display, steps)
                if evaluates:
                    position.lookups = position.lookups or counter.close(
                        position.step, self.ranks.device
                    )
                    self._validate(display)
                    meter.restart_clock()
                if self._stopped_early():
                    display.print("Validation AUC has stopped rising: early stop.")
                    break

        self._write_gradients(gradients)

    def _gradient_recorder(self) -> GradientRecorder | None:
        """Of the first steps of a run, which a resumed one has behind it."""
        steps = 0 if self.position.step else self.experiment.record_gradients
        if not steps:
            return None
        ranker = self.state.model.module
        if "category" not in {f.name for f in ranker.fields} or not ranker.reads_history:
            raise InputError(
                "record_gradients compares attention and representation by rows of the field "
                "category: it needs that field and a model that reads histories."
            )
        return GradientRecorder(ranker.tables, ranker.fields, "category", steps)

    def _write_gradients(self, gradients: GradientRecorder | None) -> None:
        if gradients:
            found = gradients.close().to_json()
            if self.ranks.first:
                self.folder.write("gradients.json", found)

    def _stopped_early(self) -> bool:
        return self.position.evaluations_since_best >= self.experiment.patience

    def _log(self, record: dict[str, Any], display: Display, steps: int) -> None:
        self._record({**record, **self._scale()})
        note = f"loss {record['loss']:.4f}  {record['samples_per_second']:,.0f} samples/s"
        display.update("train", record["step"], steps, note)

    def _validate(self, display: Display) -> None:
        """Evaluates on the validation split and saves a checkpoint."""
        position = self.position
        of_replica = self._judge_replica()
        refresh_statistics(
            self.state.model,
            (
                forward(self.state.model, batch.to(self.ranks.device))
                for batch in itertools.islice(self._train_loader(), STATISTICS_BATCHES)
            ),
        )
        probe = SearchProbe(self.state.model.module, self.ranks.device)
        metrics = self._metrics("val", display, probe)[0]
        # a split of one class has no AUC: then the latest is the best
        auc = None if math.isnan(metrics.auc) else metrics.auc
        better = auc is None or position.best_auc is None or auc > position.best_auc
        if better:
            position.best_auc, position.best_step = auc, position.step
        position.evaluations_since_best = 0 if better else position.evaluations_since_best + 1
        note = "  (best)" if better else self._reduce_learning_rates()
        record = {"kind": "eval", "split": "val", "step": position.step}
        found = {**probe.to_json(), **of_replica}
        self._record({**record, **metrics.to_json(), **found, **self._scale()})
        display.print(
            f"step {position.step:>6}  validation AUC {metrics.auc:.4f}  "
            f"log loss {metrics.logloss:.4f}{note}"
        )
        self.checkpoints.save(self.state, position, ("last", "best") if better else ("last",))

    def _renew_replica(self) -> None:
        refresh_replica(self.state.model)
        self.renewed_at = self.position.step

    def _judge_replica(self) -> dict[str, Any]:
        """What searches miss in their copy of the keys, as old as it is and renewed, for a record.
        Evaluation goes on with the new one.
        """
        if not self.experiment.replica_steps:
            return {}
        probe = partial(
            probe_replica, self.state.model, self.store, "val", self.experiment, self.ranks
        )
        old = {"replica_age": self.position.step - self.renewed_at, "replica_recall": probe()}
        self._renew_replica()
        return old | {"replica_recall_renewed": probe()}

    def _reduce_learning_rates(self) -> str:
        """Where validation is on a plateau; says so."""
        experiment, position = self.experiment, self.position
        patience, old = experiment.plateau_patience, position.learning_rate_scale
        if not patience or position.evaluations_since_best % patience:
            return ""
        new = max(old * experiment.plateau_factor, experiment.plateau_floor)
        if math.isclose(new, old):
            return ""
        position.learning_rate_scale = new
        self.state.scale_learning_rates(experiment, new)
        return f"  learning rates times {new / old:.3g}"

    def _scale(self) -> dict[str, float]:
        """For a record of a run whose learning rates may change."""
        scale = self.position.learning_rate_scale
        return {"learning_rate_scale": scale} if self.experiment.plateau_patience else {}

    def _finish(self, display: Display) -> dict[str, Any]:
        """Tests the best checkpoint and writes what is left of the run folder."""
        position = self.position
        self.checkpoints.load(self.state, "best")
        recency = AttentionByRecency(self.experiment.history_length, self.ranks.device)
        metrics, predictions = self._metrics("test", display, recency)
        analysis = {
            "lookups": position.lookups,
            # nothing to tell of where no events are chosen
            "attention_by_recency": recency.to_json()
            if self.experiment.model.search not in ("all", "clusters")
            else None,
            "calibration": _lists(calibration_curve(predictions.probability, predictions.label)),
        }
        if not self.ranks.first:
            return {}
        summary = {
            "model": self.name,
            "dataset": self.store.info.source,
            "split": "test",
            **metrics.to_json(),
            "train_samples": position.samples,
            "train_seconds": position.seconds,
            "samples_per_second": position.samples / max(position.seconds, 1e-9),
            **(
                {"predicted_samples_per_second": self.given["samples_per_second"]}
                if self.given
                else {}
            ),
            **bound_by(position),
            "loss_first": position.loss_first,
            "loss_last": position.loss_last,
            "steps": position.step,
            "best_step": position.best_step,
            "validation_auc": position.best_auc,
            "seed": self.experiment.seed,
            "world_size": self.ranks.world_size,
            "best_reachable_auc": self.store.info.best_auc,
            "versions": versions(),
        }
        write_predictions(self.folder.path / "predictions-test.arrow", predictions)
        self.folder.write("analysis.json", analysis)
        self.folder.write("summary.json", summary)
        write_report(
            self.folder.path / "report.html", [self.folder.path], title=f"Twofold: {self.name}"
        )
        display.print(results_table({self.name: summary}))
        display.print(summary["bound"])
        if self.given:
            display.print(compared(self.given, summary["samples_per_second"]))
        display.print(f"Report: {self.folder.path / 'report.html'}")
        return summary

    def _metrics(
        self, split: Split, display: Display, observer: AttentionByRecency | SearchProbe
    ) -> tuple[Metrics, Predictions]:
        """Computed on every rank, so that all decide alike. ``observer`` sees every batch."""
        predictions = predict(
            self.state.model,
            self.store,
            split,
            self.experiment,
            self.ranks,
            each_batch=observer.update,
            progress=lambda done, total: display.update(split, done, total),
        )
        resamples = self.experiment.bootstrap if split == "test" and self.ranks.first else 0
        return evaluate(predictions, bootstrap=resamples), predictions

    def _record(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl, and points for TensorBoard."""
        if not self._board:
            return
        self.folder.append(record)
        prefix = record.get("split", "train")
        for key, value in record.items():
            if isinstance(value, float) and key != "seconds":
                self._board.add_scalar(f"{prefix}/{key}", value, record["step"])


def write_predictions(file: Path, predictions: Predictions) -> None:
    """Predictions of a split as one Arrow file, in the order of the requests."""
    write_arrow(
        file, {name: getattr(predictions, name) for name in predictions.__dataclass_fields__}
    )


def _lists(curve: Any) -> dict[str, list]:
    return {name: values.tolist() for name, values in curve._asdict().items()}
