"""Frappe's log of app usage in its context, as published for factorization machines: 288,609 rows.

Ten columns of ids a row, a third of the rows positive; no histories: for models of feature
crossing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import polars as pl

from data.errors import InputError
from data.flat_source import FlatSource, random_split
from data.sources.delimited import open_plain_or_gzip

COLUMNS = (
    *("user_id", "item_id", "daytime", "weekday", "is_weekend"),
    *("homework", "cost", "weather", "country", "city"),
)
ROWS_PER_FRAME = 100_000
LABELS = {"1": 1, "0": 0, "-1": 0}
WHAT = (
    "a line of Frappe in libfm format is a label (1; 0 or -1) and 10 cells NUMBER:1 with spaces "
    "between, such as: 1 451:1 4149:1 5041:1 5046:1 5053:1 5055:1 5058:1 5060:1 5069:1 5149:1"
)


@dataclass(frozen=True, kw_only=True)
class Frappe(FlatSource):
    """Files in libfm format, unpacked or .gz: a label and ten cells NUMBER:1 a line, for user, app,
    daytime, weekday, weekend, homework, cost, weather, country and city. Of the three files train,
    validation and test each becomes the split that its name says; fewer files, or --split random,
    are put together and split 7:2:1. Ids are counted in the training rows alone.
    """

    path: tuple[Path, ...]
    """frappe.train.libfm frappe.validation.libfm frappe.test.libfm, or some of them."""
    split: Literal["published", "random"] | None = None
    """published takes the three files as they are. random goes by a hash of the row's number and
    the seed. By default published where all three are given."""

    name: ClassVar[str] = "frappe"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise InputError("path names no file. Give those of Frappe, in libfm format.")
        if self.split == "published" and self._published() is None:
            raise InputError(
                f"The published split needs three files, with train, valid and test in their "
                f"names, one each; given are {', '.join(file.name for file in self.path)}. Give "
                "all three, or split with --split random."
            )
        if self.split_ratio is not None and self._keeps_published():
            raise InputError(
                "split_ratio is given, but the three files are the splits. Leave it out, or add "
                "--split random."
            )

    @property
    def columns(self) -> tuple[str, ...]:
        return COLUMNS

    @property
    def default_ratio(self) -> tuple[int, int, int]:
        return (7, 2, 1)

    @property
    def default_min_count(self) -> int:
        return 1

    def row_frames(self, seed: int) -> Iterator[pl.DataFrame]:
        published = self._published() if self._keeps_published() else None
        first = 0
        for number, file in enumerate(self.path):
            for frame in self._frames(file):
                if published is None:
                    split = random_split(first, frame.height, self.ratio, seed)
                else:
                    split = np.full(frame.height, published[number], np.int8)
                first += frame.height
                yield frame.with_columns(split=pl.Series(split))

    def _keeps_published(self) -> bool:
        return self.split != "random" and self._published() is not None

    def _published(self) -> list[int] | None:
        """Split of each file, where the names say it of all three."""
        found = [
            number
            for file in self.path
            for number, word in enumerate(("train", "valid", "test"))
            if word in file.name
        ]
        return found if len(self.path) == 3 and sorted(found) == [0, 1, 2] else None

    def _frames(self, file: Path) -> Iterator[pl.DataFrame]:
        rows, empty = self._rows(file), True
        while some := list(itertools.islice(rows, ROWS_PER_FRAME)):
            frame = pl.DataFrame(np.array(some, np.int32), schema=["label", *COLUMNS])
            yield frame.with_columns(pl.col("label").cast(pl.Int8))
            empty = False
        if empty:
            raise InputError(f"{file} is empty: it has no rows; {WHAT}.")

    def _rows(self, file: Path) -> Iterator[list[int]]:
        """Label and ids of each line."""
        try:
            with open_plain_or_gzip(file) as lines:
                line, number = lines.readline(), 1
                while line:
                    after = lines.readline()
                    row = _parse(line)
                    if row is not None:
                        yield row
                    elif line.strip() and not (self.truncated_line == "skip" and not after):
                        raise InputError(_bad_line(file, number, line, is_last=not after))
                    line, number = after, number + 1
        except (OSError, EOFError) as error:
            raise InputError(
                f"{file} cannot be read to its end ({error}). Give the path of a whole libfm "
                "file, plain or .gz."
            ) from error


def _parse(line: bytes) -> list[int] | None:
    """Label and ids; None if the line is not of the format."""
    label, *cells = line.decode("utf-8", "replace").split() or [""]
    ids = [cell.partition(":") for cell in cells]
    if label not in LABELS or len(cells) != len(COLUMNS):
        return None
    # at most 9 digits: an int32
    if not all(i.isascii() and i.isdecimal() and len(i) < 10 and v == "1" for i, _, v in ids):
        return None
    return [LABELS[label], *(int(id_) for id_, _, _ in ids)]


def _bad_line(file: Path, number: int, line: bytes, is_last: bool) -> str:
    text = line.decode("utf-8", "replace").rstrip("\r\n")
    message = f"{file}, line {number:,} is not of the format: {text[:120]!r}; {WHAT}."
    if is_last:
        return (
            f"{message} It is the last line: the file was probably cut. Fetch it again, or leave "
            "the line out with --truncated-line skip."
        )
    return f"{message} Repair the file."
