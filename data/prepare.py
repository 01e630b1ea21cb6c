"""Builds an event store from a source, in bounded memory.

The first pass (``data.scatter``) numbers what the log names and scatters its rows by user; the
second builds one partition after the other. Memory holds the vocabularies and one partition.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from data.build import StoreBuilder
from data.errors import InputError
from data.flat import FlatBuilder, scan
from data.flat_source import FlatSource
from data.ray_safety import find_cluster, shut_out_others
from data.scatter import assign_buckets, scatter
from data.source import Source
from data.store import StoreInfo

Engine = Literal["local", "ray"]
EVENTS_PER_PARTITION = 2_000_000
ROWS_PER_PARTITION = 1_000_000
"""Of a flat store, whose rows have some forty columns."""
MAX_PARTITIONS = 512
"""Each is an open file in the first pass."""
NUM_BUCKETS = 128
"""Of the first pass, which does not know yet how many partitions the log needs. Where they are
more, buckets are split."""


def prepare(
    source: Source | FlatSource,
    out: Path | str,
    *,
    seed: int = 0,
    partitions: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    engine: Engine = "local",
    address: str | None = None,
) -> StoreInfo:
    """Writes the event store of ``source`` to folder ``out``, whole or not at all.

    Args:
        seed: of all random draws. The same log, options and seed give the same bytes; a user's
            requests do not depend on the number of partitions.
        partitions: by default one for every 2 million events, or million rows of a table without
            users. Partitions without users are left out.
        overwrite: replaces a store at ``out`` once the new one is complete.
        progress: shows a progress bar; by default where stderr is a terminal.
        engine: "local" reads and builds in this process, "ray" on all nodes of a Ray cluster, which
            have to see the folder of ``out`` and the log. Both give the same bytes.
        address: of the cluster, as in ``data.ray_engine.cluster``.

    Raises:
        InputError: the log, its options or ``out`` cannot be used, or the disk is full.
    """
    out = Path(out)
    if partitions is not None and not 1 <= partitions <= MAX_PARTITIONS:
        raise InputError(
            f"The number of partitions must be from 1 to {MAX_PARTITIONS}, got {partitions}."
        )
    _check_engine(source, engine, address)
    _check_out(out, overwrite)
    out = out.resolve()  # a link stays, what it points to is replaced
    with _ended_by_exception(), _partial_folder(out) as partial:
        (partial / "scratch").mkdir()
        with _progress(progress) as bars:
            if isinstance(source, FlatSource):
                info = _build_flat(source, partial, seed, partitions, bars)
            elif engine == "ray":
                info = _build_log_on_ray(source, partial, seed, partitions, bars, address)
            else:
                info = _build_log(source, partial, seed, partitions, bars)
        shutil.rmtree(partial / "scratch")
        info.write(partial)
        _publish(partial, out)
    return info


def _build_log(
    source: Source, partial: Path, seed: int, partitions: int | None, bars: Progress
) -> StoreInfo:
    """A store of histories: rows are scattered by user, then built a partition at a time."""
    _check_sides(source)
    bar = bars.add_task("rows read", total=None)
    log, buckets = scatter(
        source,
        partial / "scratch",
        partitions or NUM_BUCKETS,
        lambda rows: bars.advance(bar, rows),
    )
    bars.update(bar, total=log.events)
    builder = StoreBuilder(source, log, partial, seed)
    steps = assign_buckets(log.bucket_rows, partitions, EVENTS_PER_PARTITION)
    for chosen, pieces in bars.track(steps, description="partitions built"):
        builder.add_buckets([buckets[number] for number in chosen], pieces)
    return builder.finish()


def _build_log_on_ray(
    source: Source,
    partial: Path,
    seed: int,
    partitions: int | None,
    bars: Progress,
    address: str | None,
) -> StoreInfo:
    """As ``_build_log``, byte for byte."""
    if address is None:
        shut_out_others()
    else:
        address = find_cluster(address)
    from data import ray_engine  # takes seconds, which the local engine need not wait

    _check_sides(source)
    with ray_engine.cluster(address):
        return ray_engine.build_log(
            source,
            partial,
            seed,
            num_buckets=partitions or NUM_BUCKETS,
            partitions=partitions,
            rows_per_partition=EVENTS_PER_PARTITION,
            bars=bars,
        )


def _check_sides(source: Source) -> None:
    if len(set(source.side)) < len(source.side):
        raise InputError(f"Side columns are named twice: {', '.join(source.side)}. Name each once.")
    for name in source.side:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"Side column {name[:200]!r} must be renamed in the log: it names a file and "
                "parameters, so it has 1 to 100 characters, without . / \\ and control characters."
            )


_NAME = re.compile(r"[^./\\\x00-\x1f\x7f]{1,100}")


def _check_engine(source: Source | FlatSource, engine: Engine, address: str | None) -> None:
    if engine == "local" and address is not None:
        raise InputError(
            f"--address {address} names a Ray cluster, which only --engine ray uses. Add --engine "
            "ray, or leave --address out."
        )
    if engine == "ray" and isinstance(source, FlatSource):
        raise InputError(
            f"--engine ray builds stores of histories; source {source.name} has rows without "
            "users, whose numbers in the log decide their split, so it is read in one go. Use "
            "--engine local."
        )


def _build_flat(
    source: FlatSource, partial: Path, seed: int, partitions: int | None, bars: Progress
) -> StoreInfo:
    """A store of rows without users: each partition is a block of them, in file order."""
    bar = bars.add_task("rows read", total=None)
    scanned = scan(source, partial / "scratch", seed, lambda rows: bars.advance(bar, rows))
    bars.update(bar, total=scanned.rows)
    builder = FlatBuilder(source, scanned, partial, seed)
    count = partitions or -(-scanned.rows // ROWS_PER_PARTITION)
    for block in bars.track(builder.blocks(count), total=count, description="partitions built"):
        builder.add_partition(block)
    return builder.finish()


def _check_out(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "store.json").is_file():
        raise InputError(f"{out} exists and is no event store. Name another folder with --out.")
    if not overwrite:
        raise InputError(
            f"{out} already holds an event store. "
            "Name another folder with --out, or replace it with --force."
        )


@contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    """The folder beside ``out`` in which the store is built; removed if it is not published."""
    _clear_leftovers(out)
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"{out.parent} cannot be written to ({error}). Name another --out."
        ) from error
    try:
        with _held(partial):
            yield partial
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(_disk_full(partial)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _clear_leftovers(out: Path) -> None:
    """Deletes what killed runs for the same store left; names it, and what is to stay."""
    for folder in sorted(out.parent.glob(f"{glob.escape(out.name)}.partial-*")):
        with _held(folder) as free:
            if free:
                print(f"Deleting {folder}, left by a run that was killed.", file=sys.stderr)
                shutil.rmtree(folder, ignore_errors=True)
            else:
                print(f"{folder} stays: another run writes it, or it is not ours.", file=sys.stderr)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Locks a folder; False where another process holds it, or it cannot be locked.

    Process ids come back, in containers all the time; a lock ends with its process.
    """
    with ExitStack() as stack:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError:
            free = False
        yield free


def _publish(partial: Path, out: Path) -> None:
    """Puts the finished store in its place; what was there goes last, or comes back."""
    if not out.exists():
        partial.rename(out)
        return
    old = out.with_name(f"{out.name}.old-{os.getpid()}")
    try:
        out.rename(old)
        partial.rename(out)
    finally:
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(out)


def _disk_full(partial: Path) -> str:
    written = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    free = shutil.disk_usage(partial.parent).free
    return (
        f"The disk of {partial.parent.resolve()} is full: {written:,} bytes were written (now "
        f"removed), {free:,} were left, and more are needed. A store needs up to twice the size of "
        "the log's columns while it is built. Free space, or name a folder elsewhere with --out."
    )


@contextmanager
def _ended_by_exception() -> Iterator[None]:
    """SIGTERM raises, as Ctrl-C does, so that what is half-written is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress(wanted: bool | None) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    shown = sys.stderr.isatty() if wanted is None else wanted
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bars:
        yield bars
