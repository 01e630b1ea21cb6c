"""Builds a flat store: labelled rows without users, in bounded memory.

The first pass counts the values of the training rows and writes the rows to one scratch file; the
second gives ids and writes one partition after the other. Memory holds the vocabularies and one
partition. With hashed ids there are no vocabularies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.ipc

from data.build import digest, options, versions
from data.errors import InputError
from data.flat_source import FlatSource, check_labels, left_out
from data.layout import lay_out
from data.sampling import hash64
from data.source import SPLITS, Requests, Split
from data.store import Field, StoredPartition, StoreInfo, write_arrow, write_requests
from data.vocabulary import Vocabulary, encode

FRAME_ROWS = 500_000
LEFT_OUT = len(SPLITS)
"""The split of rows that keep their number in the log, and are in no split."""
UNKNOWN, MISSING, FIRST = 0, 1, 2
"""Ids: of a value that is rare or not seen in training, of an empty cell, of the first value."""


@dataclass(frozen=True)
class ScannedRows:
    """What the first pass leaves for the second."""

    file: Path
    """Arrow stream of all rows as the source gave them, but hashed columns as ids."""
    rows: int
    vocabularies: dict[str, pl.DataFrame]
    """Column -> original, count of the values that have an id, in the order of their ids; none
    where they are hashed."""
    train_rows: int
    missing: dict[str, int]
    """Column -> training rows without a value."""
    left_out: int
    """Training rows beyond the source's ``training_share``."""


def scan(
    source: FlatSource, scratch: Path, seed: int, advance: Callable[[int], None]
) -> ScannedRows:
    """Reads the rows once. ``advance`` is told the number of rows of each frame.

    Raises:
        InputError: there are no rows, or some that cannot be read.
    """
    counts = {name: Vocabulary(sums=["count"]) for name in source.columns}
    missing = dict.fromkeys(source.columns, 0)
    rows = train_rows = left = 0
    file = scratch / "rows.stream"
    with pa.OSFile(str(file), "wb") as sink:
        writer: pa.RecordBatchStreamWriter | None = None
        for frame in _joined(source.row_frames(seed)):
            if source.training_share < 1:
                frame = _thinned(frame, rows, source.training_share, seed)
                left += frame.filter(pl.col("split") == LEFT_OUT).height
            train = frame.filter(pl.col("split") == SPLITS.index("train"))
            train_rows += train.height
            if source.hash_buckets is not None:
                frame = _hash_columns(frame, source.columns, source.hash_buckets)
            else:
                for name, vocabulary in counts.items():
                    missing[name] += train[name].null_count()
                    vocabulary.add(train.select(original=name, count=pl.lit(1, pl.Int64)))
            table = frame.to_arrow()
            if writer is None:
                writer = pa.ipc.new_stream(sink, table.schema)
            writer.write_table(table)
            rows += frame.height
            advance(frame.height)
        if writer is None:
            raise InputError(f"The log of source {source.name} is empty: it has no rows.")
        writer.close()
    kept = {} if source.hash_buckets is not None else _keep(source, counts, train_rows)
    return ScannedRows(file, rows, kept, train_rows, missing, left)


