"""Checkpoints of a run: written whole or not at all, checked when read, in the background.

Tables and optimizer states go through ``torch.distributed.checkpoint``, so that another world size
or plan can load them. Layout, in RUN/checkpoints or behind a URL (``storage.py``)::

    step-00000120/   one complete checkpoint: DCP's files, position.json and manifest.json, which
                     names size and SHA-256 of all others
    last, best       which of them
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import datetime
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata

from data.errors import InputError
from trainer.checkpoint.background import in_thread
from trainer.checkpoint.digests import Digest, digest_of, digest_of_stream
from trainer.checkpoint.position import Position
from trainer.checkpoint.safe_reading import SafePlanner
from trainer.checkpoint.snapshot import on_host
from trainer.checkpoint.storage import MANIFEST, POSITION, Folder, Storage, name_of
from trainer.processes import Ranks, RefusedElsewhere, any_rank, gather_lines, on_first_rank
from trainer.reliability import Reliability
from trainer.run_folder import KEPT, checkpoint_url, disk_errors
from trainer.state import TrainState

Link = Literal["last", "best"]
FORMAT = 2
"""Of checkpoints; 1 had no manifest."""
WRITE_TIMEOUT = datetime.timedelta(hours=2)
"""For which a write waits for another rank's part: longer than for a step, since the storage may be
slow. A rank that is lost meanwhile is noticed by training, and by those who wait for the write."""
POLL = 1.0
"""Seconds after which ranks that wait for a write ask each other whether all are still there."""


class Checkpoints:
    """The checkpoints of one run. Saving and loading are collective: every rank calls them."""

    def __init__(self, run: Path, ranks: Ranks, settings: Reliability | None = None) -> None:
        self.run, self.ranks = run, ranks
        self.settings = settings or Reliability()
        url = self.settings.checkpoints or checkpoint_url(run)
        self.storage = Storage(url) if url else Folder(run / "checkpoints")
        self._group: dist.ProcessGroup | None = None
        self._writing: futures.Future[None] | None = None

    def __bool__(self) -> bool:
        """Is there a complete one at all?"""
        return bool(self.storage.target("last") or self.storage.names())

    def kept(self) -> bool:
        """Is there a complete one, or does the storage not say? For the way out of a failure, which
        may be the storage's.
        """
        try:
            return bool(self)
        except Exception:
            return True

    def check_place(self, *, resumed: bool) -> None:
        """Before anything is trained; on rank 0.

        Args:
            resumed: the folder holds a run that is to go on.

        Raises:
            InputError: the storage does not say what it holds, or the run that is resumed has its
                checkpoints elsewhere: it would start over.
        """
        try:
            if self.storage.url:  # of a local folder the run's own is what says so
                self.storage.entries()
        except Exception as error:  # each kind of URL has its own
            raise InputError(
                f"{self.storage} cannot be read: {_reason(error)}. Check the address and the "
                "rights of its access keys, or give another --checkpoints."
            ) from error
        if not resumed:
            return
        before = Checkpoints(self.run, self.ranks)
        if str(before.storage) != str(self.storage) and before.kept():
            raise InputError(
                f"The run at {self.run} has its checkpoints in {before.storage}, not in "
                f"{self.storage}. Leave out --checkpoints to go on with them; move them there to "
                "go on there; or start over with --replace."
            )

    def save(self, state: TrainState, position: Position, links: tuple[Link, ...]) -> None:
        """Writes a checkpoint and then, at once, lets ``links`` point to it; prunes the others.

        In the background, if the settings say so: of a copy that this makes, after the write
        before has ended.

        Raises:
            InputError: the storage is full or not writable, now or for the one before. What was
                there stays.
        """
        self.wait()
        if self._group is None:
            # its own: what a thread says to other ranks must not mix with what training says
            self._group = dist.new_group(backend="gloo", timeout=WRITE_TIMEOUT)
        position = copy.deepcopy(position)
        # at the step of a renewal the copy of the keys is what the tables are
        replica = position.renewed_at != position.step
        with _quiet():
            content = state.to_save(replica=replica)
            if self.settings.checkpoint_in_background:
                content = on_host(content)
        self._writing = in_thread(self._write, content, position, links)
        if not self.settings.checkpoint_in_background:
            self.wait()

    def check(self) -> None:
        """Raises what went wrong with a write that has ended; does not wait for one."""
        self._still_writes(0)

    def wait(self) -> None:
        """Until no rank writes any more; collective, raises what went wrong.

        Ranks ask each other again and again meanwhile, so that one whose host is cut off, which
        says nothing, is noticed within ``peer_timeout``, however long a write may take.
        """
        while any_rank(self._still_writes(POLL), self.ranks.device):
            pass

    def _still_writes(self, seconds: float) -> bool:
        """Does this rank, after so long a wait at most? Raises what went wrong with the write."""
        if self._writing is None:
            return False
        if futures.wait([self._writing], seconds).not_done:
            return True
        writing, self._writing = self._writing, None
        writing.result()
        return False

    def close(self) -> InputError | None:
        """Waits for what is being written: where it may wait for a rank that is lost, for
        ``peer_timeout`` at most. What is given up then is as after a kill.

        Returns:
            Why this rank could not write, if others have left it because of that.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return None
        several = self.ranks.world_size > 1
        futures.wait([writing], self.settings.peer_timeout if several else None)
        failed = writing.exception() if writing.done() else None
        own = isinstance(failed, InputError) and not isinstance(failed, RefusedElsewhere)
        return failed if own else None

    def load(self, state: TrainState, link: Link) -> Position:
        """Fills tables, dense parameters and optimizer states.

        Raises:
            InputError: no such checkpoint, damaged, or of another model.
        """
        self.wait()
        target = self.storage.target(link) if self.ranks.first else None
        names = gather_lines([target] if target else [], self.ranks.device)
        if not names:
            raise InputError(f"{self.storage} has no checkpoint called {link}.")
        (name,) = names
        if damage := self.damage(name):
            raise InputError(
                f"The checkpoint {self.storage}/{name} is damaged: {damage}. "
                "twofold train ... --resume goes on from an older one, if there is one."
            )
        return self._load(state, name)

    def resume(self, state: TrainState) -> tuple[Position, list[str]]:
        """Loads the last checkpoint that is intact; ``last`` and ``best`` are as they were then.

        Returns:
            The position, and what to tell the user of damaged ones.

        Raises:
            InputError: none is intact, or they are of another model.
        """
        notes = []
        for name in self._newest_first():
            if damage := self.damage(name):
                notes.append(f"Checkpoint {name} is damaged: {damage}.")
                continue
            position = self._load(state, name)
            best = name_of(position.best_step) if position.best_step else None
            if best and best != name and (damage := self.damage(best)):
                notes.append(f"Checkpoint {best}, the best so far, is damaged: {damage}. {name} "
                             "stands in for it until the next evaluation.")  # fmt: skip
                position.best_auc, position.best_step = None, position.step
                position.evaluations_since_best, best = 0, name
            if notes:
                notes.append(f"Going on from {name}.")
            # always: a kill may have come between the two
            on_first_rank(self.ranks, lambda n=name, b=best: self._point(last=n, best=b))
            return position, notes
        raise InputError(
            f"No checkpoint of {self.storage} is intact. {' '.join(notes)} Restore one from a "
            "copy, or start over with --replace."
        )

    def clear(self) -> None:
        """Removes all checkpoints; on rank 0."""
        with self._storage_errors("Some may be gone; put it right and try --replace again."):
            for name in self.storage.entries():
                self.storage.discard(name)

    def damage(self, name: str) -> str:
        """What is wrong with the files of a checkpoint; "" if nothing is. Collective.

        Each rank reads some of the files, whole.
        """
        found = []
        with _told(found):
            files = self._manifest(name)
            largest_first = sorted(files, key=lambda file: (-files[file].bytes, file))
            for file in largest_first[self.ranks.rank :: self.ranks.world_size]:
                if wrong := self._wrong(name, file, files[file]):
                    found.append(wrong)
        return "; ".join(sorted({*gather_lines(found, self.ranks.device)}))

    def _manifest(self, name: str) -> dict[str, Digest]:
        """File -> digest; of an older version's checkpoint nothing."""
        try:
            content = json.loads(self.storage.read(name, MANIFEST))
        except FileNotFoundError:
            if json.loads(self.storage.read(name, POSITION)).get("format", 1) < FORMAT:
                return {}
            raise
        return {file: Digest(**digest) for file, digest in content["files"].items()}

    def _wrong(self, name: str, file: str, expected: Digest) -> str:
        try:
            with self.storage.open(name, file) as stream:
                found = digest_of_stream(stream)
        except FileNotFoundError:
            return f"{file} is missing"
        if found.bytes != expected.bytes:
            return f"{file} has {found.bytes:,} bytes instead of {expected.bytes:,}"
        return "" if found == expected else f"{file} has another SHA-256 than when it was written"

    def _newest_first(self) -> list[str]:
        """Checkpoints up to the last one, as rank 0 sees them."""
        names = []
        if self.ranks.first:
            last, names = self.storage.target("last"), self.storage.names()[::-1]
            if last:
                names = [name for name in names if name <= last] or [last]
        return gather_lines(names, self.ranks.device)

    def _load(self, state: TrainState, name: str) -> Position:
        where = f"{self.storage}/{name}"
        with _quiet():
            reader = self.storage.reader(name)
            metadata = reader.read_metadata()
            wanted = state.to_load(metadata.state_dict_metadata)
            # a rank knows the optimizer states of its own shards alone
            if wrong := gather_lines(_differences(where, wanted, metadata), self.ranks.device):
                raise InputError(wrong[0])
            try:
                content = json.loads(self.storage.read(name, POSITION))
                content.pop("format", None)
                position = Position(**content)
                _unwrapped(dcp.load, wanted, storage_reader=reader, planner=SafePlanner())
            except (ValueError, TypeError, OSError, CheckpointException) as error:
                raise InputError(f"The checkpoint {where} is damaged: {_reason(error)}") from error
            state.loaded(wanted)
        if "replica" not in wanted:
            position.renewed_at = position.step
        dist.barrier()
        return position

    def _write(self, content: dict[str, Any], position: Position, links: tuple[Link, ...]) -> None:
        """All of a write that may happen beside training."""
        name, group = name_of(position.step), self._group
        if self.ranks.device.type == "cuda":
            torch.cuda.set_device(self.ranks.device)  # of this thread
        try:
            with self._storage_errors():
                on_first_rank(self.ranks, lambda: self._begin(name), group)
                writer = self.storage.writer(name)
                dcp.save(content, storage_writer=writer, process_group=group)
            lines = [json.dumps([file, *digest]) for file, digest in writer.fs.files.items()]
            lines = gather_lines(lines, group=group)
            files = {file: Digest(*digest) for file, *digest in map(json.loads, lines)}
            on_first_rank(self.ranks, lambda: self._publish(name, position, files, links), group)
        except BaseException:
            if self.ranks.first:
                with contextlib.suppress(Exception):
                    self.storage.abort(name)
            raise

    def _begin(self, name: str) -> None:
        with self._storage_errors():
            self.storage.begin(name)

    def _publish(
        self, name: str, position: Position, files: dict[str, Digest], links: tuple[Link, ...]
    ) -> None:
        text = json.dumps({"format": FORMAT, **dataclasses.asdict(position)}, indent=2).encode()
        files = {**files, POSITION: digest_of(text)}
        manifest = {"files": {file: digest._asdict() for file, digest in sorted(files.items())}}
        with self._storage_errors():
            self.storage.write(name, POSITION, text)
            self.storage.write(name, MANIFEST, json.dumps(manifest, indent=2).encode())
            self.storage.publish(name)
        self._point(**dict.fromkeys(links, name))
        try:
            self._prune(name)
        except Exception as error:  # each kind of URL has its own
            print(
                f"Note: older checkpoints in {self.storage} could not be removed: {error}",
                file=sys.stderr,
            )

    def _point(self, **links: str | None) -> None:
        with self._storage_errors():
            for link, name in links.items():
                if name:
                    self.storage.point(link, name)

    def _prune(self, current: str) -> None:
        """Leaves the newest and, of each, the best one until then: resuming from any of them needs
        both. What lies beyond ``current`` is of a past that was given up.
        """
        newest = [name for name in self.storage.names() if name <= current]
        newest = newest[-self.settings.keep_checkpoints :]
        kept = {*newest, *map(self._best_until, newest), self.storage.target("best")}
        for name in self.storage.entries():
            if name not in kept:
                self.storage.discard(name)

    def _best_until(self, name: str) -> str | None:
        with contextlib.suppress(ValueError, OSError):
            return name_of(json.loads(self.storage.read(name, POSITION))["best_step"])
        return None

    @contextlib.contextmanager
    def _storage_errors(self, way_out: str = "") -> Iterator[None]:
        if isinstance(self.storage, Folder):
            with disk_errors(self.run, way_out or KEPT):
                yield
            return
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # each kind of URL has its own
            way_out = way_out or KEPT.replace("make room", "put it right")
            raise InputError(
                f"{self.storage} could not be written to: {_reason(error)}. {way_out}"
            ) from error


