"""Analysing a trained run: what it reads, what that is worth to it, and where it is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.errors import InputError
from data.source import Split
from trainer.analyses import fields, histories
from trainer.analyses.subject import Subject
from trainer.checkpoint import Checkpoints, Link
from trainer.evaluate import open_store_of
from trainer.processes import Ranks, on_first_rank
from trainer.progress import Display
from trainer.report.analysis_page import write_analysis_report
from trainer.report.page import load_runs
from trainer.run_folder import RunFolder, read_config, read_experiment
from trainer.state import build_state
from trainer.tables import importance_table


def analyze_run(
    run: Path,
    data: Path | None,
    out: Path | None,
    checkpoint: Link,
    split: Split,
    others: tuple[Path, ...],
    ranks: Ranks,
) -> None:
    """Writes ``analysis-<checkpoint>.json`` and ``.html``.

    Args:
        run: its folder.
        data: the run's store; None: as its command said.
        out: folder for the two files; None: the run's.
        checkpoint: which.
        split: which requests are judged; mutual information is always of the training ones.
        others: ``analysis-*.json`` files to draw beside this one.
        ranks: this process.

    Raises:
        InputError: no run or checkpoint there, another store than the run's, nowhere to write to,
            or no analysis where ``others`` say.
    """
    config = read_config(run)
    experiment = read_experiment(config)
    store = open_store_of(run, config, data or _store_of_command(run, config))
    on_first_rank(ranks, lambda: _make_folder(out or run))
    state = build_state(experiment, store, ranks)
    position = Checkpoints(run, ranks).load(state, checkpoint)
    subject = Subject(experiment, store, state, position, ranks, split)
    with Display(shown=ranks.first) as display:
        content = {
            "model": config["experiment"],
            "run": run.resolve().name,
            "checkpoint": checkpoint,
            "step": position.step,
            "split": split,
            "top_k": experiment.model.top_k,
            "world_size": ranks.world_size,
            "data": {"source": store.info.source, "fingerprint": store.info.fingerprint},
            **_measure(subject, run, display),
        }
        if not ranks.first:
            return
        folder = RunFolder(out or run)
        folder.write(f"analysis-{checkpoint}.json", content)
        if "importance" in content:
            display.print(importance_table(content["importance"]))
        page = folder.path / f"analysis-{checkpoint}.html"
        write_analysis_report(page, [page.with_suffix(".json"), *others])
        display.print(f"Analysis: {page}")


def _measure(subject: Subject, run: Path, display: Display) -> dict[str, Any]:
    """By what the model reads: collective, and whole on rank 0 only."""
    if not subject.ranker.reads_history:
        return fields.measure(subject, display)
    return {**histories.measure(subject, display), **_of_training(run)}


def _of_training(run: Path) -> dict[str, Any]:
    """What the run itself recorded of its search and of its gradients."""
    gradients = run / "gradients.json"
    keys = ("step", "same_item_recall", "same_category_recall", "attention_entropy")
    return {
        "gradients": json.loads(gradients.read_text()) if gradients.exists() else None,
        "training": [
            {key: record.get(key) for key in keys}
            for record in load_runs([run])[0].metrics
            if record.get("kind") in ("search", "eval") and record.get("split") == "val"
        ],
    }


def _store_of_command(run: Path, config: dict[str, Any]) -> Path:
    """Where the run's own command found its store."""
    words = config.get("command") or []
    for flag, value in zip(words, [*words[1:], ""], strict=True):
        path = Path(flag.removeprefix("--data=") if flag.startswith("--data=") else value)
        if flag.partition("=")[0] == "--data" and (path / "store.json").exists():
            return path
    raise InputError(f"Where is the store that {run} was trained on? Give --data STORE.")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made: {error}. Give another --out.") from error