class FlatBuilder:
    """Writes the files of a flat store from scanned rows. Memory holds one partition."""

    def __init__(self, source: FlatSource, rows: ScannedRows, folder: Path, seed: int) -> None:
        self.source, self.scanned, self.folder, self.seed = source, rows, folder, seed
        self.partitions: list[StoredPartition] = []
        self.first_row = 0
        self.rows = dict.fromkeys(SPLITS, 0)
        self.positives = dict.fromkeys(SPLITS, 0)

    def blocks(self, count: int) -> Iterator[pl.DataFrame]:
        """All rows in ids, cut into ``count`` blocks of almost equal size; none is empty."""
        bounds = [self.scanned.rows * number // count for number in range(count + 1)]
        sizes = np.diff(bounds)
        # read, not mapped: the pages of a map would count as memory up to the size of the log
        with pa.OSFile(str(self.scanned.file)) as file, pa.ipc.open_stream(file) as batches:
            frames = (self._encode(pl.from_arrow(batch)) for batch in batches)
            yield from _cut(frames, sizes[sizes > 0].tolist())

    def add_partition(self, block: pl.DataFrame) -> None:
        """Writes the next partition."""
        path = self.folder / f"part-{len(self.partitions):05d}"
        path.mkdir()
        _write_no_histories(path)
        block = block.with_columns(row=self.first_row + pl.int_range(pl.len(), dtype=pl.Int64))
        self.first_row += block.height
        sizes: dict[Split, int] = {}
        for number, split in enumerate(SPLITS):
            requests = self._requests(block.filter(pl.col("split") == number))
            write_requests(path / f"{split}.arrow", requests)
            sizes[split] = len(requests)
            self.rows[split] += len(requests)
            self.positives[split] += int(requests.labels.sum(dtype=np.int64))
        self.partitions.append(StoredPartition(path=path.name, users=1, events=0, requests=sizes))

    def finish(self) -> StoreInfo:
        """Writes items and vocabularies; returns what store.json is to say.

        Raises:
            InputError: a split without positives or without negatives.
        """
        check_labels(self.rows, self.positives)
        write_arrow(
            self.folder / "items.arrow",
            {
                "original": pa.nulls(2, pa.int64()),
                "category": np.array([0, 1], np.int32),
                "frequency": np.array([0, self.scanned.rows]),
            },
        )
        if self.scanned.vocabularies:
            (self.folder / "vocabulary").mkdir()
        for name, words in self.scanned.vocabularies.items():
            self._write_vocabulary(name, words)
        return self._describe()

    def _encode(self, frame: pl.DataFrame) -> pl.DataFrame:
        if self.source.hash_buckets is not None:
            return frame
        return frame.with_columns(
            _ids(frame[name], words) for name, words in self.scanned.vocabularies.items()
        )

    def _requests(self, rows: pl.DataFrame) -> Requests:
        """One request for each row: nobody's, with one candidate that says nothing."""
        count = rows.height
        return Requests(
            user=np.zeros(count, np.int64),
            end=np.zeros(count, np.int64),
            time=rows["row"].to_numpy(),
            offsets=np.arange(count + 1),
            candidates=np.ones(count, np.int32),
            labels=rows["label"].to_numpy(),
            context={name: rows[name].to_numpy() for name in self.source.columns},
            numbers={name: rows[name].to_numpy() for name in self.source.numbers},
        )

    def _write_vocabulary(self, name: str, words: pl.DataFrame) -> None:
        missing = self.scanned.missing[name]
        unknown = self.scanned.train_rows - missing - words["count"].sum()
        values = self.source.original(name, words["original"])
        original = pl.concat([pl.Series([None, None], dtype=values.dtype), values])
        count = pl.concat([pl.Series([unknown, missing], dtype=pl.Int64), words["count"]])
        write_arrow(
            self.folder / "vocabulary" / f"{name}.arrow",
            {"original": original.rechunk().to_arrow(), "count": count.rechunk().to_numpy()},
        )

    def _describe(self) -> StoreInfo:
        size, fingerprint = digest(self.folder)
        return StoreInfo(
            source=self.source.name,
            options=options(self.source),
            seed=self.seed,
            order="file",
            fields=tuple(Field(name=name, num_embeddings=2) for name in ("item", "category")),
            context=tuple(
                Field(name=name, num_embeddings=self._num_embeddings(name))
                for name in self.source.columns
            ),
            users=1,
            events=0,
            items=1,
            categories=1,
            log_users=0,
            log_events=0,
            duplicates=None,
            history={"p50": 0, "p90": 0, "p99": 0, "max": 0},
            requests=self.rows,
            candidates=self.rows,
            positives=self.positives,
            left_out={"beyond the training share": left} if (left := self.scanned.left_out) else {},
            partitions=tuple(self.partitions),
            bytes=size,
            best_auc=self.source.best_auc(),
            flat=True,
            numbers=self.source.numbers,
            fingerprint=fingerprint,
            versions=versions(),
        )

    def _num_embeddings(self, column: str) -> int:
        if self.source.hash_buckets is not None:
            return FIRST + self.source.hash_buckets
        return FIRST + self.scanned.vocabularies[column].height


def _thinned(frame: pl.DataFrame, first_row: int, share: float, seed: int) -> pl.DataFrame:
    """The frame whose training rows are a share of them; others are ``LEFT_OUT``."""
    split = frame["split"].to_numpy()
    beyond = left_out(split, first_row, share, seed)
    return frame.with_columns(split=pl.Series(np.where(beyond, LEFT_OUT, split).astype(np.int8)))


def _joined(frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Small frames joined: each is counted and written at once."""
    waiting: list[pl.DataFrame] = []
    for frame in frames:
        waiting.append(frame)
        if sum(part.height for part in waiting) >= FRAME_ROWS:
            yield pl.concat(waiting)
            waiting = []
    if sum(part.height for part in waiting):
        yield pl.concat(waiting)


def _cut(frames: Iterator[pl.DataFrame], sizes: Sequence[int]) -> Iterator[pl.DataFrame]:
    """The rows of ``frames`` in frames of ``sizes`` rows."""
    waiting: list[pl.DataFrame] = []
    rows = 0
    for size in sizes:
        while rows < size:
            waiting.append(next(frames))
            rows += waiting[-1].height
        joined = pl.concat(waiting, rechunk=True)
        rows -= size
        waiting = [joined.tail(rows)]
        yield joined.head(size)


def _keep(
    source: FlatSource, counts: dict[str, Vocabulary], train_rows: int
) -> dict[str, pl.DataFrame]:
    """The values of each column that get an id, in the order of their ids."""
    common = pl.col("count") >= (source.min_count or source.default_min_count)
    kept = {name: vocabulary.finish().filter(common) for name, vocabulary in counts.items()}
    return {
        name: lay_out(words, "count", before=train_rows - words["count"].sum())
        for name, words in kept.items()
    }


def _ids(values: pl.Series, words: pl.DataFrame) -> pl.Series:
    """int32 ids."""
    place = encode(values, words)
    ids = pl.when(place > 0).then(place + (FIRST - 1)).otherwise(UNKNOWN)
    ids = pl.when(values.is_null()).then(MISSING).otherwise(ids)
    return pl.select(ids.cast(pl.Int32)).to_series().alias(values.name)


def _hash_columns(frame: pl.DataFrame, columns: Sequence[str], buckets: int) -> pl.DataFrame:
    """Ids from hashes of (value, place of the column), so that no two columns collide alike."""
    hashed = []
    for place, name in enumerate(columns):
        values = frame[name]
        numbers = values.fill_null(0).to_numpy()
        bucket = hash64(0, numbers, np.full(1, place), 0) % np.uint64(buckets)
        ids = np.where(values.is_null().to_numpy(), MISSING, bucket.astype(np.int64) + FIRST)
        hashed.append(pl.Series(name, ids.astype(np.int32)))
    return frame.with_columns(hashed)


def _write_no_histories(path: Path) -> None:
    """The files of a partition whose one user, 0, has no events."""
    none = np.empty(0, np.int32)
    write_arrow(
        path / "events.arrow", {"item": none, "category": none, "time": none.astype(np.int64)}
    )
    zero = np.zeros(1, np.int64)
    write_arrow(
        path / "users.arrow",
        {"user": zero, "original": pa.nulls(1, pa.int64()), "first_row": zero, "count": zero},
    )
