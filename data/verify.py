"""Is every byte of an event store what was written? Checksums of its files, and their check.

``STORE/checksums.sha256`` has a line for each Arrow file, as ``sha256sum`` writes them. Opening a
store compares sizes alone: reading all of a large one takes minutes (docs/reliability.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from data.errors import InputError
from data.store import StoreInfo

CHECKSUMS = "checksums.sha256"


def file_sha256(file: Path) -> str:
    """Of its content, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def fingerprint(sums: Mapping[str, str]) -> str:
    """SHA-256 over the names and SHA-256s of all Arrow files, in the order of their names' parts.

    Args:
        sums: path below the store, with slashes -> SHA-256 of the file.
    """
    whole = hashlib.sha256()
    for name in sorted(sums, key=lambda name: name.split("/")):
        whole.update(name.encode())
        whole.update(bytes.fromhex(sums[name]))
    return whole.hexdigest()


def write_checksums(folder: Path, sums: Mapping[str, str]) -> None:
    """Writes ``checksums.sha256``."""
    text = "".join(f"{value}  {name}\n" for name, value in sums.items())
    (folder / CHECKSUMS).write_text(text)


def verify_store(folder: Path) -> list[str]:
    """Reads every byte of a store; returns what is wrong, a sentence for each file.

    Raises:
        InputError: no store, or one whose description cannot be read.
    """
    info = StoreInfo.read(folder)
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*.arrow")]
    found = {name: file_sha256(folder / name) for name in names}
    if fingerprint(found) == info.fingerprint:
        return []
    expected = _read_checksums(folder)
    if fingerprint(expected) != info.fingerprint:
        return [f"The files of {folder} are not those that store.json describes."]
    missing = [f"{name} is missing." for name in sorted(expected.keys() - found.keys())]
    foreign = [f"{name} is not of this store." for name in sorted(found.keys() - expected.keys())]
    damaged = [
        f"{name} is damaged: its SHA-256 is {found[name][:12]}..., not {expected[name][:12]}..."
        for name in sorted(expected.keys() & found.keys())
        if found[name] != expected[name]
    ]
    return [*missing, *foreign, *damaged]


def _read_checksums(folder: Path) -> dict[str, str]:
    """{} where there are none, as in a store of an older version, or they cannot be read."""
    try:
        lines = (folder / CHECKSUMS).read_text().splitlines()
        sums = {name: value for value, _, name in (line.partition("  ") for line in lines)}
        return {name: bytes.fromhex(value).hex() for name, value in sums.items()}
    except (OSError, ValueError):
        return {}


def refuse_damaged(folder: Path) -> None:
    """Raises InputError where a byte of the store is not what was written."""
    if wrong := verify_store(folder):
        raise InputError(" ".join([*wrong, "Prepare the store again, or copy it anew."]))
