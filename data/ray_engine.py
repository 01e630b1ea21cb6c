"""Builds the store of a log on a Ray cluster: the same files as ``data.prepare`` builds alone.

Ray Data streams the log in: parts of it are read side by side, and what is read is named, sorted
by bucket and written to the scratch folder of the store by whoever is free, with no more waiting in
memory than Ray Data allows. Its blocks come back in the order of the log, so that names are
numbered and events stand as on one machine. Partitions are plain tasks: each reads its buckets from
the scratch folder, which all nodes see, and needs no other.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import signal
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.ipc
from rich.progress import Progress

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported

import ray
import ray.data
import ray.exceptions

import data
from data.build import BuiltPartitions, StoreBuilder
from data.errors import InputError
from data.ray_safety import no_entry
from data.scatter import (
    LogNames,
    ScatteredLog,
    assign_buckets,
    by_bucket,
    columns_change,
    joined_frames,
    numbered,
)
from data.source import FramePart, Source
from data.store import StoreInfo


@dataclass(frozen=True)
class ScatteredBlock:
    """A stretch of the log in the scratch folder: an Arrow file with a record batch a bucket."""

    file: Path
    bucket_rows: np.ndarray
    """(buckets,) int64."""
    first_row: int
    """Events of the log before it."""


def build_log(
    source: Source,
    partial: Path,
    seed: int,
    *,
    num_buckets: int,
    partitions: int | None,
    rows_per_partition: int,
    bars: Progress,
) -> StoreInfo:
    """Writes a store of histories to folder ``partial``, all but store.json.

    Args:
        source: a dataclass that can be pickled.
        partial: seen by all nodes; its subfolder scratch is there.
        num_buckets: of the first pass.
        partitions: wanted; by default one for every ``rows_per_partition`` events.

    Raises:
        InputError: as ``data.prepare.prepare``; or a node does not see the folder.
    """
    source = dataclasses.replace(source)  # without tallies of a store before
    scratch = partial / "scratch"
    with _plain_errors():
        _survey(source, bars)
        log, blocks = _scatter(source, scratch, num_buckets, bars)
        builder = StoreBuilder(source, log, partial, seed)
        steps = assign_buckets(log.bucket_rows, partitions, rows_per_partition)
        everything = ray.put((source, log, blocks, scratch, seed))
        tasks = [
            _build_partitions.remote(everything, number, buckets, pieces)
            for number, (buckets, pieces) in enumerate(steps)
        ]
        for built in _all(tasks, bars):
            builder.adopt(built)
        return builder.finish()


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connects to a Ray cluster, or starts one on this machine; one that the process is already
    connected to is used as it is.

    Args:
        address: HOST:PORT or ray://HOST:PORT; None for this machine alone. ``data.ray_safety``
            has to be asked for either before this module is imported.

    Raises:
        InputError: the cluster does not take this process.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        options |= {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    else:
        # nodes have the libraries, and this package from here
        options |= {"address": address, "runtime_env": {"py_modules": [_package()]}}
    try:
        with _own_signals():
            ray.init(**options)
    except (OSError, RuntimeError, ValueError) as error:
        raise no_entry(address, error) from error
    try:
        yield
    finally:
        ray.shutdown()  # ends what still runs, before its folder is removed


def _survey(source: Source, bars: Progress) -> None:
    """Shows the source what it has to see before the log is read."""
    parts = getattr(source, "survey_parts", list)()
    if parts:
        bar = bars.add_task("rows surveyed", total=None)
        blocks = _stream(source, parts, _read).iter_batches(batch_size=None, batch_format="pyarrow")
        source.survey(_counted(map(pl.from_arrow, blocks), bars, bar))


def _all(tasks: list[ray.ObjectRef], bars: Progress) -> list[Any]:
    """What the tasks return; the first error ends them."""
    bar = bars.add_task("partitions built", total=len(tasks))
    waiting = tasks
    try:
        while waiting:
            done, waiting = ray.wait(waiting)
            ray.get(done)
            bars.advance(bar, len(done))
    except BaseException:
        for task in waiting:
            ray.cancel(task, force=True)
        raise
    return ray.get(tasks)


def _scatter(
    source: Source, scratch: Path, num_buckets: int, bars: Progress
) -> tuple[ScatteredLog, list[ScatteredBlock]]:
    """The first pass over the log."""
    bar = bars.add_task("rows read", total=None)
    whole = [FramePart(_log_name(source), source.event_frames)]
    parts = getattr(source, "event_parts", lambda: whole)()
    written = _stream(source, parts, _read_events)
    written = written.map_batches(
        _scatter_block,
        batch_size=None,
        batch_format="pyarrow",
        fn_args=(source, scratch, num_buckets),
        num_cpus=1,
    )
    names, blocks, rows = LogNames(), [], 0
    schema: pl.Schema | None = None
    for block in written.iter_rows():
        named = {
            name: pl.read_ipc(content)
            for name, content in zip(block["names"], block["contents"], strict=True)
        }
        found = pl.read_ipc(block["schema"]).schema
        if found != (schema or found):
            raise InputError(columns_change(_log_name(source), rows, found, schema))
        schema = found
        names.merge(named)
        bucket_rows = np.array(block["bucket_rows"])
        blocks.append(ScatteredBlock(Path(block["file"]), bucket_rows, rows))
        rows += int(bucket_rows.sum())
        bars.update(bar, completed=rows)
    bars.update(bar, total=rows)
    bucket_rows = sum((block.bucket_rows for block in blocks), np.zeros(num_buckets, np.int64))
    return ScatteredLog.of(names, bucket_rows, source), blocks


def _stream(
    source: Source, parts: Sequence[FramePart], read: Callable[..., Iterator[pa.Table]]
) -> ray.data.Dataset:
    """Blocks of the frames of all parts, in their order."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False  # prepare has its own
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are told by who catches them
    numbers = ray.data.from_items(
        [{"part": number} for number in range(len(parts))], override_num_blocks=len(parts)
    )
    return numbers.map_batches(
        read,
        batch_size=1,
        batch_format="pyarrow",
        fn_args=(source, list(parts)),
        # reading waits for disks; and with the same options as what comes next, Ray Data would make
        # one task of both, so that a log of one file would be worked on by one process
        num_cpus=0.5,
    )


