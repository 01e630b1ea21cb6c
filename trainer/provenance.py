"""What a result came from: settings, data, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from data.store import EventStore
from trainer.experiment import Experiment


def describe_run(name: str, experiment: Experiment, store: EventStore) -> dict[str, Any]:
    """What ``config.json`` holds: all that is needed to do it again."""
    return {
        "experiment": name,
        # as JSON has it, lists for tuples: it is compared with what a file says
        "config": TypeAdapter(Experiment).dump_python(experiment, mode="json"),
        "data": describe_data(store)
        | {"requests": store.info.requests, "best_auc": store.info.best_auc},
        "versions": versions(),
        "commit": commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def describe_data(store: EventStore) -> dict[str, Any]:
    """Which log, in which version."""
    names = ("source", "fingerprint", "seed", "users", "events", "items")
    return {name: getattr(store.info, name) for name in names}


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in ("twofold", "torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Of the repository that this code runs from, with ``-dirty`` if files differ from it."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip() or None
