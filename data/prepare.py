"""Builds an event store from a source, in bounded memory.

The first pass (``data.scatter``) numbers what the log names and scatters its rows by user; the
second builds one partition after the other. Memory holds the vocabularies and one partition.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import importlib.metadata
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from data.errors import InputError
from data.scatter import ScatteredLog, scatter
from data.source import SPLITS, Partition, Requests, Source, Split
from data.store import Field, StoredPartition, StoreInfo, write_arrow, write_requests
from data.vocabulary import encode

EVENTS_PER_PARTITION = 2_000_000
NUM_BUCKETS = 128
"""Of the first pass, which does not know yet how many partitions the log needs."""


def prepare(
    source: Source,
    out: Path | str,
    *,
    seed: int = 0,
    partitions: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> StoreInfo:
    """Writes the event store of ``source`` to folder ``out``, whole or not at all.

    Args:
        seed: of all random draws. The same log, options and seed give the same bytes; a user's
            requests do not depend on the number of partitions.
        partitions: by default one for every 2 million events. Partitions without users are
            left out.
        overwrite: replaces a store at ``out`` once the new one is complete.
        progress: shows a progress bar; by default where stderr is a terminal.

    Raises:
        InputError: the log, its options or ``out`` cannot be used, or the disk is full.
    """
    out = Path(out)
    if partitions is not None and partitions < 1:
        raise InputError(f"The number of partitions must be at least 1, got {partitions}.")
    _check_out(out, overwrite)
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    try:
        with _progress(progress) as bars:
            partial.mkdir(parents=True)
            log = _scatter(source, partial / "scratch", partitions or NUM_BUCKETS, bars)
            builder = _Builder(source, log, partial, seed)
            builder.build(_assign(log, partitions), bars)
        shutil.rmtree(partial / "scratch")
        info = builder.describe()
        info.write(partial)
        _publish(partial, out)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(_disk_full(partial)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return info


def summary_rows(info: StoreInfo) -> list[tuple[str, str]]:
    """(what, value) lines of the table that ``twofold prepare`` ends with."""
    history = info.history
    rows = [
        ("source", info.source),
        ("events", f"{info.events:,} of {info.log_events:,} in the log"),
        ("users", f"{info.users:,} of {info.log_users:,} in the log"),
        ("items", f"{info.items:,}"),
        ("categories", f"{info.categories:,}"),
        ("events per user", "  ".join(f"{name} {value:,}" for name, value in history.items())),
    ]
    rows += [
        (
            f"{split} requests",
            f"{info.requests[split]:,} with {info.candidates[split]:,} candidates, "
            f"{info.positives[split]:,} positive",
        )
        for split in SPLITS
    ]
    if info.duplicates is not None:
        rows.append(("duplicate events (kept)", f"{info.duplicates:,}"))
    if info.best_auc is not None:
        rows.append(("best reachable test AUC", f"{info.best_auc:.4f}"))
    return [
        *rows,
        ("partitions", f"{len(info.partitions):,}"),
        ("bytes", f"{info.bytes:,}"),
        ("fingerprint", info.fingerprint[:16]),
    ]


@dataclass(frozen=True)
class _Task:
    """Buckets that become one partition."""

    buckets: list[Path]
    rows: int


def _scatter(source: Source, scratch: Path, num_buckets: int, bars: Progress) -> ScatteredLog:
    scratch.mkdir()
    bar = bars.add_task("rows read", total=None)
    log = scatter(source, scratch, num_buckets, lambda rows: bars.advance(bar, rows))
    bars.update(bar, total=log.events)
    if not (log.users["count"] >= source.min_events).any():
        raise InputError(
            f"No user of the log has {source.min_events} events; the longest history has "
            f"{log.users['count'].max()}. Use a larger part of the log, or lower the least "
            "number of events that a user must have."
        )
    return log


def _assign(log: ScatteredLog, partitions: int | None) -> list[_Task]:
    """Neighbouring buckets to partitions."""
    count = len(log.buckets)
    wanted = partitions or min(count, -(-log.events // EVENTS_PER_PARTITION))
    bounds = [count * number // wanted for number in range(wanted + 1)]
    return [
        _Task(log.buckets[begin:end], int(log.bucket_rows[begin:end].sum()))
        for begin, end in itertools.pairwise(bounds)
    ]


class _Builder:
    """The second pass: partitions, then what belongs to the whole store."""

    def __init__(self, source: Source, log: ScatteredLog, folder: Path, seed: int) -> None:
        self.source, self.log, self.folder, self.seed = source, log, folder, seed
        self.kept = (
            log.users.filter(pl.col("count") >= source.min_events)
            .with_row_index("user")
            .select(pl.col("user").cast(pl.Int64), "original", "count")
        )
        """Users with rows in the store: dense id, id in the log, number of events."""
        self.popularity = np.concatenate([[0], log.items["popularity"].to_numpy()])
        self.partitions: list[StoredPartition] = []
        self.duplicates = 0
        self.candidates = dict.fromkeys(SPLITS, 0)
        self.positives = dict.fromkeys(SPLITS, 0)

    def build(self, tasks: list[_Task], bars: Progress) -> None:
        bar = bars.add_task("partitions built", total=len(tasks))
        for task in tasks:
            frame = self._read(task) if task.rows else None
            if frame is not None and frame.height:
                self._build_partition(frame)
            for bucket in task.buckets:
                bucket.unlink()
            bars.advance(bar)
        self._write_items()

    def _read(self, task: _Task) -> pl.DataFrame:
        """The kept users' events, in dense ids, sorted by (user, time), ties in file order."""
        frame = pl.concat(
            [pl.read_ipc_stream(path) for path in task.buckets if path.stat().st_size]
        )
        users = self.kept.select("user", "original")
        frame = frame.rename({"user": "original"}).join(
            users, on="original", how="inner", maintain_order="left"
        )
        frame = frame.drop("original").with_columns(
            encode(frame["item"], self.log.items),
            *(encode(frame[name], words) for name, words in self.log.vocabularies.items()),
        )
        if "category" not in frame.columns:
            frame = frame.with_columns(category=pl.lit(1, pl.Int32))
        return frame.sort("user", "time", maintain_order=True)

    def _build_partition(self, frame: pl.DataFrame) -> None:
        path = self.folder / f"part-{len(self.partitions):05d}"
        path.mkdir()
        row_user = frame["user"].to_numpy()
        first_row = np.flatnonzero(np.diff(row_user, prepend=-1))
        user, count = row_user[first_row], np.diff(first_row, append=frame.height)
        stored = ["item", "category", *self.source.side, "action", "time"]
        stored = [name for name in stored if name in frame.columns]
        if self.source.order == "time":
            hashes = frame.select("user", *stored).hash_rows()
            self.duplicates += frame.height - hashes.n_unique()
        else:
            position = np.arange(frame.height) - np.repeat(first_row, count)
            frame = frame.with_columns(time=pl.Series(position, dtype=pl.Int64))
        events = {name: frame[name].to_numpy() for name in frame.columns if name != "user"}
        original = self.kept["original"].gather(user)
        partition = Partition(events, user, first_row, count, original)

        write_arrow(path / "events.arrow", {name: events[name] for name in stored})
        write_arrow(
            path / "users.arrow",
            {
                "user": user,
                "original": original.to_arrow(),
                "first_row": first_row,
                "count": count,
            },
        )
        requests = self._write_requests(path, partition)
        self.partitions.append(
            StoredPartition(path=path.name, users=len(user), events=frame.height, requests=requests)
        )

    def _write_requests(self, path: Path, partition: Partition) -> dict[Split, int]:
        """Forms, checks and writes the requests; returns their number by split."""
        formed = self.source.requests(partition, self.popularity, self.seed)
        for split in SPLITS:
            requests = formed.get(split) or empty_requests(self.source.context)
            _check_requests(requests, partition, len(self.popularity))
            write_requests(path / f"{split}.arrow", requests)
            self.candidates[split] += len(requests.candidates)
            self.positives[split] += int(requests.labels.sum(dtype=np.int64))
        return {split: len(formed[split]) if split in formed else 0 for split in SPLITS}

    def _write_items(self) -> None:
        items = self.log.items
        columns: dict[str, Any] = {"original": _with_unknown(items["original"], None)}
        for name in ("category", *self.source.side):
            if name in items.columns:
                ids = encode(items[name], self.log.vocabularies[name])
            else:
                ids = pl.Series(np.ones(items.height, np.int32))
            columns[name] = _with_unknown(ids, 0)
        columns["frequency"] = _with_unknown(items["frequency"], 0)
        write_arrow(self.folder / "items.arrow", columns)
        (self.folder / "vocabulary").mkdir()
        for name, words in self.log.vocabularies.items():
            original = _with_unknown(words["original"], None)
            write_arrow(self.folder / "vocabulary" / f"{name}.arrow", {"original": original})

    def describe(self) -> StoreInfo:
        """The finished store's ``store.json``."""
        log, source = self.log, self.source
        words = {"item": log.items, **log.vocabularies}
        names = ["item", "category", *source.side, "action"]
        num_embeddings = {name: words[name].height + 1 for name in names if name in words}
        num_embeddings.setdefault("category", 2)
        counts = self.kept["count"].to_numpy()
        p50, p90, p99 = np.quantile(counts, [0.5, 0.9, 0.99], method="nearest").tolist()
        requests = {split: sum(p.requests[split] for p in self.partitions) for split in SPLITS}
        size, fingerprint = _digest(self.folder)
        return StoreInfo(
            source=source.name,
            options=_options(source),
            seed=self.seed,
            order=source.order,
            fields=tuple(
                Field(name=name, num_embeddings=num_embeddings[name])
                for name in names
                if name in num_embeddings
            ),
            context=tuple(Field(name=n, num_embeddings=rows) for n, rows in source.context.items()),
            users=self.kept.height,
            events=int(counts.sum()),
            items=log.items.height,
            categories=num_embeddings["category"] - 1,
            log_users=log.users.height,
            log_events=log.events,
            duplicates=self.duplicates if source.order == "time" else None,
            history={"p50": p50, "p90": p90, "p99": p99, "max": int(counts.max())},
            requests=requests,
            candidates=self.candidates,
            positives=self.positives,
            partitions=tuple(self.partitions),
            bytes=size,
            best_auc=source.best_auc(),
            fingerprint=fingerprint,
            versions={n: importlib.metadata.version(n) for n in ("polars", "pyarrow", "numpy")},
        )


