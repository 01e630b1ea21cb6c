"""Streams CSV files, plain or gzipped, and says where a line is wrong."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import polars as pl
import pyarrow as pa
import pyarrow.csv

from data.errors import InputError
from data.source import TruncatedLine

BLOCK_BYTES = 2**24

TAIL_BYTES = 2**17
"""At the end of a file, in which the last line is compared with those before."""
MIN_LINES = 100
"""Before the last line, to compare it with: by chance a shortest one is rarely the last."""


AS_TEXT = (
    "Repair the line, or, if the column holds ids of letters and digits, read it as text "
    "(source table: --text COLUMN)."
)


def read_delimited(
    file: Path,
    columns: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    skip_lines: int = 0,
    types: dict[str, pa.DataType] | None = None,
    delimiter: str = ",",
    truncated_line: TruncatedLine = "error",
) -> Iterator[pl.DataFrame]:
    """Frames of some 100,000 rows with the chosen columns, in file order: ``read_batches``."""
    for batch in read_batches(
        file,
        columns,
        names=names,
        skip_lines=skip_lines,
        types=types,
        delimiter=delimiter,
        truncated_line=truncated_line,
    ):
        yield pl.from_arrow(batch)


def read_batches(
    file: Path,
    columns: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    skip_lines: int = 0,
    types: dict[str, pa.DataType] | None = None,
    delimiter: str = ",",
    truncated_line: TruncatedLine = "error",
    quotes: bool = True,
    last_cell: Callable[[str], bool] = str.isdecimal,
    way_out: str = AS_TEXT,
    block_bytes: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """Batches of some 100,000 rows with the chosen columns, in file order.

    Args:
        columns: which to read.
        names: of all columns, where the file has no header line.
        skip_lines: at the start of the file, for names other than its header's.
        types: of columns; others are guessed from the first block of 16 MiB.
        truncated_line: ``"skip"`` leaves out a *last* line that is cut.
        quotes: values may be quoted, and may then hold line breaks.
        last_cell: what cells of the last column look like; where all do, one that is shorter than
            the others shows that the file was cut.
        way_out: what a message on a value of the wrong type ends with.
        block_bytes: of the file that a batch is made from, by default BLOCK_BYTES.

    Raises:
        InputError: the file is missing, damaged, has two columns of a wanted name, lines of the
            wrong length or values of the wrong type.
    """
    if not file.is_file():
        raise InputError(f"{file} is no file. Give the path of a CSV file, plain or .gz.")
    if names is None:
        _check_header(file, columns, delimiter)
    cut = _cut_number(file, delimiter, last_cell)
    if cut and truncated_line == "error":
        raise InputError(_cut_file(file, cut))
    bad_lines: list[pa.csv.InvalidRow] = []

    def on_bad_line(row: pa.csv.InvalidRow) -> str:
        bad_lines.append(row)
        return "skip" if truncated_line == "skip" and len(bad_lines) == 1 else "error"

    try:
        with pa.input_stream(str(file), compression="detect") as stream:
            batches = pa.csv.open_csv(
                stream,
                read_options=pa.csv.ReadOptions(
                    block_size=block_bytes or BLOCK_BYTES, column_names=names, skip_rows=skip_lines
                ),
                parse_options=pa.csv.ParseOptions(
                    delimiter=delimiter,
                    quote_char='"' if quotes else False,
                    newlines_in_values=quotes,
                    invalid_row_handler=on_bad_line,
                ),
                convert_options=_conversion(columns, types),
            )
            yield from _all_rows(batches, drop_last_row=cut is not None)
    except pa.ArrowKeyError as error:
        raise InputError(_missing_column(file, columns, delimiter)) from error
    except (OSError, pa.ArrowInvalid) as error:
        if bad_lines:
            raise InputError(_bad_line(file, bad_lines[0])) from error
        raise InputError(_unreadable(file, delimiter, error, way_out)) from error
    if bad_lines and not _locate(file, bad_lines[0].text)[1]:
        raise InputError(_bad_line(file, bad_lines[0]))


def _conversion(
    columns: Sequence[str], types: dict[str, pa.DataType] | None
) -> pa.csv.ConvertOptions:
    return pa.csv.ConvertOptions(
        include_columns=list(columns),
        column_types=types,
        null_values=[""],
        strings_can_be_null=True,
    )


def _all_rows(batches: Iterable[pa.RecordBatch], drop_last_row: bool) -> Iterator[pa.RecordBatch]:
    """Holds one batch back, since only the end tells which is the last."""
    waiting = None
    for batch in batches:
        if waiting is not None:
            yield waiting
        waiting = batch
    if waiting is not None:
        yield waiting.slice(0, waiting.num_rows - 1) if drop_last_row else waiting


def _cut_file(file: Path, number: str) -> str:
    return (
        f"{file}: the last line ends without a line break and its last number, {number!r}, is "
        "shorter than those of all lines before it: the file was probably cut. Fetch it "
        "again, add a line break if the line is whole, or leave it out with "
        "--truncated-line skip."
    )


def first_cells(file: Path, delimiter: str = ",") -> list[str]:
    """The cells of the first line.

    Raises:
        InputError: the file is missing or cannot be read.
    """
    try:
        with open_plain_or_gzip(file) as lines:
            line = lines.readline().decode("utf-8-sig", "replace").rstrip("\r\n")
    except (OSError, EOFError) as error:
        raise InputError(
            f"{file} cannot be read ({error}). Give the path of a CSV file, plain or .gz."
        ) from error
    return [cell.strip('"') for cell in line.split(delimiter)]


def _check_header(file: Path, columns: Sequence[str], delimiter: str) -> None:
    found = first_cells(file, delimiter)
    if repeated := [name for name in columns if found.count(name) > 1]:
        raise InputError(
            f"{file} has several columns named {', '.join(map(repr, repeated))}: {found}. "
            "Rename all but the one that is meant."
        )


def _cut_number(file: Path, delimiter: str, last_cell: Callable[[str], bool]) -> str | None:
    """What is left of the number that ends a plain file, where there is good evidence of a cut.

    A cut gzip file cannot be read to its end, and a line of too few columns is found anyway.
    """
    if file.suffix == ".gz":
        return None
    with file.open("rb") as content:
        content.seek(max(0, file.stat().st_size - TAIL_BYTES))
        lines = content.read().decode("utf-8", "replace").split("\n")[1:]  # the first may be half
    if len(lines) <= MIN_LINES or len({line.count(delimiter) for line in lines}) > 1:
        return None
    *cells, cell = [line.rstrip("\r").split(delimiter)[-1] for line in lines]
    if not all(map(last_cell, [*cells, cell])):
        return None
    lengths = {len(before) for before in cells}
    # columns may have empty cells, which say nothing of the length of a whole one
    shortest = min(lengths - {0}, default=0)
    return cell if len(cell) < shortest and len(cell) not in lengths else None


def open_plain_or_gzip(file: Path) -> IO[bytes]:
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")


def find_line(file: Path, wanted: Callable[[str], bool]) -> tuple[int, bool] | None:
    """Number of the first wanted line, from 1, and whether it is the last one."""
    with open_plain_or_gzip(file) as lines:
        for number, line in enumerate(lines, start=1):
            if wanted(line.decode("utf-8-sig", "replace").rstrip("\r\n")):
                return number, not lines.readline()
    return None


def _locate(file: Path, text: str) -> tuple[int, bool]:
    first = text.partition("\n")[0].rstrip("\r")  # quoted values may span lines
    return find_line(file, lambda line: line == first) or (0, False)


def _bad_line(file: Path, row: pa.csv.InvalidRow) -> str:
    number, is_last = _locate(file, row.text)
    message = (
        f"{file}, line {number:,}: {row.actual_columns} columns where {row.expected_columns} are "
        f"expected: {row.text[:80]!r}. "
    )
    if is_last:
        return message + (
            "It is the last line: the file was probably cut. Fetch it again, or leave the line "
            "out with --truncated-line skip."
        )
    return message + "Repair the file: every line must have the same number of columns."


def _missing_column(file: Path, columns: Sequence[str], delimiter: str) -> str:
    found = first_cells(file, delimiter)
    missing = [name for name in columns if name not in found]
    message = f"{file} has no column {', '.join(map(repr, missing))}; it has {found}."
    return message if len(found) > 1 else f"{message} Name what stands between with --delimiter."


def _unreadable(file: Path, delimiter: str, error: Exception, way_out: str) -> str:
    if file.suffix == ".gz" and isinstance(error, OSError):
        return (
            f"{file} is cut or damaged: it cannot be unpacked to its end ({error}). Fetch it again."
        )
    conversion = re.search(r"column #(\d+): .*? to (\w+).*?invalid value '(.*)'", str(error))
    if conversion is None:
        return f"{file} cannot be read as CSV: {error}. Give a CSV file, plain or .gz."
    index, dtype, value = int(conversion[1]), conversion[2], conversion[3]

    def has_value(line: str) -> bool:
        cells = line.split(delimiter)
        return len(cells) > index and cells[index].strip('" ') == value

    number, _ = find_line(file, has_value) or (0, False)
    return (
        f"{file}, line {number:,}, column {index + 1}: {value!r} is not of type {dtype}, which "
        f"the column has. {way_out}"
    )