@contextlib.contextmanager
def _told(found: list[str]) -> Iterator[None]:
    """Adds to ``found`` what makes a file unreadable, instead of leaving other ranks waiting."""
    try:
        yield
    except FileNotFoundError as error:
        found.append(f"{Path(error.filename or str(error)).name} is missing")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        found.append(f"{MANIFEST} or {POSITION} cannot be read ({error})")
    except OSError as error:
        found.append(f"it cannot be read ({error})")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """DCP and TorchRec warn of their own use of deprecated ShardedTensor calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _reason(error: BaseException) -> BaseException:
    """What DCP found wrong, on the first rank that did."""
    return next(iter(error.failures.values()))[0] if hasattr(error, "failures") else error


def _unwrapped(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    try:
        function(*args, **kwargs)
    except CheckpointException as error:
        # DCP wraps Ctrl-C and SIGTERM too, of any rank
        for failure, _ in error.failures.values():
            if not isinstance(failure, Exception):
                raise failure from error
        raise


def _differences(where: str, wanted: dict[str, Any], metadata: Metadata) -> list[str]:
    """What is first wrong with the names and shapes of all parameters in the checkpoint, or with
    the shapes of the tables' optimizer states; empty if nothing is.
    """
    sizes = {
        name: tuple(entry.size)
        for name, entry in metadata.state_dict_metadata.items()
        if hasattr(entry, "size")
    }
    shapes = {f"model.{name}": tuple(p.size()) for name, p in wanted["model"].items()}
    found = {name: size for name, size in sizes.items() if name.startswith("model.")}
    if shapes != found:
        names = sorted(shapes.keys() | found.keys())
        name = next(n for n in names if shapes.get(n) != found.get(n))
        return [
            f"{where} is a checkpoint of another model: {name.removeprefix('model.')} is "
            f"{found.get(name, 'absent')} there and {shapes.get(name, 'absent')} here. "
            "Take the experiment, overrides and store that the run was made with "
            "(RUN/config.json); if you did, it was made by another version of twofold."
        ]
    for parameter, slots in wanted["optimizer"]["state"].items():
        for slot, tensor in slots.items():
            there = sizes.get(f"optimizer.state.{parameter}.{slot}")
            here = tuple(tensor.size()) if hasattr(tensor, "size") else None
            if there != here and None not in (there, here):
                return [
                    f"{where} cannot be loaded under this plan: the optimizer state {slot} of "
                    f"{parameter} is {there} there and {here} here. A row-wise "
                    "optimizer keeps one state for each column shard of a row, and what the shards "
                    "of another cut would have had is not known. Take the world size and plan "
                    "that the checkpoint was made with, or train with --tables.kind adagrad, whose "
                    "states move to any plan."
                ]
    return []
