"""First pass over a log: its vocabularies, and its rows scattered into buckets by user.

Memory holds one frame and the vocabularies, never the log.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.ipc

from data.errors import InputError
from data.layout import lay_out
from data.sampling import hash64
from data.source import Source
from data.vocabulary import Vocabulary

FRAME_ROWS = 1_000_000
MAX_ID = 2**63 - 1
ONE = pl.lit(1, pl.Int64)


class LogNames:
    """What a log names, with counts: users, items, and the values of its other columns."""

    def __init__(self) -> None:
        self._found: dict[str, Vocabulary] = {}

    def add(self, frame: pl.DataFrame, source: Source) -> None:
        """Adds a frame of the log."""
        attributes = [name for name in ("category", *source.side) if name in frame.columns]
        item = pl.col("item").alias("original")
        popularity = source.popularity(frame).cast(pl.Int64)
        named = {
            "user": frame.select(original="user", count=ONE),
            "item": frame.select(
                item, ONE.alias("frequency"), popularity.alias("popularity"), *attributes
            ),
        }
        for name in (*attributes, "action"):
            if name in frame.columns:
                named[name] = frame.select(original=name, count=popularity)
        self.merge(named)

    def merge(self, named: dict[str, pl.DataFrame]) -> None:
        """Adds what ``finish`` gave for the stretch of the log that comes next."""
        for name, columns in named.items():
            if name not in self._found:
                sums = ["frequency", "popularity"] if name == "item" else ["count"]
                last = [column for column in columns.columns if column not in ("original", *sums)]
                self._found[name] = Vocabulary(sums=sums, last=last)
            self._found[name].add(columns)

    def finish(self) -> dict[str, pl.DataFrame]:
        """Of each column the values in order of first appearance and what is known of them."""
        return {name: vocabulary.finish() for name, vocabulary in self._found.items()}


@dataclass(frozen=True)
class ScatteredLog:
    """What the first pass leaves for the second, beside the rows in their buckets."""

    bucket_rows: np.ndarray
    """(buckets,) int64."""
    users: pl.DataFrame
    """original, count; in order of first appearance."""
    items: pl.DataFrame
    """original, frequency, popularity, and the last category and side values as in the log; in the
    order of their ids, as the vocabularies."""
    vocabularies: dict[str, pl.DataFrame]
    """category, side columns, action -> original, and its count for popularity."""

    @classmethod
    def of(cls, names: LogNames, bucket_rows: np.ndarray, source: Source) -> ScatteredLog:
        """Gives ids, by what counts for popularity: what comes after training decides none.

        Raises:
            InputError: the log is empty, or no user has as many events as the source needs.
        """
        found = names.finish()
        if not found:
            raise InputError(
                f"The log of source {source.name} is empty: it has no events to prepare."
            )
        users, items = found.pop("user"), found.pop("item")
        if not (users["count"] >= source.min_events).any():
            raise InputError(
                f"No user of the log has {source.min_events} events; the longest history has "
                f"{users['count'].max()}. Use a larger part of the log, or lower the least "
                "number of events that a user must have."
            )
        total = items["popularity"].sum()
        vocabularies = {
            name: lay_out(words, "count", before=total - words["count"].sum())
            for name, words in found.items()
        }
        return cls(bucket_rows, users, lay_out(items, "popularity"), vocabularies)

    @property
    def events(self) -> int:
        return int(self.bucket_rows.sum())


def scatter(
    source: Source, folder: Path, num_buckets: int, advance: Callable[[int], None]
) -> tuple[ScatteredLog, list[Path]]:
    """Reads the log once. ``advance`` is told the number of rows of each frame.

    Returns what the log names, and the buckets: Arrow streams in which all events of a user are in
    file order.

    Raises:
        InputError: the log is empty or too short, or a frame has columns, types or values that
            cannot be.
    """
    names = LogNames()
    # of a source that reads files
    log = getattr(source, "path", f"source {source.name}")
    with _Buckets(folder, num_buckets) as buckets:
        for frame in joined_frames(source.event_frames(), source, log):
            names.add(frame, source)
            first_row = int(buckets.rows.sum()) + 1
            buckets.write(numbered(frame, source, first_row))
            advance(frame.height)
    return ScatteredLog.of(names, buckets.rows, source), buckets.paths


def numbered(frame: pl.DataFrame, source: Source, first_row: int) -> pl.DataFrame:
    """With the events' numbers in the log as column row, where the source asks for them."""
    if "row" not in source.carry:
        return frame
    return frame.with_columns(row=first_row + pl.int_range(pl.len(), dtype=pl.Int64))


def split_bucket(bucket: Path, pieces: int) -> list[Path]:
    """Scatters one bucket again, and deletes it; returns the pieces that have rows."""
    folder = bucket.with_suffix("")
    folder.mkdir()
    with (
        _Buckets(folder, pieces, seed=1) as buckets,
        pa.memory_map(str(bucket)) as file,
        pa.ipc.open_stream(file) as batches,
    ):
        for batch in batches:
            buckets.write(pl.from_arrow(batch))
    bucket.unlink()
    return [path for path, rows in zip(buckets.paths, buckets.rows, strict=True) if rows]


