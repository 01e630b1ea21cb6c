"""SHA-256 of what is written, taken on its way to the storage, and of what is there later.

SHA-256 and not a faster checksum: processors have instructions for it (1 to 2 GB/s a core, more
than most storage takes), and ``sha256sum`` can repeat it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import _fsspec_filesystem as of_urls
from torch.distributed.checkpoint import filesystem as of_folders

_PIECE = 1 << 20


class Digest(NamedTuple):
    """What a file holds, in short."""

    bytes: int
    sha256: str


def digest_of(content: bytes) -> Digest:
    """Of a small file's content."""
    return Digest(len(content), hashlib.sha256(content).hexdigest())


def digest_of_stream(stream: IO[bytes]) -> Digest:
    """Of all that is left in a stream, read in pieces."""
    found, size = hashlib.sha256(), 0
    while piece := stream.read(_PIECE):
        found.update(piece)
        size += len(piece)
    return Digest(size, found.hexdigest())


class _Recorded:
    """A stream under writing that takes the digest of what passes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._sha256 = hashlib.sha256()
        self._bytes = 0

    def write(self, data: bytes) -> int:
        self._sha256.update(data)
        self._bytes += len(data)
        return self._stream.write(data)

    def digest(self) -> Digest:
        return Digest(self._bytes, self._sha256.hexdigest())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Digesting:
    """Mixin of DCP's file systems: ``files`` is the digest of each file written so far."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, Digest] = {}

    @contextlib.contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[Any]:
        """As the base class."""
        with super().create_stream(path, mode) as stream:  # type: ignore[misc]
            recorded = _Recorded(stream)
            yield recorded
        self.files[_name(path)] = recorded.digest()

    def rename(self, path: str | os.PathLike, new_path: str | os.PathLike) -> None:
        """As the base class."""
        super().rename(path, new_path)  # type: ignore[misc]
        self.files[_name(new_path)] = self.files.pop(_name(path))


def _name(path: str | os.PathLike) -> str:
    """The last part of a path or of a URL."""
    return os.fspath(path).rpartition("/")[2]


class _Folders(_Digesting, of_folders.FileSystem):
    pass


class _Urls(_Digesting, of_urls.FileSystem):
    pass


class FolderWriter(dcp.FileSystemWriter):
    """DCP's writer to a folder; ``fs.files`` holds the digests of this rank's files."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.fs = _Folders()


class UrlWriter(of_urls.FsspecWriter):
    """DCP's writer to an fsspec URL; ``fs.files`` holds the digests of this rank's files."""

    def __init__(self, url: str) -> None:
        # what is no local file cannot be synced: DCP would sync all disks of the machine instead
        super().__init__(url, sync_files=False)
        self.fs = _Urls()
        self.path = self.fs.init_path(url)