def empty_requests(context: dict[str, int]) -> Requests:
    """No requests."""
    none = np.empty(0, np.int64)
    return Requests(
        user=none,
        end=none,
        time=none,
        offsets=np.zeros(1, np.int64),
        candidates=np.empty(0, np.int32),
        labels=np.empty(0, np.int8),
        context={name: np.empty(0, np.int32) for name in context},
    )


def _check_requests(requests: Requests, partition: Partition, num_items: int) -> None:
    """Asserts what a source owes, and raises InputError where a history leaks."""
    index = np.searchsorted(partition.user, requests.user)
    first_row = partition.first_row[index]
    end = requests.end
    assert np.array_equal(partition.user[index], requests.user), "request of an unknown user"
    assert np.all((first_row <= end) & (end <= first_row + partition.count[index]))
    assert len(requests.offsets) == len(requests) + 1
    assert requests.offsets[0] == 0
    assert requests.offsets[-1] == len(requests.candidates) == len(requests.labels)
    assert np.all(np.diff(requests.offsets) > 0), "request without candidates"
    assert np.all((requests.candidates > 0) & (requests.candidates < num_items))
    assert np.all((requests.labels == 0) | (requests.labels == 1))

    nonempty = np.flatnonzero(end > first_row)
    last_time = partition.events["time"][end[nonempty] - 1]
    leaks = nonempty[last_time >= requests.time[nonempty]]
    if len(leaks):
        leak = leaks[0]
        row = end[leak] - first_row[leak]
        raise InputError(
            f"Leak: a request of user {partition.original[int(index[leak])]} at time "
            f"{requests.time[leak]} has a history that ends with their event {row:,} of time "
            f"{partition.events['time'][end[leak] - 1]}. Every event of a history must be earlier "
            "than the request."
        )


