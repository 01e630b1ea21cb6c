"""Reading what ``torch.distributed.checkpoint`` wrote without running what is in it: its metadata
is a pickle, and what is not a tensor is one too.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from data.errors import InputError


class _SafeMetadata:
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


class SafeReader(_SafeMetadata, dcp.FileSystemReader):
    """Of a folder."""


class SafeUrlReader(_SafeMetadata, FsspecReader):
    """Of an fsspec URL."""


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


def _set_nested(state: Any, path: tuple[str | int, ...], value: Any) -> None:
    for key in path[:-1]:
        state = state[key]
    state[path[-1]] = value
