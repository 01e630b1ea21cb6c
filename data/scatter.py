"""First pass over a log: its vocabularies, and its rows scattered into buckets by user.

Memory holds one frame and the vocabularies, never the log.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.ipc

from data.errors import InputError
from data.sampling import hash64
from data.source import Source
from data.vocabulary import Vocabulary

FRAME_ROWS = 1_000_000
MAX_ID = 2**63 - 1


@dataclass(frozen=True)
class ScatteredLog:
    """What the first pass leaves for the second."""

    buckets: list[Path]
    """Arrow streams: all events of a user are in one, in file order."""
    bucket_rows: np.ndarray
    """(buckets,) int64."""
    users: pl.DataFrame
    """original, count; in order of first appearance."""
    items: pl.DataFrame
    """original, frequency, popularity, and the last category and side values as in the log."""
    vocabularies: dict[str, pl.DataFrame]
    """category, side columns, action -> original."""

    @property
    def events(self) -> int:
        return int(self.bucket_rows.sum())


def scatter(
    source: Source, folder: Path, num_buckets: int, advance: Callable[[int], None]
) -> ScatteredLog:
    """Reads the log once. ``advance`` is told the number of rows of each frame.

    Raises:
        InputError: the log is empty, or a frame has columns, types or values that cannot be.
    """
    users = Vocabulary(sums=["count"])
    items: Vocabulary | None = None
    fields: dict[str, Vocabulary] = {}
    attributes: list[str] = []
    with _Buckets(folder, num_buckets) as buckets:
        for frame in _checked_frames(source):
            if items is None:
                attributes = [c for c in ("category", *source.side) if c in frame.columns]
                fields = {c: Vocabulary() for c in (*attributes, "action") if c in frame.columns}
                items = Vocabulary(sums=["frequency", "popularity"], last=attributes)
            users.add(frame.select(original="user", count=pl.lit(1, pl.Int64)))
            items.add(
                frame.select(
                    pl.col("item").alias("original"),
                    pl.lit(1, pl.Int64).alias("frequency"),
                    source.popularity(frame).cast(pl.Int64).alias("popularity"),
                    *attributes,
                )
            )
            for name, vocabulary in fields.items():
                vocabulary.add(frame.select(original=name))
            buckets.write(frame)
            advance(frame.height)
    if items is None:
        raise InputError(f"The log of source {source.name} is empty: it has no events to prepare.")
    return ScatteredLog(
        buckets=buckets.paths,
        bucket_rows=buckets.rows,
        users=users.finish(),
        items=items.finish(),
        vocabularies={name: vocabulary.finish() for name, vocabulary in fields.items()},
    )


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


class _Buckets(ExitStack):
    """Arrow stream files, by a hash of (seed, user)."""

    def __init__(self, folder: Path, num_buckets: int, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.paths = [folder / f"bucket-{number:05d}.arrows" for number in range(num_buckets)]
        self.rows = np.zeros(num_buckets, np.int64)
        self._writers: list[pa.RecordBatchStreamWriter] = []

    def write(self, frame: pl.DataFrame) -> None:
        bucket = _hash_users(frame["user"], self.seed) % np.uint64(len(self.paths))
        frame = frame.with_columns(bucket=bucket.astype(np.int32))
        frame = frame.sort("bucket", maintain_order=True)
        bounds = np.searchsorted(frame["bucket"].to_numpy(), np.arange(len(self.paths) + 1))
        table = frame.drop("bucket").to_arrow()
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


def _hash_users(users: pl.Series, seed: int) -> np.ndarray:
    """(N,) uint64, the same with every version of every library: it decides the partition."""
    if users.dtype == pl.String:
        numbers = np.array([zlib.crc32(user) for user in users.cast(pl.Binary).to_list()])
    else:
        numbers = users.to_numpy()
    return hash64(seed, numbers, np.zeros(1, np.int64), 0)


def _checked_frames(source: Source) -> Iterator[pl.DataFrame]:
    """The source's frames, small ones joined and empty ones left out."""
    waiting: list[pl.DataFrame] = []
    schema: pl.Schema | None = None
    ids: list[str] = []
    rows = 0
    # of a source that reads files
    log = getattr(source, "path", f"source {source.name}")
    for frame in source.event_frames():
        if schema is None:
            ids = [name for name in frame.columns if name not in ("time", *source.carry)]
            _check_schema(frame, ids, source, log)
            schema = frame.schema
        elif frame.schema != schema:
            raise InputError(
                f"{log}: the columns change on the way: event {rows + 1:,} and after have "
                f"{dict(frame.schema)}, those before {dict(schema)}. "
                "Write all files with the same columns and types."
            )
        _check_values(frame, ids, rows, log)
        rows += frame.height
        waiting.append(frame)
        if sum(part.height for part in waiting) >= FRAME_ROWS:
            yield pl.concat(waiting)
            waiting = []
    if sum(part.height for part in waiting):
        yield pl.concat(waiting)


def _check_schema(frame: pl.DataFrame, ids: list[str], source: Source, log: object) -> None:
    wanted = {"user", "item", "time", *source.side, *source.carry}
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