def _with_unknown(values: pl.Series, unknown: int | None) -> Any:
    """Arrow array with a row for id 0 in front."""
    return pl.concat([pl.Series([unknown], dtype=values.dtype), values]).rechunk().to_arrow()


def _digest(folder: Path) -> tuple[int, str]:
    """Bytes of all Arrow files, and the SHA-256 over their names and content."""
    total, digest = 0, hashlib.sha256()
    for file in sorted(folder.rglob("*.arrow")):
        digest.update(file.relative_to(folder).as_posix().encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
        total += file.stat().st_size
    return total, digest.hexdigest()


def _options(source: Source) -> dict[str, Any]:
    """The source's configuration in types that JSON has."""
    if not dataclasses.is_dataclass(source):
        return {}
    return json.loads(json.dumps(dataclasses.asdict(source), default=str))


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


def _publish(partial: Path, out: Path) -> None:
    """Puts the finished store in its place; what was there goes last."""
    if not out.exists():
        partial.rename(out)
        return
    old = out.with_name(f"{out.name}.old-{os.getpid()}")
    out.rename(old)
    partial.rename(out)
    shutil.rmtree(old)


def _disk_full(partial: Path) -> str:
    written = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    free = shutil.disk_usage(partial.parent).free
    return (
        f"The disk of {partial.parent.resolve()} is full: {written:,} bytes were written (now "
        f"removed), {free:,} were left, and more are needed. A store needs up to twice the size of "
        "the log's columns while it is built. Free space, or name a folder elsewhere with --out."
    )


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