def _read(numbers: pa.Table, source: Source, parts: list[FramePart]) -> Iterator[pa.Table]:
    with _noted():
        for number in numbers["part"].to_pylist():
            for frame in parts[number].frames():
                yield frame.to_arrow()


def _read_events(numbers: pa.Table, source: Source, parts: list[FramePart]) -> Iterator[pa.Table]:
    with _noted():
        for number in numbers["part"].to_pylist():
            part = parts[number]
            for frame in joined_frames(part.frames(), source, part.name):
                yield frame.to_arrow()


def _scatter_block(
    table: pa.Table, source: Source, scratch: Path, num_buckets: int
) -> Iterator[pa.Table]:
    """Writes the rows by bucket; gives one row: where, how many, and what they name."""
    if not table.num_rows:  # of a part without rows
        return
    frame, names = pl.from_arrow(table), LogNames()
    with _noted():
        _check_shared(scratch)
        names.add(frame, source)
    rows, bounds = by_bucket(numbered(frame, source, 1), num_buckets)
    file = scratch / f"{uuid.uuid4().hex}.block"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        empty = pa.RecordBatch.from_pylist([], rows.schema)
        for begin, end in itertools.pairwise(bounds):
            [bucket] = rows.slice(begin, end - begin).combine_chunks().to_batches() or [empty]
            writer.write_batch(bucket)
    named = names.finish()
    yield pa.table(
        {
            "file": [str(file)],
            "bucket_rows": [np.diff(bounds)],
            "schema": [frame.clear().write_ipc(None).getvalue()],
            "names": [list(named)],
            "contents": [[found.write_ipc(None).getvalue() for found in named.values()]],
        }
    )


@ray.remote(scheduling_strategy="SPREAD")
def _build_partitions(
    everything: tuple[Source, ScatteredLog, list[ScatteredBlock], Path, int],
    number: int,
    buckets: list[int],
    pieces: int,
) -> BuiltPartitions:
    """One step of the second pass, in a folder of its own."""
    source, log, blocks, scratch, seed = everything
    _check_shared(scratch)
    # a node that was cut off may still be at the same step
    folder = scratch / f"step-{number:05d}-{uuid.uuid4().hex[:12]}"
    folder.mkdir()
    files = [_gather_bucket(source, blocks, bucket, folder) for bucket in buckets]
    builder = StoreBuilder(source, log, folder, seed)
    builder.add_buckets(files, pieces)
    return builder.built()


def _gather_bucket(
    source: Source, blocks: Sequence[ScatteredBlock], bucket: int, folder: Path
) -> Path:
    """One bucket of all blocks as one Arrow stream, as one machine would have written it."""
    path = folder / f"bucket-{bucket:05d}.arrows"
    writer: pa.RecordBatchStreamWriter | None = None
    with pa.OSFile(str(path), "wb") as sink:
        for block in blocks:
            if not block.bucket_rows[bucket]:
                continue
            with pa.OSFile(str(block.file)) as file:
                frame = pl.from_arrow(pa.ipc.open_file(file).get_batch(bucket))
            if "row" in source.carry:
                frame = frame.with_columns(row=pl.col("row") + block.first_row)
            rows = frame.to_arrow()
            if writer is None:
                writer = pa.ipc.new_stream(sink, rows.schema)
            writer.write_table(rows)
        if writer is not None:
            writer.close()
    return path


def _check_shared(scratch: Path) -> None:
    if not scratch.is_dir():
        raise InputError(
            f"Node {socket.gethostname()} of the Ray cluster does not see {scratch.parent.parent}: "
            "--engine ray needs --out in a folder that all nodes share, such as a network file "
            "system."
        )


def _counted(frames: Iterator[pl.DataFrame], bars: Progress, bar: Any) -> Iterator[pl.DataFrame]:
    for frame in frames:
        bars.advance(bar, frame.height)
        yield frame


def _log_name(source: Source) -> str:
    return str(getattr(source, "path", f"source {source.name}"))


def _package() -> str:
    return str(Path(data.__file__).parent)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray replaces the handler of SIGTERM; ours removes what is half-written."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _noted() -> Iterator[None]:
    """Ray Data adds advice of its own to the message of an error; a note on it stays as it is."""
    try:
        yield
    except InputError as error:
        error.add_note(str(error))
        raise


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What a task raised as if it had been raised here: a message of ours, a full disk."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while isinstance(cause, ray.exceptions.RayError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if isinstance(cause, InputError):
            raise InputError(*getattr(cause, "__notes__", cause.args)) from error
        if isinstance(cause, OSError):
            raise cause from error
        raise
