"""Run folders as training writes them, with made-up numbers: for tests of what reads them."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FIELDS = {"item": 68_510, "category": 303, "recency": 801}
VERSIONS = {"python": "3.11.9", "torch": "2.13.0", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"}
EVALUATED = {"samples": 86_502, "requests": 14_417, "users": 2_143, "positives": 28_834}


def write_run(
    folder: Path, model: str = "dare", *, auc: float = 0.7969, world_size: int = 2
) -> Path:
    """Writes all files of a finished run; the same bytes for the same arguments."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(zlib.crc32(model.encode()))
    width = 0.0041
    tested = {
        "auc": auc,
        "auc_interval": [auc - width, auc + width],
        "gauc": auc - 0.0123,
        "logloss": 0.5381 + (0.7969 - auc) / 2,
        "normalized_entropy": 0.8454 + (0.7969 - auc),
        "calibration": 1.0183,
        **EVALUATED,
    }
    files = {
        "config.json": _config(model),
        "plan.json": _plan(model, world_size),
        "analysis.json": _analysis(model, rng),
        "summary.json": {
            "model": model,
            "dataset": "completejourney",
            "split": "test",
            **tested,
            "train_samples": 1_357_404,
            "train_seconds": 161.4,
            "samples_per_second": 8410.2,
            "time_shares": {"input": 0.01, "communication": 0.2, "compute": 0.79},
            "bound": "Bound by compute: 79% of training was computing.",
            "loss_first": 0.6931,
            "loss_last": 0.5266,
            "world_size": world_size,
            "versions": VERSIONS,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    rows = _metrics(auc, rng)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def edit(folder: Path, file: str, **values: Any) -> None:
    """Sets keys of one JSON file of a run folder."""
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _config(model: str) -> dict[str, Any]:
    return {
        "experiment": f"{model}_completejourney",
        "config": {
            "seed": 1,
            "epochs": 2,
            "batch_size": 2040,
            "model": {"sharing": "decoupled", "history_length": 800, "gsu_top_k": 20},
        },
        "versions": VERSIONS,
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "data": {
            "source": "completejourney",
            "fingerprint": "9f2c" * 16,
            "users": 2_469,
            "events": 1_469_307,
            "items": 68_509,
            "requests": {"train": 113_117, "val": 11_827, "test": 14_417},
            "best_auc": None,
        },
        "command": f"twofold train {model} --data stores/demo --out runs/{model}".split(),
    }


def _tables(model: str) -> dict[str, int]:
    sides = ("attention", "representation") if model == "dare" else ("shared",)
    return {f"{side}_{field}": rows for side in sides for field, rows in FIELDS.items()}


def _plan(model: str, world_size: int) -> dict[str, Any]:
    """Items row-wise; the others whole on one rank each."""
    tables = []
    for i, (name, rows) in enumerate(_tables(model).items()):
        row_wise = rows > 10_000
        ranks = list(range(world_size)) if row_wise else [i % world_size]
        edges = [rows * r // len(ranks) for r in range(len(ranks) + 1)]
        tables.append(
            {
                "name": name,
                "rows": rows,
                "width": 16,
                "bytes": rows * 16 * 4,
                "sharding_type": "row_wise" if row_wise else "table_wise",
                "compute_kernel": "fused",
                "optimizer": "exact_row_wise_adagrad",
                "shards": [
                    {"rank": rank, "offset": [edges[i], 0], "size": [edges[i + 1] - edges[i], 16]}
                    for i, rank in enumerate(ranks)
                ],
            }
        )
    return {"world_size": world_size, "tables": tables}


def _metrics(auc: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(5, 671, 5):
        done = step / 670
        rows.append(
            {
                "kind": "train",
                "step": step,
                "epoch": int(done * 1.99),
                "samples": step * 2026,
                "seconds": step * 0.241,
                "samples_per_second": 8410 + 350 * rng.normal(),
                "loss": 0.693 - 0.155 * (1 - np.exp(-6 * done)) + 0.008 * rng.normal(),
                "auxiliary": 0.693 - 0.06 * (1 - np.exp(-4 * done)) + 0.004 * rng.normal(),
                "l2": 0.0011,
            }
        )
        if step % 110 == 0:
            value = auc + 0.003 - 0.12 * np.exp(-5 * done)
            rows.append(
                {
                    "kind": "eval",
                    "split": "val",
                    "step": step,
                    "auc": value,
                    "auc_interval": [value - 0.0045, value + 0.0045],
                    "logloss": 0.54,
                    **EVALUATED,
                }
            )
    return rows


def _analysis(model: str, rng: np.random.Generator) -> dict[str, Any]:
    recency = np.arange(1, 801)
    weight = (0.02 if model == "dare" else 0.008) / recency**0.45 + 0.0008
    weight *= rng.uniform(0.7, 1.3, size=800)
    predicted = np.linspace(0.06, 0.83, 20)
    observed = (predicted + 0.02 * np.sin(6 * predicted) + 0.006 * rng.normal(size=20)).clip(0, 1)
    searched = {"item": 1_632_000, "category": 1_632_000, "recency": 1_632_000}
    tables = _tables(model)
    return {
        "lookups": {
            name: {
                "with_gradient": 42_840,
                "without_gradient": 0
                if name.startswith("representation")
                else searched[name.split("_")[1]],
            }
            for name in tables
        },
        "attention_by_recency": {
            "recency": recency.tolist(),
            "weight": weight.tolist(),
            "uniform": np.full(800, 1 / 640).tolist(),
        },
        "calibration": {
            "predicted": predicted.tolist(),
            "observed": observed.tolist(),
            "count": [4325] * 18 + [4326] * 2,
        },
    }
