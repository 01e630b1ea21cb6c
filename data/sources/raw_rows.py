"""Labelled rows of delimited files whose columns are integers and 32-bit ids in hexadecimal.

Shapes: N rows.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from data.errors import InputError
from data.source import TruncatedLine
from data.sources.delimited import find_line, open_plain_or_gzip, read_batches

HEX_ID = re.compile(r"[0-9a-fA-F]{8}")
BLOCK_BYTES = 2**21
"""A block fits a processor's cache; eight times as much takes twice the time."""
_NO_DIGIT = 256


@dataclass(frozen=True, kw_only=True)
class RawFormat:
    """What the lines of a log look like."""

    label: str
    """Column of 0 and 1."""
    integers: tuple[str, ...]
    """Columns of integers of 32 bits, or empty."""
    hexadecimal: tuple[str, ...]
    """Columns of ids of 8 hexadecimal digits, or empty."""
    names: tuple[str, ...] | None
    """Of all columns, where the file has no header line."""
    delimiter: str
    what: str
    """The format in words, for messages."""


def read_rows(
    file: Path, layout: RawFormat, truncated_line: TruncatedLine
) -> Iterator[pl.DataFrame]:
    """Frames in file order: the label (int8), integers (int32) and ids (uint32), null where empty.

    Raises:
        InputError: the file is missing, empty, damaged, or a line is not of the format.
    """
    columns = (layout.label, *layout.integers, *layout.hexadecimal)
    types = {name: pa.int32() for name in (layout.label, *layout.integers)}
    types |= {name: pa.binary() for name in layout.hexadecimal}
    way_out = f"Repair the line: {layout.what}."
    refuse_empty(file, layout)
    rows = 0
    for batch in read_batches(
        file,
        columns,
        names=layout.names,
        types=types,
        delimiter=layout.delimiter,
        truncated_line=truncated_line,
        quotes=False,
        last_cell=may_be_hex,
        way_out=way_out,
        block_bytes=BLOCK_BYTES,
    ):
        rows += batch.num_rows
        frame = {layout.label: _labels(file, layout, batch)}
        frame |= {name: pl.from_arrow(batch.column(name)) for name in layout.integers}
        for name in layout.hexadecimal:
            ids = hex_ids(batch.column(name))
            if ids is None:
                raise InputError(bad_cell(file, layout, name, _is_no_hex, "8 hexadecimal digits"))
            frame[name] = ids
        yield pl.DataFrame(frame)
    if rows == 0:
        raise InputError(_empty(file, layout))


def refuse_empty(file: Path, layout: RawFormat) -> None:
    """Raises InputError for a file of no bytes; one that cannot be read is another's to refuse."""
    with contextlib.suppress(OSError, EOFError), open_plain_or_gzip(file) as content:
        if not content.read(1):
            raise InputError(_empty(file, layout))


def hex_ids(column: pa.Array) -> pl.Series | None:
    """(N,) uint32 of a binary array, null where it is; None unless all values have 8 digits."""
    missing = column.is_null().to_numpy(zero_copy_only=False)
    _, offsets_buffer, data = column.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)
    offsets = offsets[column.offset : column.offset + len(column) + 1]
    if np.any(np.diff(offsets)[~missing] != 8):
        return None
    values = np.zeros(len(column), np.uint32)
    if not missing.all():
        # empty cells take no space: what is left are 8 bytes a value, read as 4 pairs of digits
        pairs = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]].view("<u2")
        digits = _PAIRS[pairs]
        if digits.max() == _NO_DIGIT:
            return None
        values[~missing] = digits.astype(np.uint8).view(">u4")
    return pl.from_arrow(pa.array(values, mask=missing))


def hex_text(values: pl.Series) -> pl.Series:
    """Ids as 8 hexadecimal digits, as the files write them (lower case)."""
    pairs = _DIGITS[values.to_numpy().astype(">u4").view(np.uint8)]
    offsets = np.arange(len(values) + 1) * 8
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(pairs)]
    text = pa.Array.from_buffers(pa.large_string(), len(values), buffers)
    return pl.from_arrow(text).alias(values.name)


def _pairs_of_digits() -> np.ndarray:
    """(2**16,) value of two characters, the first in the low byte; _NO_DIGIT where one is none."""
    nibble = np.full(256, -1)
    for digits, first in (("0123456789", 0), ("abcdef", 10), ("ABCDEF", 10)):
        for value, digit in enumerate(digits, start=first):
            nibble[ord(digit)] = value
    second, first = np.divmod(np.arange(2**16), 256)
    known = (nibble[first] >= 0) & (nibble[second] >= 0)
    return np.where(known, nibble[first] * 16 + nibble[second], _NO_DIGIT).astype(np.uint16)


_PAIRS = _pairs_of_digits()
_DIGITS = np.frombuffer(bytes(range(256)).hex().encode(), "<u2")
"""(256,) the two digits of a byte."""


def _empty(file: Path, layout: RawFormat) -> str:
    return f"{file} is empty: it has no rows. Give the whole file; {layout.what}."


def _labels(file: Path, layout: RawFormat, batch: pa.RecordBatch) -> pl.Series:
    labels = pl.from_arrow(batch.column(layout.label))
    if not labels.is_in([0, 1]).fill_null(False).all():
        raise InputError(
            bad_cell(file, layout, layout.label, lambda cell: cell not in ("0", "1"), "0 or 1")
        )
    return labels.cast(pl.Int8)


def bad_cell(
    file: Path, layout: RawFormat, column: str, bad: Callable[[str], bool], wanted: str
) -> str:
    """The message on the first line of the file whose cell of a column is bad."""
    names: Sequence[str] | None = layout.names
    place = names.index(column) if names else None
    found = ""

    def is_bad(line: str) -> bool:
        nonlocal place, found
        cells = line.split(layout.delimiter)
        if place is None:  # the header
            place = cells.index(column)
            return False
        found = cells[place] if len(cells) > place else ""
        return len(cells) > place and bad(found)

    number, is_last = find_line(file, is_bad) or (0, False)
    cut = " It is the last line: the file may have been cut; fetch it again." if is_last else ""
    return (
        f"{file}, line {number:,}, column {column}: {found[:80]!r} is not {wanted}. "
        f"Repair the line: {layout.what}.{cut}"
    )


def _is_no_hex(cell: str) -> bool:
    return bool(cell) and HEX_ID.fullmatch(cell) is None


def may_be_hex(cell: str) -> bool:
    """A whole or a cut id, or an empty cell."""
    return not cell.strip("0123456789abcdefABCDEF")
