"""Builds some stores twice, alone and on a small Ray cluster of its own: a process for itself.

Run as ``python -m tests.data.ray_stores made|more FOLDER SHARED_DATA``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback alone, see docs/clusters.md
}

import numpy as np
import polars as pl
import ray

import data.prepare
import data.scatter
from data.errors import InputError
from data.prepare import prepare
from data.source import Source
from data.sources.completejourney import CompleteJourney
from data.sources.synthetic import Synthetic
from data.sources.table import TableSource
from data.sources.taobao import TaobaoSource

FILES, ROWS = 3, 2_000
COLUMNS = {"user": "who", "item": "what", "time": "when"}


def write_log(folder: Path) -> Path:
    """Files of text, numbers and empty cells; the brand is known from the second file on."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(FILES):
        brand = [f"b{i}" if i and number else None for i in rng.integers(0, 9, ROWS)]
        columns = {
            "who": [f"u{i}" for i in rng.integers(0, 50, ROWS)],
            "what": [f"i{i}" for i in rng.zipf(1.3, ROWS) % 300],
            "when": np.arange(ROWS) // 3 + number * ROWS,
            "kind": rng.zipf(1.5, ROWS) % 20,
            "brand": brand,
            "bought": rng.integers(0, 2, ROWS),
        }
        pl.DataFrame(columns).write_csv(folder / f"{number}.csv")
    (folder / "1-none.csv").write_text(",".join(columns) + "\n")
    return folder


def main(which: str, folder: Path, shared_data: Path) -> None:
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 << 20,
        _node_ip_address="127.0.0.1",
    )
    data.scatter.FRAME_ROWS = 500  # several blocks of each file, in this process
    if which == "made":
        made_stores(folder)
    else:
        more_stores(folder, shared_data)


def made_stores(folder: Path) -> None:
    """Of a log that is written here; then two that are refused."""
    log = write_log(folder / "log")
    named = {"path": log, "category": "kind", "side": ("brand",), **COLUMNS}
    both("labelled", TableSource(**named, label="bought"), folder, partitions=3)
    data.prepare.NUM_BUCKETS, data.prepare.EVENTS_PER_PARTITION = 4, 500
    both("long", TableSource(**named), folder)  # more partitions than buckets
    refused(TableSource(**named | {"time": "brand"}), folder)
    with (log / "2.csv").open("a") as file:
        file.write("u1,i1\n")
    refused(TableSource(**named, val_start=5, test_start=7), folder)


def more_stores(folder: Path, shared_data: Path) -> None:
    """Of other sources, and of real logs where they are here."""
    both("synthetic", Synthetic(users=300, events_per_user=100, items=500), folder, partitions=4)
    taobao = shared_data / "taobao_userbehavior_head.csv.gz"
    if taobao.is_file():
        both("taobao", TaobaoSource(path=taobao, truncated_line="skip"), folder, partitions=2)
    both("completejourney", CompleteJourney(task="new", request_context=("store",)), folder)


def both(name: str, source: Source, folder: Path, partitions: int | None = None) -> None:
    """Stores FOLDER/NAME-local and FOLDER/NAME-ray."""
    for engine in ("local", "ray"):
        prepare(source, folder / f"{name}-{engine}", partitions=partitions, seed=3, engine=engine)


def refused(source: Source, folder: Path) -> None:
    """Prints the message."""
    try:
        prepare(source, folder / "refused", engine="ray")
    except InputError as error:
        print(json.dumps(str(error)))


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
