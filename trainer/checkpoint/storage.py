"""Where the checkpoints of a run lie: in a folder or behind any URL that fsspec knows.

A checkpoint is a folder ``step-00000120``. In a local folder it is written beside its place and
renamed; elsewhere, where nothing can be renamed at once, it is complete once its manifest is there,
which is written last. ``last`` and ``best`` are symbolic links in a folder, small files elsewhere.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path
from typing import IO

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from data.errors import InputError
from trainer.checkpoint.digests import FolderWriter, UrlWriter
from trainer.checkpoint.safe_reading import SafeReader, SafeUrlReader

POSITION, MANIFEST = "position.json", "manifest.json"
_NAME = re.compile(r"step-\d{8,}")
_PASSWORD = re.compile(r"://[^/@]*:[^/@]*@")


def name_of(step: int) -> str:
    """Of the checkpoint after a step."""
    return f"step-{step:08d}"


class Storage:
    """Checkpoints behind an fsspec URL. Each rank has one; only rank 0 begins and publishes."""

    _marker = MANIFEST
    """File that a complete checkpoint has."""
    _begun = ""
    """Name of the checkpoint that is not published yet."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        if _PASSWORD.search(url):
            raise InputError(
                "--checkpoints takes no URL with a password in it, which config.json would tell. "
                "Give it where the package of this kind of URL looks for it: in the environment "
                "or in fsspec's configuration."
            )
        try:
            fs, self._root = url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise InputError(
                f"--checkpoints {url} is no URL that can be written to: {error}. Give one that "
                "fsspec knows, e.g. s3://bucket/folder, with its package installed."
            ) from error
        self._fs: AbstractFileSystem = fs

    def __str__(self) -> str:
        return self.url

    def writer(self, name: str) -> FolderWriter | UrlWriter:
        """Writes this rank's part of a checkpoint that was begun."""
        return UrlWriter(self._under(self.url, self._unpublished(name)))

    def reader(self, name: str) -> SafeReader | SafeUrlReader:
        """Reads a checkpoint."""
        return SafeUrlReader(self._under(self.url, name))

    def begin(self, name: str) -> None:
        """Makes room for a checkpoint."""
        self.discard(self._unpublished(name))
        self._begun = name

    def write(self, name: str, file: str, content: bytes) -> None:
        """Adds a small file to a checkpoint that was begun."""
        self._fs.pipe_file(self._under(self._root, self._unpublished(name), file), content)

    def publish(self, name: str) -> None:
        """Lets a checkpoint be seen that was begun; the one of that name before is gone."""
        self._begun = ""

    def abort(self, name: str) -> None:
        """Removes what was begun and not published."""
        if self._begun == name:
            self.discard(self._unpublished(name))

    def names(self) -> list[str]:
        """Complete checkpoints, oldest first."""
        return [
            name
            for name in self.entries()
            if _NAME.fullmatch(name)
            and self._fs.exists(self._under(self._root, name, self._marker))
        ]

    def entries(self) -> list[str]:
        """Complete checkpoints and what is left of others, by name."""
        self._fs.invalidate_cache()  # others write, too
        try:
            paths = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        found = (path.rstrip("/").rpartition("/")[2] for path in paths)
        return sorted(name for name in found if name.startswith("step-"))

    def read(self, name: str, file: str) -> bytes:
        """A small file of a checkpoint.

        Raises:
            FileNotFoundError: there is none.
        """
        return self._fs.cat_file(self._under(self._root, name, file))

    def open(self, name: str, file: str) -> IO[bytes]:
        """A large file of a checkpoint.

        Raises:
            FileNotFoundError: there is none.
        """
        return self._fs.open(self._under(self._root, name, file), "rb")

    def discard(self, name: str) -> None:
        """Removes a checkpoint, or what there is of it."""
        path = self._under(self._root, name)
        for file in (MANIFEST, POSITION):  # first: what is half removed is no checkpoint
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._under(path, file))
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(path, recursive=True)

    def point(self, link: str, name: str) -> None:
        """Lets ``last`` or ``best`` be this checkpoint."""
        self._fs.pipe_file(self._under(self._root, link), name.encode())

    def target(self, link: str) -> str | None:
        """The complete checkpoint that ``last`` or ``best`` is; None: there is none."""
        self._fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            name = self._target(link)
            if self._fs.exists(self._under(self._root, name, self._marker)):
                return name
        return None

    def _target(self, link: str) -> str:
        return self._fs.cat_file(self._under(self._root, link)).decode()

    def _unpublished(self, name: str) -> str:
        return name

    @staticmethod
    def _under(*parts: str) -> str:
        return "/".join(parts)


class Folder(Storage):
    """Checkpoints in a local folder."""

    _marker = POSITION  # older versions wrote no manifest

    def __init__(self, path: Path) -> None:
        self.path, self.url = path, ""
        self._fs, self._root = LocalFileSystem(), str(path.absolute())

    def __str__(self) -> str:
        return str(self.path)

    def writer(self, name: str) -> FolderWriter:
        """Writes this rank's part of a checkpoint that was begun."""
        return FolderWriter(self._under(self._root, self._unpublished(name)))

    def reader(self, name: str) -> SafeReader:
        """Reads a checkpoint."""
        return SafeReader(self._under(self._root, name))

    def begin(self, name: str) -> None:
        """Makes room for a checkpoint."""
        super().begin(name)
        (self.path / self._unpublished(name)).mkdir(parents=True)

    def publish(self, name: str) -> None:
        """Lets a checkpoint be seen that was begun; the one of that name before is gone."""
        self.discard(name)
        (self.path / self._unpublished(name)).rename(self.path / name)
        super().publish(name)

    def discard(self, name: str) -> None:
        """Removes a checkpoint, or what there is of it."""
        for file in (MANIFEST, POSITION):
            (self.path / name / file).unlink(missing_ok=True)
        shutil.rmtree(self.path / name, ignore_errors=True)

    def point(self, link: str, name: str) -> None:
        """Lets ``last`` or ``best`` be this checkpoint, at once."""
        temporary = self.path / f".{link}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(name)
        temporary.replace(self.path / link)

    def _target(self, link: str) -> str:
        return (self.path / link).resolve().name  # itself where a copy followed the links

    def _unpublished(self, name: str) -> str:
        return f"{name}.partial"
