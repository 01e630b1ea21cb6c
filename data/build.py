"""Second pass over a log: one partition after the other, then what the whole store shares."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data.errors import InputError
from data.flat_source import FlatSource
from data.scatter import ScatteredLog, split_bucket
from data.source import SPLITS, Partition, Requests, Source, Split
from data.store import Field, StoredPartition, StoreInfo, write_arrow, write_requests
from data.verify import file_sha256, fingerprint, write_checksums
from data.vocabulary import encode

FileDigest = tuple[int, str]
"""Bytes and SHA-256 of a file, in hexadecimal."""


@dataclass(frozen=True)
class BuiltPartitions:
    """Partitions that another process has written."""

    folder: Path
    partitions: list[StoredPartition]
    duplicates: int
    candidates: dict[Split, int]
    positives: dict[Split, int]
    tallies: object
    """Of the source, where it has any."""
    digests: dict[str, FileDigest]
    """Of the files, by their path in the folder."""


class StoreBuilder:
    """Writes the files of a store from a scattered log. Memory holds one partition."""

    def __init__(self, source: Source, log: ScatteredLog, folder: Path, seed: int) -> None:
        self.source, self.log, self.folder, self.seed = source, log, folder, seed
        self.kept = log.users.filter(pl.col("count") >= source.min_events)
        """Users with rows in the store, by dense id: original, count."""
        self.popularity = np.concatenate([[0], log.items["popularity"].to_numpy()])
        self.partitions: list[StoredPartition] = []
        self.duplicates = 0
        self.candidates = dict.fromkeys(SPLITS, 0)
        self.positives = dict.fromkeys(SPLITS, 0)
        self._digests: dict[str, FileDigest] = {}

    def add_buckets(self, buckets: Sequence[Path], pieces: int) -> None:
        """Writes the partition of some buckets, or those of the pieces of one, and deletes them."""
        if pieces == 1:
            self.add_partition(buckets)
        else:
            [bucket] = buckets
            buckets = split_bucket(bucket, pieces)
            for piece in buckets:
                self.add_partition([piece])
        for path in buckets:  # space for the next ones
            path.unlink()

    def add_partition(self, buckets: Sequence[Path]) -> None:
        """Writes one partition from its users' buckets; none if they hold no kept user."""
        frames = [pl.read_ipc_stream(path) for path in buckets]
        frame = self._encode(pl.concat(frames)) if frames else None
        if frame is not None and frame.height:
            self._write_partition(frame)

    def built(self) -> BuiltPartitions:
        """What the builder that has the whole store must know of this one's partitions."""
        return BuiltPartitions(
            folder=self.folder,
            partitions=self.partitions,
            duplicates=self.duplicates,
            candidates=self.candidates,
            positives=self.positives,
            tallies=getattr(self.source, "tallies", lambda: None)(),
            digests=file_digests(self.folder),
        )

    def adopt(self, built: BuiltPartitions) -> None:
        """Takes over the next partitions, which another builder has written elsewhere."""
        for partition in built.partitions:
            path = f"part-{len(self.partitions):05d}"
            (built.folder / partition.path).rename(self.folder / path)
            self.partitions.append(dataclasses.replace(partition, path=path))
            for file, content in built.digests.items():
                folder, _, name = file.partition("/")
                if folder == partition.path:
                    self._digests[f"{path}/{name}"] = content
        self.duplicates += built.duplicates
        for split in SPLITS:
            self.candidates[split] += built.candidates[split]
            self.positives[split] += built.positives[split]
        if built.tallies is not None:
            self.source.add_tallies(built.tallies)

    def _encode(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The kept users' events, in dense ids, sorted by (user, time), ties in file order."""
        frame = frame.with_columns(encode(frame["user"], self.kept).cast(pl.Int64) - 1)
        frame = frame.filter(pl.col("user") >= 0)
        frame = frame.with_columns(
            encode(frame["item"], self.log.items),
            *(encode(frame[name], words) for name, words in self.log.vocabularies.items()),
        )
        if "category" not in frame.columns:
            frame = frame.with_columns(category=pl.lit(1, pl.Int32))
        return frame.sort("user", "time", maintain_order=True)

    def _write_partition(self, frame: pl.DataFrame) -> None:
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

    def finish(self) -> StoreInfo:
        """Writes items and vocabularies; returns what store.json is to say."""
        self._write_items()
        return self._describe()

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
        for name, values in getattr(self.source, "context_words", dict)().items():
            original = values.rechunk().to_arrow()
            write_arrow(self.folder / "vocabulary" / f"{name}.arrow", {"original": original})

    def _describe(self) -> StoreInfo:
        log, source = self.log, self.source
        words = {"item": log.items, **log.vocabularies}
        names = ["item", "category", *source.side, "action"]
        num_embeddings = {name: words[name].height + 1 for name in names if name in words}
        num_embeddings.setdefault("category", 2)
        counts = self.kept["count"].to_numpy()
        p50, p90, p99 = np.quantile(counts, [0.5, 0.9, 0.99], method="nearest").tolist()
        requests = {split: sum(p.requests[split] for p in self.partitions) for split in SPLITS}
        size, fingerprint = digest(self.folder, self._digests)
        return StoreInfo(
            source=source.name,
            options=options(source),
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
            left_out=getattr(source, "left_out", dict)(),
            fingerprint=fingerprint,
            versions=versions(),
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


def digest(folder: Path, known: Mapping[str, FileDigest] | None = None) -> tuple[int, str]:
    """Bytes of all Arrow files, and the SHA-256 over their names and content. Those of each file go
    to ``checksums.sha256``, for data/verify.py. ``known`` is as in ``file_digests``.
    """
    digests = file_digests(folder, known)
    sums = {name: content for name, (_, content) in digests.items()}
    write_checksums(folder, sums)
    return sum(size for size, _ in digests.values()), fingerprint(sums)


def file_digests(
    folder: Path, known: Mapping[str, FileDigest] | None = None
) -> dict[str, FileDigest]:
    """Of each Arrow file, by its path in the folder, sorted; ``known`` ones are not read."""
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*.arrow"))}
    return {name: (known or {}).get(name) or _file_digest(file) for name, file in files.items()}


def _file_digest(file: Path) -> FileDigest:
    return file.stat().st_size, file_sha256(file)


def versions() -> dict[str, str]:
    """Of the libraries that read the log."""
    return {name: importlib.metadata.version(name) for name in ("polars", "pyarrow", "numpy")}


def options(source: Source | FlatSource) -> dict[str, Any]:
    """The source's configuration in types that JSON has."""
    if not dataclasses.is_dataclass(source):
        return {}
    return json.loads(json.dumps(dataclasses.asdict(source), default=str))
