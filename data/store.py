"""The event store: a folder of memory-mapped Arrow files that holds each history once.

The layout is in ``docs/architecture.md``. Every file is one uncompressed record batch, so every
column is one NumPy view of the map: opening costs nothing, and processes share the page cache.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from pydantic import TypeAdapter

from data.errors import InputError
from data.source import SPLITS, Order, Requests, Split

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Field:
    """A column of ids, for which a model may have tables."""

    name: str
    num_embeddings: int
    """Ids are below it; id 0, "unknown", is counted."""


@dataclass(frozen=True, kw_only=True)
class StoredPartition:
    """Name and size of one partition."""

    path: str
    """Folder name within the store."""
    users: int
    events: int
    requests: dict[Split, int]


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """What ``store.json`` says about a store."""

    format: int = FORMAT
    source: str
    """Name of the source."""
    options: dict[str, Any]
    """Of the source, as given."""
    seed: int
    order: Order
    fields: tuple[Field, ...]
    """item, category, the side columns, and action where the log has it."""
    context: tuple[Field, ...]
    """Context columns of the requests; in a flat store, all columns of ids."""
    users: int
    """Users with rows in the store; dense ids are below it."""
    events: int
    """Rows in the store."""
    items: int
    categories: int
    log_users: int
    """Users of the log, those with too few events for a row included."""
    log_events: int
    duplicates: int | None
    """Events that repeat another one in every column of the store (they are kept); None where
    the order is the file's, since no two positions are the same."""
    history: dict[str, int]
    """Events per user: p50, p90, p99, max."""
    requests: dict[Split, int]
    candidates: dict[Split, int]
    positives: dict[Split, int]
    partitions: tuple[StoredPartition, ...]
    bytes: int
    """Of all Arrow files."""
    best_auc: float | None
    """On the test split, where the source knows the truth and the split is not too small."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Requests that the source could have formed but for these reasons."""
    flat: bool = False
    """Rows of a table without users: each request is a row with one candidate and no history."""
    numbers: tuple[str, ...] = ()
    """Float columns of the requests."""
    fingerprint: str
    """SHA-256 over names and content of all Arrow files."""
    versions: dict[str, str]

    def write(self, folder: Path) -> None:
        text = json.dumps(dataclasses.asdict(self), indent=2)
        (folder / "store.json").write_text(text + "\n")

    @classmethod
    def read(cls, folder: Path) -> StoreInfo:
        """Raises InputError if ``folder`` holds no store, or one of another format."""
        file = folder / "store.json"
        if folder.is_file():
            raise InputError(
                f"{folder} is a file, not an event store. If it is a log, make a store of it "
                f"first: twofold prepare table --path {folder} --user USER --item ITEM --time TIME "
                f"--out stores/{folder.name.split('.')[0]} (the columns of your log in capitals)."
            )
        if not file.is_file():
            what = "has no store.json" if folder.exists() else "does not exist"
            raise InputError(
                f"{folder} {what}, so it is no event store. "
                f"Make one with: twofold prepare SOURCE --out {folder}"
            )
        try:
            content = json.loads(file.read_text())
            found = content.get("format")
        except (ValueError, AttributeError) as error:
            raise InputError(
                f"{file} is not readable ({error}). Prepare the store again."
            ) from error
        if found != FORMAT:
            raise InputError(
                f"{folder} is a store of format {found}; this version reads format {FORMAT}. "
                f"Prepare it again: twofold prepare {content.get('source', 'SOURCE')} "
                f"--out {folder} --force"
            )
        try:
            for name in ("fields", "context"):
                content[name] = tuple(Field(**entry) for entry in content[name])
            content["numbers"] = tuple(content.get("numbers", ()))
            content["partitions"] = tuple(
                StoredPartition(**entry) for entry in content["partitions"]
            )
            info = cls(**content)
            TypeAdapter(cls).validate_python(dataclasses.asdict(info))
            for counts in (info.requests, info.candidates, info.positives):
                _check_splits(counts)
            for partition in info.partitions:
                _check_splits(partition.requests)
            return info
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{file} lacks or has unknown entries ({error}). Prepare the store again."
            ) from error


class EventStore:
    """A prepared log. Holds paths and memory maps only: cheap to open in every process."""

    def __init__(self, path: Path, info: StoreInfo) -> None:
        self.path = path
        self.info = info
        self.partitions = [
            PartitionReader(path / entry.path, entry, info) for entry in info.partitions
        ]

    @classmethod
    def open(cls, path: Path | str) -> EventStore:
        """Maps the store and compares the length of every file with ``store.json``.

        Raises:
            InputError: no store, another format, or files that do not belong to its store.json.
        """
        path = Path(path)
        store = cls(path, StoreInfo.read(path))
        for partition in store.partitions:
            partition.check()
        item = store.info.fields[0]
        _check_length(path / "items.arrow", len(store.items["frequency"]), item.num_embeddings)
        return store

    @property
    def fields(self) -> list[tuple[str, int]]:
        """(name, num_embeddings): item, category, side columns, and action if the log has it."""
        return [(field.name, field.num_embeddings) for field in self.info.fields]

    @property
    def context(self) -> list[tuple[str, int]]:
        """(name, num_embeddings) of the requests' context columns."""
        return [(field.name, field.num_embeddings) for field in self.info.context]

    @property
    def numbers(self) -> list[str]:
        """Names of the requests' float columns."""
        return list(self.info.numbers)

    @property
    def users(self) -> int:
        """Users with rows; dense ids are below it."""
        return self.info.users

    @property
    def flat(self) -> bool:
        """Whether the requests are rows of a table, without users and histories."""
        return self.info.flat

    @cached_property
    def items(self) -> dict[str, np.ndarray]:
        """By item id, (num_embeddings,) each: category and side columns int32, frequency int64."""
        return numpy_columns(read_arrow(self.path / "items.arrow"), exclude=("original",))

    def originals(self, field: str) -> pa.Array:
        """(num_embeddings,) values of a field as in the log, by id; null for id 0, and of a context
        column for id 1, too. A log without categories has none, and no file of them.
        """
        file = self.path / "vocabulary" / "category.arrow"
        if field == "category" and not file.exists():
            return pa.nulls(dict(self.fields)[field], pa.string())
        return self._words(field).column("original")

    def train_counts(self, column: str) -> np.ndarray:
        """(num_embeddings,) int64: training rows of a flat store by id of a context column; those
        of values that are too rare for an id are counted as id 0.
        """
        return self._words(column).column("count").to_numpy()

    def _words(self, field: str) -> pa.RecordBatch:
        if self.flat and self.info.options.get("hash_buckets") is not None:
            raise InputError(
                f"{self.path} was prepared with --hash-buckets, so it does not know which values "
                f"of {field} are behind an id. Prepare it again without."
            )
        file = "items.arrow" if field == "item" else f"vocabulary/{field}.arrow"
        return read_arrow(self.path / file)


