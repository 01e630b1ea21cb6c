"""Bytes of a store that are not what was written: cut, flipped, zeroed, at random places."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data.errors import InputError
from data.loader import RequestLoader
from data.store import EventStore, read_arrow, write_arrow
from data.verify import CHECKSUMS, verify_store
from tests.robustness.conftest import training_line
from tests.trainer.command_lines import Job
from trainer import cli


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The same bytes but for a flipped bit, 64 zeros, or the end."""
    place = draw.randrange(len(content))
    how = draw.choice(["flip", "flip", "flip", "zero", "cut"])
    if how == "cut":
        return content[:place]
    changed = bytearray(content)
    if how == "flip":
        changed[place] ^= 1 << draw.randrange(8)
    else:
        changed[place : place + 64] = bytes(len(changed[place : place + 64]))
    return bytes(changed)


def read_all(folder: Path) -> None:
    """Every batch, as training and evaluation make them."""
    store = EventStore.open(folder)
    for split in ("train", "val", "test"):
        loader = RequestLoader(store, split, requests_per_batch=50, history_length=16, prefetch=0)
        for batch in loader:
            for name, size in store.fields:
                for values in (batch.history[name].values(), batch.candidates[name].values()):
                    assert not len(values) or 0 <= int(values.min()) <= int(values.max()) < size


@pytest.mark.parametrize("cases", [150, pytest.param(3000, marks=pytest.mark.soak)])
def test_damage_is_named_by_verify_and_harms_no_reader(
    cases: int, store: Path, tmp_path: Path, draw: random.Random
) -> None:
    """Reading refuses it or reads numbers within their tables; nothing else may come of it."""
    copy = Path(shutil.copytree(store, tmp_path / "store"))
    files = sorted(file.relative_to(copy) for file in copy.rglob("*.arrow"))
    refused = 0
    for _ in range(cases):
        name = draw.choice(files)
        genuine = (copy / name).read_bytes()
        changed = damaged(genuine, draw)
        if changed == genuine:
            continue
        (copy / name).unlink()  # a new inode: the old one's map is of what was there
        (copy / name).write_bytes(changed)
        [sentence] = verify_store(copy)
        assert sentence.startswith(f"{name} is damaged")
        try:
            read_all(copy)
        except InputError:
            refused += 1
        (copy / name).unlink()
        (copy / name).write_bytes(genuine)
    assert verify_store(copy) == []
    assert refused > cases / 4


@pytest.mark.parametrize("cases", [150, pytest.param(2000, marks=pytest.mark.soak)])
def test_a_damaged_description_is_refused_or_describes_a_store(
    cases: int, store: Path, tmp_path: Path, draw: random.Random
) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "store"))
    genuine = (copy / "store.json").read_bytes()
    refused = 0
    for _ in range(cases):
        (copy / "store.json").write_bytes(damaged(genuine, draw))
        try:
            verify_store(copy)
            read_all(copy)
        except InputError:
            refused += 1
    assert refused > cases / 4


def test_missing_and_foreign_files_are_named(store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "store"))
    shutil.copy(copy / "items.arrow", copy / "vocabulary" / "strange.arrow")
    (copy / "part-00001" / "val.arrow").unlink()
    assert verify_store(copy) == [
        "part-00001/val.arrow is missing.",
        "vocabulary/strange.arrow is not of this store.",
    ]
    (copy / CHECKSUMS).unlink()  # of an older version
    assert verify_store(copy) == [f"The files of {copy} are not those that store.json describes."]


def test_verify_at_the_command_line(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["verify-store", str(store)]) == 0
    assert f"{store} is whole" in capsys.readouterr().out
    copy = Path(shutil.copytree(store, tmp_path / "store"))
    file = copy / "part-00000" / "events.arrow"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert cli.run(["verify-store", str(copy)]) == 2
    err = capsys.readouterr().err
    assert "part-00000/events.arrow is damaged" in err
    assert "Prepare the store again" in err


@pytest.mark.parametrize("world_size", [1, 2])
def test_ids_beyond_their_table_end_training_before_a_table_is_read(
    store: Path, tmp_path: Path, world_size: int
) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "store"))
    for partition in copy.glob("part-*"):
        columns = read_arrow(partition / "events.arrow").to_pydict()
        arrays = {name: np.array(column) for name, column in columns.items()}
        arrays["item"] = np.where(arrays["item"] == 1, 10**6, arrays["item"])
        (partition / "events.arrow").unlink()
        write_arrow(
            partition / "events.arrow",
            {
                name: pa.array(values, pa.int64() if name == "time" else pa.int32())
                for name, values in arrays.items()
            },
        )
    line = training_line(copy, tmp_path / "run")
    ended = Job(tmp_path, *line, world_size=world_size).end()
    assert 2 in ended.codes
    assert 0 not in ended.codes
    assert ended.err.count("twofold: ") == 1
    assert "IndexError: id 1000000 of item, whose ids end at" in ended.err
    assert f"twofold verify-store {copy} names the file" in ended.err
    assert not (tmp_path / "run").exists()
