"""Any log in CSV or Parquet files: name its columns.

With a label column every event is a labelled candidate, and the answers to earlier ones are part
of the history. Without one the next events are predicted, against negatives drawn by popularity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet

from data.errors import InputError
from data.sampling import add_negatives
from data.source import FramePart, Order, Partition, Requests, Split
from data.sources.delimited import TruncatedLine, read_delimited

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
BATCH_ROWS = 500_000
RESERVED = {
    *("user", "item", "time", "category", "action", "label", "row", "recency", "gap"),
    *("original", "frequency", "popularity", "bucket"),
}
"""Names of columns in the store and on the way to it."""
Types = dict[str, pa.DataType]
"""Of CSV columns."""
MAX_SAMPLES = 4_000_000
"""Times kept to place the splits: all of a smaller log, every second, fourth ... of a larger."""


@dataclass(frozen=True, kw_only=True)
class TableSource:
    """Any log in CSV or Parquet: one file, a folder of them, or a pattern such as 'log/*.csv'."""

    path: Path
    """File, folder or pattern: .csv, .csv.gz, .tsv, .tsv.gz (with a header line) or .parquet."""
    user: str = "user"
    """Column of the user's id."""
    item: str = "item"
    """Column of the item's id."""
    time: str = "time"
    """Column of the time: integers in any unit, dates or timestamps (kept as microseconds)."""
    category: str | None = None
    """Column of the item's category."""
    action: str | None = None
    """Column that says what the user did (view, buy ...); by default the label, if there is one."""
    label: str | None = None
    """Column of 0 and 1: whether the user accepted the item. Makes every event a candidate."""
    side: tuple[str, ...] = ()
    """Columns of further item attributes (brand, seller ...)."""
    text: tuple[str, ...] = ()
    """CSV columns to read as text although they look like numbers."""
    delimiter: str | None = None
    """Between CSV columns; by default a comma, in .tsv a tab."""
    truncated_line: TruncatedLine = "error"
    """What to do with a last CSV line that is cut: stop with an error, or skip the line."""
    sort: bool = False
    """Sort each user's events by time; without it a log that is not in order is refused."""
    negatives: int = 2
    """Negatives for each positive; only without a label."""
    min_history: int | None = None
    """Earlier events that a request must have; by default 0 with a label, 1 without."""
    val_fraction: float = 0.1
    """Share of events, by time, in the validation split."""
    test_fraction: float = 0.1
    """Share of events, by time, in the test split: the last ones."""
    val_start: int | None = None
    """Time from which on events belong to validation, in place of --val-fraction; of dates, in
    microseconds since 1970."""
    test_start: int | None = None
    """Time from which on events belong to test, in place of --test-fraction."""

    name: ClassVar[str] = "table"
    context: ClassVar[dict[str, int]] = {}
    min_events: ClassVar[int] = 1
    order: ClassVar[Order] = "time"

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise ValueError(f"negatives must be at least 1, got {self.negatives}.")
        if self.min_history is not None and self.min_history < 0:
            raise ValueError(f"min_history must not be negative, got {self.min_history}.")
        fractions = (self.val_fraction, self.test_fraction)
        if min(fractions) < 0 or sum(fractions) >= 1:
            raise ValueError(
                "val_fraction and test_fraction must not be negative and leave something to "
                f"training, got {self.val_fraction} and {self.test_fraction}."
            )
        if (self.val_start is None) != (self.test_start is None):
            raise ValueError("Give both val_start and test_start, or neither.")
        if self.val_start is not None and self.val_start > self.test_start:
            raise ValueError(
                f"val_start must not be after test_start, got {self.val_start}, {self.test_start}."
            )
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ValueError(f"delimiter must be one character, got {self.delimiter!r}.")
        if unknown := set(self.text) - set(self._columns()):
            raise ValueError(
                f"text names columns {sorted(unknown)} that are not used; "
                f"used are {self._columns()}."
            )
        if taken := RESERVED & set(self.side):
            raise ValueError(f"Side columns {sorted(taken)} must be renamed: the names are in use.")

    @property
    def carry(self) -> tuple[str, ...]:
        return ("row", "label") if self.label else ("row",)

    @cached_property
    def split_starts(self) -> tuple[int, int]:
        """First times of validation and test."""
        return self._place_splits(frame for part in self.survey_parts() for frame in part.frames())

    def survey_parts(self) -> list[FramePart]:
        """The times of all files; none where both starts are given."""
        if self.val_start is not None:
            return []
        return self._parts([self.time], self._file_times)

    def survey(self, frames: Iterable[pl.DataFrame]) -> None:
        """Places the splits by frames that were read elsewhere."""
        self.__dict__["split_starts"] = self._place_splits(frames)

    def _place_splits(self, frames: Iterable[pl.DataFrame]) -> tuple[int, int]:
        if self.val_start is not None and self.test_start is not None:
            return self.val_start, self.test_start
        times = np.sort(_sample(frame["time"].drop_nulls() for frame in frames))
        test = len(times) - int(len(times) * self.test_fraction)
        val = test - int(len(times) * self.val_fraction)
        never = np.iinfo(np.int64).max
        return tuple(int(times[i]) if i < len(times) else never for i in (val, test))

    def event_frames(self) -> Iterator[pl.DataFrame]:
        for part in self.event_parts():
            yield from part.frames()

    def event_parts(self) -> list[FramePart]:
        """One of each file."""
        return self._parts(self._columns(), self._file_events)

    def _file_events(self, file: Path, types: Types) -> Iterator[pl.DataFrame]:
        row = 0
        for frame in self._file_frames(file, self._columns(), types):
            events = {
                "user": frame[self.user],
                "item": frame[self.item],
                "time": pl.Series(self._times(frame, file, row), dtype=pl.Int64),
                **{name: _attribute(frame[name]) for name in self.side},
            }
            if self.category:
                events["category"] = _attribute(frame[self.category])
            if self.label:
                events["label"] = events["action"] = self._labels(frame[self.label], file, row)
            if self.action:
                events["action"] = _attribute(frame[self.action])
            yield pl.DataFrame(events)
            row += frame.height

    def popularity(self, frame: pl.DataFrame) -> pl.Expr:
        return pl.col("time") < self.split_starts[0]

    def requests(
        self, partition: Partition, popularity: np.ndarray, seed: int
    ) -> dict[Split, Requests]:
        """Events of one user and time share a history, so they share a request."""
        if not self.sort:
            self._check_sorted(partition)
        item, time = partition.events["item"], partition.events["time"]
        first = np.flatnonzero(partition.history_end() == np.arange(len(time)))
        user = partition.user_index()[first]
        requests = Requests(
            user=partition.user[user],
            end=first,
            time=time[first],
            offsets=np.append(first, len(time)),
            candidates=item,
            labels=partition.events["label"] if self.label else np.ones(len(item), np.int8),
        )
        least = self.min_history if self.min_history is not None else (0 if self.label else 1)
        requests = requests.select(first - partition.first_row[user] >= least)
        if not self.label:
            requests = self._with_negatives(requests, partition, popularity, seed)
        val, test = self.split_starts
        return {
            "train": requests.select(requests.time < val),
            "val": requests.select((requests.time >= val) & (requests.time < test)),
            "test": requests.select(requests.time >= test),
        }

    def best_auc(self) -> None:
        return None

    def _with_negatives(
        self, positives: Requests, partition: Partition, popularity: np.ndarray, seed: int
    ) -> Requests:
        """Negatives are not among the items of the request's own time."""
        counts = np.diff(positives.offsets)
        request_of = np.repeat(np.arange(len(positives)), counts)
        first_row = partition.first_row[np.searchsorted(partition.user, positives.user)]
        # the positives of a request are the events from its end on
        within = np.arange(len(request_of)) - positives.offsets[request_of]
        return add_negatives(
            positives,
            partition,
            popularity,
            negatives=self.negatives,
            seed=seed,
            slot=(positives.end - first_row)[request_of] + within,
            group=request_of,
            excluded_group=request_of,
            excluded_item=positives.candidates,
        )

    def _columns(self) -> list[str]:
        named = (self.user, self.item, self.time, self.category, self.action, self.label)
        return list(dict.fromkeys(name for name in (*named, *self.side) if name is not None))

    def _files(self) -> list[Path]:
        if self.path.is_dir():
            files = [file for file in self.path.iterdir() if file.name.endswith(SUFFIXES)]
        else:
            files = list(self.path.parent.glob(self.path.name)) or [self.path]
        if not files:
            raise InputError(f"{self.path} holds no file that ends in {', '.join(SUFFIXES)}.")
        return sorted(files)

    def _parts(
        self, columns: list[str], read: Callable[[Path, Types], Iterator[pl.DataFrame]]
    ) -> list[FramePart]:
        """One of each file, in the order of the files' names. CSV columns have the types that the
        first rows show, of the first file that has a value there.
        """
        parts = []
        types: Types = dict.fromkeys(self.text, pa.large_string())
        files = self._files()
        for file in files:
            if not file.exists():
                raise InputError(f"{file} does not exist. Give a file, a folder or a pattern.")
            parts.append(FramePart(str(file), partial(read, file, types)))
            known = file == files[-1] or types.keys() >= {*columns}  # for the files that follow
            if not known and not file.name.endswith(".parquet"):
                frames = self._file_frames(file, columns, types)
                first = next((frame for frame in frames if frame.height), None)
                types = (_known_types(first) if first is not None else {}) | types
        return parts

    def _file_frames(self, file: Path, columns: list[str], types: Types) -> Iterator[pl.DataFrame]:
        """The chosen columns, as they are in the file."""
        if file.name.endswith(".parquet"):
            yield from _read_parquet(file, columns)
            return
        frames = read_delimited(
            file,
            columns,
            types=types,
            delimiter=self.delimiter or ("\t" if ".tsv" in file.suffixes else ","),
            truncated_line=self.truncated_line,
        )
        yield from (frame for frame in frames if frame.height)

    def _file_times(self, file: Path, types: Types) -> Iterator[pl.DataFrame]:
        row = 0
        for frame in self._file_frames(file, [self.time], types):
            yield pl.DataFrame({"time": pl.Series(self._times(frame, file, row), dtype=pl.Int64)})
            row += frame.height

    def _times(self, frame: pl.DataFrame, file: Path, row: int) -> pl.Series:
        """int64 times; a null stays null, for the builder to name. ``row``: rows before."""
        time, where = frame[self.time], f"{file}: column {self.time}"
        if time.dtype == pl.String:
            # 01/02/2026 is a day of January or of February
            if (wrong := ~time.str.contains(r"^\d{4}[-/]")).any():
                at = wrong.arg_max()
                raise InputError(
                    f"{where}, row {row + at + 1:,}: time {time[at]!r} is no date that "
                    "begins with the year. Write ISO dates (2026-01-31 12:00:00) or integers."
                )
            try:
                time = time.str.to_datetime(time_unit="us")
            except pl.exceptions.PolarsError as error:
                raise InputError(
                    f"{where} is text that is no date ({str(error).splitlines()[0]}). "
                    "Write ISO dates (2026-01-31 12:00:00) or integers."
                ) from error
        if time.dtype in (pl.Date, pl.Datetime):
            return time.dt.epoch("us")
        if time.dtype.is_float():
            wrong = ~(time.is_finite() & (time == time.floor())).fill_null(True)
            if wrong.any():
                at = wrong.arg_max()
                raise InputError(
                    f"{where}, row {row + at + 1:,}: time {time[at]} is no whole "
                    "number. Write times as integers (of a finer unit, if there are fractions) "
                    "or dates."
                )
        elif not (time.dtype.is_integer() or time.dtype == pl.Null):
            raise InputError(
                f"{where} holds {time.dtype}; times are integers, dates or timestamps."
            )
        try:
            return time.cast(pl.Int64)
        except pl.exceptions.InvalidOperationError as error:
            raise InputError(f"{where} has times above 2**63 - 1. Use a coarser unit.") from error

    def _labels(self, label: pl.Series, file: Path, row: int) -> pl.Series:
        """int8 labels. ``row``: rows before."""
        if label.dtype.is_numeric() or label.dtype == pl.Boolean:
            label = label.cast(pl.Float64)
            wrong = ~label.is_in([0.0, 1.0]).fill_null(False)
            if not wrong.any():
                return label.cast(pl.Int8)
            at = wrong.arg_max()
        else:
            at = 0
        raise InputError(
            f"{file}: column {label.name}, row {row + at + 1:,}: label {label[at]!r} is not 0 "
            "or 1. Write labels as 0 and 1, and leave out rows without an answer."
        )

    def _check_sorted(self, partition: Partition) -> None:
        """Raises InputError unless the sort by time kept each user's rows in the log's order."""
        row, user = partition.events["row"], partition.user_index()
        late = np.flatnonzero((row[1:] < row[:-1]) & (user[1:] == user[:-1]))
        if len(late):
            at = late[0]
            raise InputError(
                f"{self.path} is not in order of time: row {row[at]:,} of user "
                f"{partition.original[int(user[at])]} is earlier than their row {row[at + 1]:,}. "
                "Sort each user's events with --sort, or sort the log."
            )


