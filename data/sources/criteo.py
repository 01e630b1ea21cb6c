"""Criteo's display advertising logs: a click or none, 13 integers and 26 hashed ids a row.

No users and no histories: for models of feature crossing.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import polars as pl

from data.errors import InputError
from data.flat_source import FlatSource, Preparation, ordered_split, random_split
from data.sources.delimited import open_plain_or_gzip
from data.sources.raw_rows import RawFormat, hex_text, read_rows

INTEGERS = tuple(f"I{number}" for number in range(1, 14))
IDS = tuple(f"C{number}" for number in range(1, 27))
LAYOUT = RawFormat(
    label="label",
    integers=INTEGERS,
    hexadecimal=IDS,
    names=("label", *INTEGERS, *IDS),
    delimiter="\t",
    what="Criteo's lines are a label 0 or 1, 13 integers and 26 ids of 8 hexadecimal digits, with "
    "a tab between two of them and nothing where one is missing",
)
COUNT_BYTES = 2**24

Split = Literal["random", "temporal", "files"]


@dataclass(frozen=True, kw_only=True)
class Criteo(FlatSource):
    """The files as published: train.txt of Kaggle's challenge or day_0.gz ... of the terabyte log,
    whole or in part, unpacked or .gz. A line is a label, 13 integers and 26 ids of 8 hexadecimal
    digits, with tabs between; nothing between two tabs is a missing value.

    ``x1``: integers stay numbers, each id that training has is kept, split 7:2:1. ``x4``: integers
    above 2 become the whole part of their squared logarithm, all are ids then; ids of fewer than
    10 training rows are unknown, split 8:1:1. Ids are counted in the training rows alone.
    """

    path: tuple[Path, ...]
    """One file, or several in order of time, such as day_{0..23}.gz in bash."""
    preparation: Preparation = "x1"
    """x1 keeps integers as numbers, min_count 1, split 7 2 1. x4 makes ids of them by their squared
    logarithm, min_count 10, split 8 1 1."""
    split: Split = "random"
    """random goes by a hash of the row's number and the seed. temporal has the first rows train and
    the last ones test. files does so with whole files, whose numbers are --split-ratio (of 24 days
    22 1 1)."""

    name: ClassVar[str] = "criteo"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise InputError("path names no file. Give train.txt, or the days in order of time.")
        if self.split == "files" and sum(self.ratio) != len(self.path):
            raise InputError(
                f"split_ratio {' '.join(map(str, self.ratio))} is of {sum(self.ratio)} files, but "
                f"{len(self.path)} are given. With --split files it says how many files train, "
                "validate and test."
            )
        if self.split != "random":
            _check_order(self.path)

    @property
    def columns(self) -> tuple[str, ...]:
        return IDS if self.preparation == "x1" else (*INTEGERS, *IDS)

    @property
    def numbers(self) -> tuple[str, ...]:
        return INTEGERS if self.preparation == "x1" else ()

    @property
    def default_ratio(self) -> tuple[int, int, int]:
        return (7, 2, 1) if self.preparation == "x1" else (8, 1, 1)

    @property
    def default_min_count(self) -> int:
        return 1 if self.preparation == "x1" else 10

    def row_frames(self, seed: int) -> Iterator[pl.DataFrame]:
        total = sum(map(count_lines, self.path)) if self.split == "temporal" else 0
        first = 0
        for number, file in enumerate(self.path):
            for frame in read_rows(file, LAYOUT, self.truncated_line):
                count = frame.height
                if self.split == "random":
                    split = random_split(first, count, self.ratio, seed)
                elif self.split == "temporal":
                    split = ordered_split(np.arange(first, first + count), total, self.ratio)
                else:
                    split = ordered_split(np.full(count, number), len(self.path), self.ratio)
                yield self._prepared(frame).with_columns(split=pl.Series(split))
                first += count

    def original(self, column: str, values: pl.Series) -> pl.Series:
        return hex_text(values) if column in IDS else values

    def _prepared(self, frame: pl.DataFrame) -> pl.DataFrame:
        if self.preparation == "x4":
            return frame.with_columns(map(squared_logarithm, INTEGERS))
        return frame.with_columns(pl.col(INTEGERS).cast(pl.Float32).fill_null(float("nan")))


def squared_logarithm(column: str) -> pl.Expr:
    """``floor(ln(x)**2)`` of integers x above 2; others as they are.

    >>> numbers = pl.DataFrame({"x": [None, -1, 0, 2, 3, 20, 1000]})
    >>> numbers.select(squared_logarithm("x"))["x"].to_list()
    [None, -1, 0, 2, 1, 8, 47]
    """
    x = pl.col(column)
    return pl.when(x > 2).then(x.log().pow(2).floor().cast(pl.Int32)).otherwise(x)


def count_lines(file: Path) -> int:
    """Lines of a file, the last one with or without a line break.

    Raises:
        InputError: the file is missing or damaged.
    """
    lines, last = 0, b"\n"
    try:
        with open_plain_or_gzip(file) as content:
            while block := content.read(COUNT_BYTES):
                lines += block.count(b"\n")
                last = block[-1:]
    except (OSError, EOFError) as error:
        raise InputError(
            f"{file} cannot be read to its end ({error}). Give the path of a whole file of "
            "Criteo's log, plain or .gz."
        ) from error
    return lines + (last != b"\n")


def _check_order(files: tuple[Path, ...]) -> None:
    """Raises InputError where numbers in the names say that files are not in order of time."""
    for before, after in itertools.pairwise(files):
        first, second = (list(map(int, re.findall(r"\d+", file.name))) for file in (before, after))
        if len(first) == len(second) and first > second:
            raise InputError(
                f"{after.name} comes after {before.name}, but a split by time takes the files in "
                "the order given. Name them in order of time (in bash: day_{0..23}.gz), or split "
                "with --split random."
            )
