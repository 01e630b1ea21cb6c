"""Scoring a trained run again: any split, any world size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.errors import InputError
from data.source import Split
from data.store import EventStore
from trainer.checkpoint import Checkpoints, Link
from trainer.metrics import evaluate
from trainer.predict import predict
from trainer.processes import Ranks
from trainer.progress import Display
from trainer.run_folder import RunFolder, read_config, read_experiment
from trainer.state import build_state
from trainer.tables import results_table


def open_store_of(run: Path, config: dict[str, Any], data: Path) -> EventStore:
    """The store at ``data``, which must be the one that a run was trained on.

    Raises:
        InputError: it is another one, or none.
    """
    store = EventStore.open(data)
    if store.info.fingerprint != config["data"]["fingerprint"]:
        raise InputError(
            f"{data} is not the store that {run} was trained on: ids mean something else there. "
            f"Its fingerprint is {store.info.fingerprint[:12]}, the run's is "
            f"{config['data']['fingerprint'][:12]}. Give the run's store, or prepare it again "
            "from the same log with the same options and seed."
        )
    return store


def evaluate_run(run: Path, data: Path, split: Split, checkpoint: Link, ranks: Ranks) -> None:
    """Prints the metrics of a run's checkpoint and writes them to a file of the run folder.

    Raises:
        InputError: no run or checkpoint there, or another store than the run's.
    """
    config = read_config(run)
    experiment = read_experiment(config)
    store = open_store_of(run, config, data)
    state = build_state(experiment, store, ranks)
    position = Checkpoints(run, ranks).load(state, checkpoint)
    with Display(shown=ranks.first) as display:
        predictions = predict(
            state.model,
            store,
            split,
            experiment,
            ranks,
            progress=lambda done, total: display.update(split, done, total),
        )
        if not ranks.first:
            return
        metrics = evaluate(predictions, bootstrap=experiment.bootstrap).to_json()
        result = {
            "model": config["experiment"],
            "split": split,
            "checkpoint": checkpoint,
            "step": position.step,
            "world_size": ranks.world_size,
            **metrics,
        }
        RunFolder(run).write(f"evaluation-{checkpoint}-{split}.json", result)
        display.print(results_table({config["experiment"]: metrics}))
