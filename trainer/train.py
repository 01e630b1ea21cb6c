"""One training run, from a store to a report."""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

from torch.utils.tensorboard import SummaryWriter

from analysis.gradients import GradientRecorder
from analysis.probes import SearchProbe
from data.batch import RankingBatch
from data.errors import InputError
from data.loader import RequestLoader
from data.source import Split
from data.store import EventStore
from sharding.batch_norm import refresh_statistics
from trainer.attempts import Attempts, how_it_ended
from trainer.bad_batch import told_of_crashes, told_of_loss
from trainer.checkpoint import Checkpoints, Link, Position
from trainer.experiment import Experiment
from trainer.meter import Meter, summary_line
from trainer.metrics import Metrics, Predictions, evaluate
from trainer.planning.follow import compared, prediction, read_plan
from trainer.predict import (
    AttentionByRecency,
    LookupCounter,
    evaluation_loader,
    predict,
    probe_search,
)
from trainer.processes import Preempted, Ranks, any_rank, on_first_rank, on_sigterm
from trainer.profile import StepProfile
from trainer.progress import Display, SignsOfLife
from trainer.provenance import describe_run
from trainer.reliability import Reliability
from trainer.report.page import write_report
from trainer.run_folder import RunFolder, disk_errors
from trainer.state import NonFiniteLossError, TrainState, build_state, forward, train_step
from trainer.summary import calibration, run_summary, write_predictions
from trainer.tables import plan_table, results_table
from trainer.validation import judge_replica, reduce_learning_rates, renew_replica

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
        profile: str | None = None,
        reliability: Reliability | None = None,
    ) -> None:
        self.name, self.experiment, self.ranks = name, experiment, ranks
        self.reliability = reliability or Reliability()
        self.given = read_plan(plan, ranks, name, experiment) if plan else None
        """The sharding plan to follow; None: the planner chooses."""
        self.store = EventStore.open(data)
        self.loader = self._train_loader()
        self.folder = RunFolder(out)
        self.profile = StepProfile(profile, out, ranks) if profile else None
        """Of the steps that the user wants to look into."""
        self.checkpoints = Checkpoints(out, ranks, self.reliability)
        self.attempts = Attempts(out)
        self.position = Position(store=self.store.info.fingerprint)
        self.meter = Meter(ranks)
        self.state: TrainState
        self._counter: LookupCounter | None = None  # until the first evaluation
        self._board: SummaryWriter | None = None  # rank 0 has one
        for split in ("val", "test"):
            # refuses now what would end the run after its training
            evaluation_loader(self.store, split, experiment, ranks)

    def _train_loader(self, *, alone: bool = False) -> RequestLoader:
        """Of the part of each global batch that is this rank's; ``alone``: of the whole."""
        return RequestLoader(
            self.store,
            "train",
            requests_per_batch=self.experiment.requests_per_batch,
            history_length=self.experiment.history_length,
            time_gap=self.experiment.time_gap,
            rank=0 if alone else self.ranks.rank,
            world_size=1 if alone else self.ranks.world_size,
            seed=self.experiment.seed,
        )

    def main(self, *, resume: bool = False, replace: bool = False) -> dict[str, Any]:
        """The whole run; returns its summary on rank 0 and {} elsewhere."""
        on_first_rank(self.ranks, lambda: self._claim(resume, replace))
        try:
            self.state = build_state(self.experiment, self.store, self.ranks, self.given)
            signs = SignsOfLife(self.folder.path) if self.ranks.first else None
            with Display(self.ranks.first, signs) as display, disk_errors(self.folder.path):
                self._start(resume, display)
                self._fit(display)
                summary = self._finish(display)
            self.attempts.end("finished")
            return summary
        except BaseException as error:
            failed = self.checkpoints.close()  # maybe why a rank is lost
            if self.profile:
                with suppress(OSError):  # `error` is what the user has to know
                    self.profile.close()
            ending = self._ended_by(failed or error, resume)
            if ending is error:
                raise
            raise ending from None
        finally:
            self.checkpoints.close()
            if self._board:
                self._board.close()

    def _claim(self, resume: bool, replace: bool) -> None:
        """Takes the run folder and its checkpoints; on rank 0."""
        config = describe_run(self.name, self.experiment, self.store)
        if url := self.checkpoints.storage.url:
            config["checkpoints"] = url
        if job := os.environ.get("TWOFOLD_JOB"):  # its later attempts know their run by it
            config["job"] = job
        self.checkpoints.check_place(resumed=resume and self.folder.started)
        if url and self.checkpoints and not (resume or replace or self.folder.started):
            raise InputError(
                f"{url} holds checkpoints already. Give another --checkpoints, continue their run "
                "with --resume, or delete them with --replace."
            )
        self.folder.claim(
            config, resume=resume, replace=replace, clear_elsewhere=self.checkpoints.clear
        )

    def _ended_by(self, error: BaseException, resume: bool) -> BaseException:
        """Writes down how the run ended; returns what to raise for it."""
        saved = self.checkpoints.kept()
        how = how_it_ended(error)
        if how == "preempted" and saved and not isinstance(error, Preempted):
            error = Preempted("Told to end. --resume goes on from the last checkpoint.")
        elif how == "interrupted":
            error = KeyboardInterrupt(
                "Interrupted. Complete checkpoints are kept: --resume goes on from the last one."
                if saved
                else "Interrupted before the first checkpoint; nothing is kept."
            )
        self.attempts.end(how)
        # what --resume would have to know of a crash stays
        if self.ranks.first and not saved and not (resume and how == "failed"):
            self.folder.abandon()
        return error

    def _start(self, resume: bool, display: Display) -> None:
        on_first_rank(self.ranks, self._refuse_repeated_crash)
        # as rank 0 sees it: on a network drive others may see what was there before
        if resume and any_rank(self.ranks.first and bool(self.checkpoints), self.ranks.device):
            self._resume(display)
        elif resume:
            display.print(f"No checkpoint at {self.folder.path}; starting over.")
        if self.ranks.first:
            self.attempts.begin(self.position.step, self.ranks.world_size)
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

    def _resume(self, display: Display) -> None:
        self.position, notes = self.checkpoints.resume(self.state)
        if self.position.store not in ("", self.store.info.fingerprint):
            raise InputError(
                f"The checkpoints of {self.checkpoints.storage} are of another store: ids mean "
                "something else there. Give the store that they were made with."
            )
        self.position.store = self.store.info.fingerprint
        self.loader.load_state_dict({"epoch": self.position.epoch, "batch": self.position.batch})
        self.meter.load_state_dict(self.position.since_record)
        self.state.scale_learning_rates(self.experiment, self.position.learning_rate_scale)
        for note in (*notes, f"Resuming {self.folder.path} at step {self.position.step}."):
            display.print(note)

    def _refuse_repeated_crash(self) -> None:
        """Where the same step ended every one of the last attempts; on rank 0."""
        most = self.reliability.max_attempts_at_a_step
        step, crashes = self.attempts.crashes()
        if most and crashes >= most:
            loader = self._train_loader(alone=True)
            raise InputError(told_of_crashes(self.folder.path, step, crashes, loader))

    def _fit(self, display: Display) -> None:
        """The train loop."""
        experiment, position, meter = self.experiment, self.position, self.meter
        steps = experiment.epochs * len(self.loader)
        every = experiment.evaluate_every or math.ceil(
            len(self.loader) / experiment.evaluations_per_epoch
        )
        if not position.lookups:
            self._counter = LookupCounter(self.state.model.module, position.lookups_counted)
        gradients, renewed_after = self._gradient_recorder(), experiment.replica_steps
        told_to_end = threading.Event()
        if not position.since_record:
            meter.restart_clock()
        with on_sigterm(lambda *_: told_to_end.set()):
            while position.step < steps and not self._stopped_early():
                for batch in meter.waiting_for(self.loader):
                    self.attempts.at(position.step + 1)
                    batch = batch.to(self.ranks.device, non_blocking=True)
                    with self._watched(batch):
                        if renewed_after and position.step % renewed_after == 0:
                            renew_replica(self.state, position)
                        losses = train_step(self.state, batch, experiment, self.ranks.world_size)
                    meter.add(losses, batch)
                    position.step += 1
                    if gradients:
                        gradients.end_of_step()
                    position.epoch, position.batch = self.loader.state_dict().values()
                    evaluates = position.step % every == 0 or position.step == steps
                    logs = evaluates or position.step % experiment.log_every == 0
                    if logs:
                        self._refuse_not_finite()
                        self._log(meter.record(position), display, steps)
                    with meter.paused():
                        self._after_step(evaluates, logs, told_to_end, display)
                    if self._stopped_early():
                        display.print("Validation AUC has stopped rising: early stop.")
                        break
            if self._all_end(told_to_end, True):  # in the last evaluation
                self._preempt()

        self._write_gradients(gradients)
        if self.profile:
            display.print(self.profile.close())

    @contextmanager
    def _watched(self, batch: RankingBatch) -> Iterator[None]:
        """Around a step: its time, what the user wants to look into, and a loss out of range."""
        profiled = self._profiled(self.position.step + 1)
        with self.meter.step(), profiled, self._kept_if_not_finite(batch):
            yield

    def _profiled(self, step: int) -> AbstractContextManager[None]:
        return self.profile.step(step) if self.profile else nullcontext()

    def _after_step(
        self, evaluates: bool, logs: bool, told_to_end: threading.Event, display: Display
    ) -> None:
        """Evaluates and saves, where it is time to.

        Raises:
            Preempted: a rank was told to end, and all have saved.
        """
        every = self.reliability.checkpoint_every
        ends = self._all_end(told_to_end, logs)
        if evaluates:
            self._save(self._validate(display))
        elif ends or (every and self.position.step % every == 0):
            self._refuse_not_finite()
            self._save(("last",))
        self.checkpoints.check()
        if ends:
            self._preempt()

    def _preempt(self) -> NoReturn:
        """After a save."""
        self.checkpoints.wait()
        raise Preempted(
            f"Told to end: saved after step {self.position.step}. --resume goes on from there."
        )

    def _all_end(self, told_to_end: threading.Event, logs: bool) -> bool:
        """Has a rank been told to end? Several ranks ask each other where they talk anyway."""
        if self.ranks.world_size == 1:
            return told_to_end.is_set()
        return logs and any_rank(told_to_end.is_set(), self.ranks.device)

    def _save(self, links: tuple[Link, ...]) -> None:
        """A checkpoint that goes on from here as if nothing had been."""
        position = self.position
        position.since_record = self.meter.state_dict() if self.meter.steps else {}
        if self._counter:
            position.lookups_counted = self._counter.counted(self.ranks.device)
        if self._board:
            self._board.flush()  # a resumed run writes none of these points again
        self.checkpoints.save(self.state, position, links)

    def _refuse_not_finite(self) -> None:
        """Where losses are looked at once in a while only, since to look is to wait for a GPU."""
        step = self.meter.first_bad_step()
        if step is None:
            return
        loader, first = self._train_loader(), self.position.step - self.meter.steps
        epoch, number = divmod(first + step - 1, len(loader))
        loader.load_state_dict({"epoch": epoch, "batch": number})
        with self._kept_if_not_finite(next(iter(loader)), first + step):
            raise NonFiniteLossError(None)

    @contextmanager
    def _kept_if_not_finite(self, batch: RankingBatch, step: int | None = None) -> Iterator[None]:
        """Of a step, by default the next, whose loss is not finite, the batch."""
        try:
            yield
        except NonFiniteLossError as error:
            step = step or self.position.step + 1
            told = told_of_loss(self.folder.path, step, self.ranks.rank, batch, error)
            raise InputError(told) from error

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
        display.update("train", record["step"], steps, summary_line(record))

    def _validate(self, display: Display) -> tuple[Link, ...]:
        """Evaluates on the validation split; says what a checkpoint from here is called."""
        position = self.position
        if self._counter:
            position.lookups = self._counter.close(position.step, self.ranks.device)
            position.lookups_counted, self._counter = {}, None
        of_replica = judge_replica(self.state, position, self.experiment, self.store, self.ranks)
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
        note = (
            "  (best)" if better else reduce_learning_rates(self.state, position, self.experiment)
        )
        record = {"kind": "eval", "split": "val", "step": position.step}
        found = {**probe.to_json(), **of_replica}
        self._record({**record, **metrics.to_json(), **found, **self._scale()})
        display.print(
            f"step {position.step:>6}  validation AUC {metrics.auc:.4f}  "
            f"log loss {metrics.logloss:.4f}{note}"
        )
        return ("last", "best") if better else ("last",)

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
            "calibration": calibration(predictions),
        }
        if not self.ranks.first:
            return {}
        summary = run_summary(
            self.name,
            self.experiment,
            self.store,
            position,
            metrics,
            self.ranks.world_size,
            self.given,
        )
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
