"""Checkpoints of a run: written whole or not at all, read without running what is in them.

Tables and optimizer states go through ``torch.distributed.checkpoint``, so that another world size
or plan can load them. Layout::

    RUN/checkpoints/step-00000120/   one complete checkpoint: DCP's files and position.json
    RUN/checkpoints/last, best       symbolic links to such folders
"""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from data.errors import InputError
from trainer.processes import Ranks, on_first_rank
from trainer.run_folder import disk_errors
from trainer.state import TrainState

Link = Literal["last", "best"]


@dataclass
class Position:
    """Where training stands, and what it has found so far."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    """Of the loader: the next batch."""
    samples: int = 0
    """Candidates trained on."""
    seconds: float = 0.0
    """Spent training, evaluations and checkpoints excluded."""
    input_seconds: float = 0.0
    """Of those, waiting for batches; the mean over ranks."""
    communication_seconds: float = 0.0
    """Waiting for other ranks."""
    best_auc: float | None = None
    """On the validation split."""
    best_step: int = 0
    evaluations_since_best: int = 0
    learning_rate_scale: float = 1.0
    """Of all learning rates, to those that the run began with."""
    loss_first: float | None = None
    """Main loss of the first logged steps."""
    loss_last: float | None = None
    lookups: dict[str, dict[str, float]] = field(default_factory=dict)
    """Rows of each table per step, until the first evaluation."""


class Checkpoints:
    """The checkpoints of one run. Saving and loading are collective: every rank calls them."""

    def __init__(self, run: Path, ranks: Ranks) -> None:
        self.run = run
        self.folder = run / "checkpoints"
        self.ranks = ranks

    def exists(self, link: Link) -> bool:
        """Is there a complete one?"""
        return (self.folder / link / "position.json").is_file()

    def save(self, state: TrainState, position: Position, links: tuple[Link, ...]) -> None:
        """Writes a checkpoint and then, at once, lets ``links`` point to it; prunes the others.

        Raises:
            InputError: the disk is full or not writable. What was there stays.
        """
        final = self.folder / f"step-{position.step:08d}"
        partial = final.with_suffix(".partial")

        def publish() -> None:
            with disk_errors(self.run):
                text = json.dumps(dataclasses.asdict(position), indent=2)
                (partial / "position.json").write_text(text)
                shutil.rmtree(final, ignore_errors=True)
                partial.rename(final)
                for link in links:
                    self._point(link, final.name)
                self._prune()

        on_first_rank(self.ranks, lambda: self._prepare(partial))
        try:
            with disk_errors(self.run):
                _quietly(dcp.save, state.to_save(), checkpoint_id=partial)
            on_first_rank(self.ranks, publish)
        except BaseException:
            if self.ranks.first:
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def load(self, state: TrainState, link: Link) -> Position:
        """Fills tables, dense parameters and optimizer states.

        Raises:
            InputError: no such checkpoint, damaged, or of another model.
        """
        folder = self.folder / link
        if not self.exists(link):
            raise InputError(f"{self.folder} has no checkpoint called {link}.")
        reader = SafeReader(folder)
        wanted = state.to_load()
        _check_same_model(folder, wanted, reader.read_metadata())
        try:
            position = Position(**json.loads((folder / "position.json").read_text()))
            _quietly(dcp.load, wanted, storage_reader=reader, planner=SafePlanner())
        except (ValueError, TypeError, CheckpointException) as error:
            raise InputError(f"The checkpoint {folder} is damaged: {_reason(error)}") from error
        state.loaded(wanted)
        return position

    def _prepare(self, partial: Path) -> None:
        with disk_errors(self.run):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    def _point(self, link: Link, target: str) -> None:
        temporary = self.folder / f".{link}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(self.folder / link)

    def _prune(self) -> None:
        kept = {(self.folder / link).resolve() for link in ("last", "best")}
        for folder in self.folder.glob("step-*"):
            if folder.resolve() not in kept:
                shutil.rmtree(folder)


class SafeReader(dcp.FileSystemReader):
    """Reads DCP's metadata, which is a pickle, by an unpickler that knows its classes only."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """As the base class, without running what a forged file asks for."""
        path = self._get_metadata_path(kwargs.get("rank"))
        try:
            with self.fs.create_stream(path, "rb") as file:
                metadata = _MetadataUnpickler(file).load()
            if not isinstance(metadata, Metadata):
                raise pickle.UnpicklingError(f"it holds a {type(metadata).__name__}")
        except Exception as error:  # garbage makes an unpickler raise anything
            raise InputError(f"The checkpoint's {path} is missing or damaged: {error}") from error
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    _MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
    _OTHERS = frozenset(
        {
            ("torch", "Size"),
            ("torch.serialization", "_get_layout"),
            ("collections", "OrderedDict"),
            ("pathlib", "PosixPath"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        own_class = module in self._MODULES and "." not in name
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if own_class:
            found = super().find_class(module, name)
            own_class = isinstance(found, type) and found.__module__ == module
        if own_class or dtype or (module, name) in self._OTHERS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint's metadata")


class SafePlanner(DefaultLoadPlanner):
    """Loads what is not a tensor (learning rates ...) as plain data, never as code."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Puts the value where the state dict had one."""
        loaded = torch.load(value, weights_only=True)
        self.state_dict[read_item.dest_index.fqn] = loaded
        if self.flatten_state_dict:
            _set_nested(self.original_state_dict, self.mappings[read_item.dest_index.fqn], loaded)


def _reason(error: BaseException) -> BaseException:
    """What DCP found wrong, on the first rank that did."""
    return next(iter(error.failures.values()))[0] if hasattr(error, "failures") else error


def _set_nested(state: Any, path: tuple[str | int, ...], value: Any) -> None:
    for key in path[:-1]:
        state = state[key]
    state[path[-1]] = value


def _check_same_model(folder: Path, wanted: dict[str, Any], metadata: Metadata) -> None:
    """Compares the names and shapes of all parameters with the checkpoint's."""
    shapes = {f"model.{name}": tuple(p.size()) for name, p in wanted["model"].items()}
    found = {
        name: tuple(entry.size)
        for name, entry in metadata.state_dict_metadata.items()
        if name.startswith("model.") and hasattr(entry, "size")
    }
    if shapes == found:
        return
    names = sorted(shapes.keys() | found.keys())
    name = next(n for n in names if shapes.get(n) != found.get(n))
    raise InputError(
        f"{folder} is a checkpoint of another model: {name.removeprefix('model.')} is "
        f"{found.get(name, 'absent')} there and {shapes.get(name, 'absent')} here. "
        "Take the experiment, overrides and store that the run was made with (RUN/config.json); "
        "if you did, it was made by another version of twofold."
    )


def _quietly(function: Any, *args: Any, **kwargs: Any) -> None:
    with warnings.catch_warnings():
        # DCP warns of its own use of deprecated ShardedTensor calls
        warnings.simplefilter("ignore")
        try:
            function(*args, **kwargs)
        except CheckpointException as error:
            # DCP wraps Ctrl-C and SIGTERM too, of any rank
            for failure, _ in error.failures.values():
                if not isinstance(failure, Exception):
                    raise failure from error
            raise
    dist.barrier()
