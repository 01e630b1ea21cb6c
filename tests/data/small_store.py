"""An event store in miniature, written from docs/architecture.md and not by our own writer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from data.store import EventStore

CATEGORY_OF = [0, 1, 1, 2, 2, 3]
"""By item id; row 0 is the unknown item."""


@dataclass
class Request:
    user: int
    end: int
    """Row of the events of the user's partition."""
    candidates: list[int]
    labels: list[int]
    hour: int = 0


@dataclass
class Part:
    items: dict[int, list[int]]
    """Item ids by user, in time order."""
    requests: list[Request]


def write_store(folder: Path, parts: list[Part]) -> EventStore:
    """A store of train requests with the fields item, category and action and the context hour.

    The action of an event is 1 + its row modulo 3.
    """
    for number, part in enumerate(parts):
        _write_part(folder / f"part-{number:05d}", part)
    write_arrow(
        folder / "items.arrow",
        {
            "original": pa.array([f"i{item}" for item in range(len(CATEGORY_OF))]),
            "category": pa.array(CATEGORY_OF, pa.int32()),
            "frequency": pa.array([0] * len(CATEGORY_OF), pa.int64()),
        },
    )
    (folder / "store.json").write_text(json.dumps(_info(parts)))
    return EventStore.open(folder)


def _info(parts: list[Part]) -> dict:
    sizes = [
        {
            "path": f"part-{number:05d}",
            "users": len(part.items),
            "events": sum(map(len, part.items.values())),
            "requests": {"train": len(part.requests), "val": 0, "test": 0},
        }
        for number, part in enumerate(parts)
    ]
    nothing = {"train": 0, "val": 0, "test": 0}
    return {
        "format": 1,
        "source": "by hand",
        "options": {},
        "seed": 0,
        "order": "time",
        "fields": [
            {"name": "item", "num_embeddings": len(CATEGORY_OF)},
            {"name": "category", "num_embeddings": 4},
            {"name": "action", "num_embeddings": 4},
        ],
        "context": [{"name": "hour", "num_embeddings": 24}],
        "users": sum(size["users"] for size in sizes),
        "events": sum(size["events"] for size in sizes),
        "items": 5,
        "categories": 3,
        "log_users": 0,
        "log_events": 0,
        "duplicates": 0,
        "history": {},
        "requests": {"train": sum(len(part.requests) for part in parts), "val": 0, "test": 0},
        "candidates": nothing,
        "positives": nothing,
        "partitions": sizes,
        "bytes": 0,
        "best_auc": None,
        "fingerprint": "",
        "versions": {},
    }


def write_arrow(path: Path, columns: dict[str, pa.Array]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    batch = pa.record_batch(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _write_part(folder: Path, part: Part) -> None:
    items = [item for history in part.items.values() for item in history]
    counts = [len(history) for history in part.items.values()]
    write_arrow(
        folder / "events.arrow",
        {
            "item": pa.array(items, pa.int32()),
            "category": pa.array([CATEGORY_OF[item] for item in items], pa.int32()),
            "action": pa.array([1 + row % 3 for row in range(len(items))], pa.int32()),
            "time": pa.array(range(len(items)), pa.int64()),
        },
    )
    write_arrow(
        folder / "users.arrow",
        {
            "user": pa.array(list(part.items), pa.int64()),
            "original": pa.array([f"u{user}" for user in part.items]),
            "first_row": pa.array([sum(counts[:i]) for i in range(len(counts))], pa.int64()),
            "count": pa.array(counts, pa.int64()),
        },
    )
    for split, requests in (("train", part.requests), ("val", []), ("test", [])):
        write_arrow(
            folder / f"{split}.arrow",
            {
                "user": pa.array([r.user for r in requests], pa.int64()),
                "end": pa.array([r.end for r in requests], pa.int64()),
                "time": pa.array([r.end for r in requests], pa.int64()),
                "candidates": pa.array([r.candidates for r in requests], pa.list_(pa.int32())),
                "labels": pa.array([r.labels for r in requests], pa.list_(pa.int8())),
                "hour": pa.array([r.hour for r in requests], pa.int32()),
            },
        )