def _read_parquet(file: Path, columns: list[str]) -> Iterator[pl.DataFrame]:
    try:
        with pa.parquet.ParquetFile(file) as reader:
            found = reader.schema_arrow.names
            if missing := [name for name in columns if name not in found]:
                raise InputError(
                    f"{file} has no column {', '.join(map(repr, missing))}; it has {found}."
                )
            for batch in reader.iter_batches(BATCH_ROWS, columns=columns):
                frame = pl.from_arrow(batch)
                yield frame.with_columns(pl.col(pl.Categorical).cast(pl.String))
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{file} is no complete Parquet file ({error}). Fetch or write it again."
        ) from error


def _known_types(frame: pl.DataFrame) -> dict[str, pa.DataType]:
    schema = frame.head(0).to_arrow().schema
    return {field.name: field.type for field in schema if not pa.types.is_null(field.type)}


def _attribute(values: pl.Series) -> pl.Series:
    """An optional column, which may be empty in all the rows that its type was guessed from."""
    return values.cast(pl.String) if values.dtype == pl.Null else values


def _sample(frames: Iterable[pl.Series]) -> np.ndarray:
    """Every k-th time of the log, k the least power of two that fits MAX_SAMPLES."""
    sample, stride, position = np.empty(0, np.int64), 1, 0
    for times in frames:
        sample = np.append(sample, times.to_numpy()[-position % stride :: stride])
        position += len(times)
        while len(sample) > MAX_SAMPLES:
            sample, stride = sample[::2], 2 * stride
    return sample