class PartitionReader:
    """One partition of a store: NumPy views of its memory maps."""

    def __init__(self, path: Path, sizes: StoredPartition, info: StoreInfo) -> None:
        self.path = path
        self.sizes = sizes
        self._context = [field.name for field in info.context]
        self._numbers = info.numbers

    @cached_property
    def events(self) -> dict[str, np.ndarray]:
        """(events,) each, sorted by (user, time): int32 ids, and time int64."""
        return numpy_columns(read_arrow(self.path / "events.arrow"))

    @cached_property
    def users(self) -> dict[str, np.ndarray]:
        """(users,) int64 each: user (dense id, ascending), first_row, count."""
        return numpy_columns(read_arrow(self.path / "users.arrow"), exclude=("original",))

    @property
    def original_users(self) -> pa.Array:
        """(users,) ids as in the log."""
        return read_arrow(self.path / "users.arrow").column("original")

    def requests(self, split: Split) -> Requests:
        """The split's requests, in the order in which the source formed them."""
        batch = read_arrow(self.path / f"{split}.arrow")
        columns = numpy_columns(batch, exclude=("candidates", "labels"))
        candidates, labels = batch.column("candidates"), batch.column("labels")
        return Requests(
            user=columns["user"],
            end=columns["end"],
            time=columns["time"],
            offsets=candidates.offsets.to_numpy(),
            candidates=candidates.values.to_numpy(),
            labels=labels.values.to_numpy(),
            context={name: columns[name] for name in self._context},
            numbers={name: columns[name] for name in self._numbers},
        )

    def check(self) -> None:
        """Raises InputError if a file's length is not what ``store.json`` says."""
        events = read_arrow(self.path / "events.arrow").num_rows
        _check_length(self.path / "events.arrow", events, self.sizes.events)
        users = read_arrow(self.path / "users.arrow").num_rows
        _check_length(self.path / "users.arrow", users, self.sizes.users)
        for split in SPLITS:
            file = self.path / f"{split}.arrow"
            _check_length(file, read_arrow(file).num_rows, self.sizes.requests[split])


def read_arrow(file: Path) -> pa.RecordBatch:
    """The one record batch of an Arrow IPC file, memory-mapped.

    Raises:
        InputError: the file is missing, cut, or its structure is damaged.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        batch = reader.get_batch(0)
        batch.validate()  # lengths of its buffers; no value is read
        return batch
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"{file} is missing or damaged ({error}). Prepare the store again."
        ) from error


def write_arrow(file: Path, columns: Mapping[str, pa.Array | np.ndarray]) -> None:
    """Writes columns of equal length as one record batch."""
    batch = pa.record_batch({name: pa.array(column) for name, column in columns.items()})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def write_requests(file: Path, requests: Requests) -> None:
    """Writes one split of one partition."""
    offsets = pa.array(requests.offsets, pa.int64())

    def lists(values: np.ndarray, dtype: type) -> pa.Array:
        return pa.LargeListArray.from_arrays(offsets, pa.array(values.astype(dtype, copy=False)))

    columns = {
        "user": requests.user.astype(np.int64, copy=False),
        "end": requests.end.astype(np.int64, copy=False),
        "time": requests.time.astype(np.int64, copy=False),
        "candidates": lists(requests.candidates, np.int32),
        "labels": lists(requests.labels, np.int8),
    }
    for name, values in requests.context.items():
        columns[name] = values.astype(np.int32, copy=False)
    for name, values in requests.numbers.items():
        columns[name] = values.astype(np.float32, copy=False)
    write_arrow(file, columns)


def numpy_columns(batch: pa.RecordBatch, exclude: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Zero-copy views; fails (a mistake of ours) where a column would have to be copied."""
    return {
        name: batch.column(name).to_numpy(zero_copy_only=True)
        for name in batch.schema.names
        if name not in exclude
    }


def _check_splits(counts: Mapping[Split, int]) -> None:
    if counts.keys() != {*SPLITS}:
        raise KeyError(f"counts of {sorted(counts)} where those of {', '.join(SPLITS)} are due")


def _check_length(file: Path, found: int, expected: int) -> None:
    if found != expected:
        raise InputError(
            f"{file} has {found:,} rows, but store.json says {expected:,}: "
            "the files are of different stores. Prepare the store again."
        )