def assign_buckets(
    bucket_rows: np.ndarray, partitions: int | None, rows_per_partition: int
) -> list[tuple[list[int], int]]:
    """(buckets, pieces) of each step of the second pass: some neighbours make one partition, or one
    bucket of a very long log makes several, a piece each. Buckets without rows are in none.
    """
    count = len(bucket_rows)
    wanted = partitions or -(-int(bucket_rows.sum()) // rows_per_partition)
    if wanted > count:
        pieces = [max(1, round(rows / rows_per_partition)) for rows in bucket_rows]
        return [([number], pieces[number]) for number in range(count)]
    bounds = [count * number // wanted for number in range(wanted + 1)]
    return [
        ([number for number in range(begin, end) if bucket_rows[number]], 1)
        for begin, end in itertools.pairwise(bounds)
    ]


class _Buckets(ExitStack):
    """Arrow stream files, by a hash of (seed, user)."""

    def __init__(self, folder: Path, num_buckets: int, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.paths = [folder / f"bucket-{number:05d}.arrows" for number in range(num_buckets)]
        self.rows = np.zeros(num_buckets, np.int64)
        self._writers: list[pa.RecordBatchStreamWriter] = []

    def write(self, frame: pl.DataFrame) -> None:
        table, bounds = by_bucket(frame, len(self.paths), self.seed)
        if not self._writers:
            # a writer does not close its file if its last write fails: the stack does
            files = [self.enter_context(pa.OSFile(str(path), "wb")) for path in self.paths]
            self._writers = [
                self.enter_context(pa.ipc.new_stream(file, table.schema)) for file in files
            ]
        for writer, begin, end in zip(self._writers, bounds[:-1], bounds[1:], strict=True):
            if end > begin:
                writer.write_table(table.slice(begin, end - begin))
        self.rows += np.diff(bounds)


def by_bucket(frame: pl.DataFrame, num_buckets: int, seed: int = 0) -> tuple[pa.Table, np.ndarray]:
    """The rows by bucket, a hash of (seed, user), else as they stand, and the (num_buckets + 1,)
    bounds of the buckets.
    """
    bucket = _hash_users(frame["user"], seed) % np.uint64(num_buckets)
    frame = frame.with_columns(bucket=bucket.astype(np.int32)).sort("bucket", maintain_order=True)
    bounds = np.searchsorted(frame["bucket"].to_numpy(), np.arange(num_buckets + 1))
    return frame.drop("bucket").to_arrow(), bounds


def _hash_users(users: pl.Series, seed: int) -> np.ndarray:
    """(N,) uint64, the same with every version of every library: it decides the partition."""
    if users.dtype == pl.String:
        numbers = np.array([zlib.crc32(user) for user in users.cast(pl.Binary).to_list()])
    else:
        numbers = users.to_numpy()
    return hash64(seed, numbers, np.zeros(1, np.int64), 0)


def joined_frames(
    frames: Iterable[pl.DataFrame], source: Source, log: object
) -> Iterator[pl.DataFrame]:
    """The source's frames, checked, small ones joined and empty ones left out.

    Args:
        frames: of all of the log, or of a part of it.
        log: its name, for messages.
    """
    waiting: list[pl.DataFrame] = []
    schema: pl.Schema | None = None
    ids: list[str] = []
    rows = 0
    for frame in frames:
        if schema is None:
            ids = [name for name in frame.columns if name not in ("time", *source.carry)]
            _check_schema(frame, ids, source, log)
            schema = frame.schema
        elif frame.schema != schema:
            raise InputError(columns_change(log, rows, frame.schema, schema))
        _check_values(frame, ids, rows, log)
        rows += frame.height
        waiting.append(frame)
        if sum(part.height for part in waiting) >= FRAME_ROWS:
            yield pl.concat(waiting)
            waiting = []
    if sum(part.height for part in waiting):
        yield pl.concat(waiting)


def columns_change(log: object, rows: int, found: pl.Schema, before: pl.Schema) -> str:
    """The message on frames that differ, after ``rows`` rows."""
    return (
        f"{log}: the columns change on the way: event {rows + 1:,} and after have "
        f"{dict(found)}, those before {dict(before)}. "
        "Write all files with the same columns and types."
    )


def _check_schema(frame: pl.DataFrame, ids: list[str], source: Source, log: object) -> None:
    wanted = {"user", "item", "time", *source.side, *source.carry} - {"row"}
    if missing := wanted - set(frame.columns):
        raise InputError(f"{log} lacks columns {sorted(missing)}; it has {sorted(frame.columns)}.")
    unknown = set(frame.columns) - wanted - {"category", "action"}
    assert not unknown, f"source {source.name} gives columns it does not declare: {unknown}"
    time = frame["time"].dtype
    assert time == pl.Int64, f"source {source.name} gives time as {time}"
    for name in ids:
        dtype = frame[name].dtype
        if not (dtype.is_integer() or dtype == pl.String):
            raise InputError(
                f"{log}: column {name} holds {dtype}; ids must be integers from 0 to 2**63 - 1, "
                "or text in UTF-8. Numbers outside of that range must be read as text."
            )


def _check_values(frame: pl.DataFrame, ids: list[str], rows_before: int, log: object) -> None:
    """Raises InputError for nulls where none may be, and for ids out of range."""
    for name in ("user", "item", "time"):
        if frame[name].null_count():
            row = rows_before + frame[name].is_null().arg_max() + 1
            raise InputError(
                f"{log}: column {name} is empty in event {row:,} of the log. "
                "Remove such rows: user, item and time must all be known."
            )
    for name in ids:
        column = frame[name]
        if not column.dtype.is_integer() or column.null_count() == len(column):
            continue
        for value in (column.min(), column.max()):
            if not 0 <= value <= MAX_ID:
                row = rows_before + (column == value).arg_max() + 1
                raise InputError(
                    f"{log}: column {name} has id {value} in event {row:,} of the log; "
                    f"integer ids must be from 0 to {MAX_ID} (2**63 - 1). Write them as text."
                )
