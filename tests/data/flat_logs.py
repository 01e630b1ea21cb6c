"""Logs without users in their raw formats, and plain Python that says what a store must hold."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data.source import SPLITS
from data.store import EventStore

INTEGERS = [f"I{number}" for number in range(1, 14)]
IDS = [f"C{number}" for number in range(1, 27)]

AVAZU_HEADER = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,"
    "device_id,device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
)


def criteo_rows(count: int, seed: int = 0) -> list[list[str]]:
    """Cells of lines: label, 13 integers, 26 ids; some of them empty, some ids frequent."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        integers = [str(int(draw.paretovariate(0.4)) - 2) for _ in INTEGERS]
        ids = [f"{2**32 * 7 // 8 + min(int(draw.paretovariate(0.5)), 900):08x}" for _ in IDS]
        cells = ["" if draw.random() < 0.15 else cell[:8] for cell in integers + ids]
        rows.append([str(int(draw.random() < 0.3)), *cells])
    return rows


def write_criteo(file: Path, rows: Sequence[Sequence[str]]) -> Path:
    file.write_text("".join("\t".join(cells) + "\n" for cells in rows))
    return file


def avazu_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Lines by column, ten an hour from Tuesday, 21 October 2014, 0h on."""
    draw = random.Random(seed)
    rows = []
    for row in range(count):
        cells = {name: str(draw.choice([1, 5, 1005, 320, -1])) for name in AVAZU_HEADER.split(",")}
        for name in AVAZU_HEADER.split(",")[5:14]:
            cells[name] = f"{draw.choice([3, 1000, 2**31]) + draw.randrange(20):08x}"
        cells["id"] = str(10**19 + row * 7)
        cells["click"] = str(int(draw.random() < 0.3))
        cells["hour"] = f"14{10}{21 + row // 240:02d}{row // 10 % 24:02d}"
        rows.append(cells)
    return rows


def write_avazu(file: Path, rows: Sequence[dict[str, str]]) -> Path:
    lines = [AVAZU_HEADER, *(",".join(cells.values()) for cells in rows)]
    file.write_text("\n".join(lines) + "\n")
    return file


def frappe_rows(count: int, seed: int = 0) -> list[list[str]]:
    """Label and ten ids a line, other ids in each column."""
    draw = random.Random(seed)
    return [
        [
            draw.choice(["1", "-1", "-1"]),
            *(str(column * 100 + min(int(draw.paretovariate(0.7)), 90)) for column in range(10)),
        ]
        for _ in range(count)
    ]


def write_frappe(file: Path, rows: Sequence[Sequence[str]]) -> Path:
    lines = (" ".join([label, *(f"{cell}:1" for cell in cells)]) for label, *cells in rows)
    file.write_text("".join(line + "\n" for line in lines))
    return file


def split_by_hash(row: int, seed: int, ratio: Sequence[int]) -> int:
    """Split of a row: its hash modulo the ratio's sum."""
    part = split_mix(seed, row, 0, 0) % sum(ratio)
    return (part >= ratio[0]) + (part >= ratio[0] + ratio[1])


def split_mix(seed: int, *keys: int) -> int:
    """SplitMix64 of the seed, then of what came out and each key."""
    state = _mix(seed)
    for key in keys:
        state = _mix(state ^ key)
    return state


def _mix(x: int) -> int:
    mask = 2**64 - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def rows_of(store: EventStore) -> list[list[int]]:
    """Row numbers of each split, over all partitions."""
    return [
        [int(row) for part in store.partitions for row in part.requests(split).time]
        for split in SPLITS
    ]


def check_columns(
    store: EventStore,
    labels: Sequence[int],
    columns: dict[str, list[str | None]],
    splits: Sequence[int],
    min_count: int,
) -> None:
    """The store says of every row what the log says, by counts of the training rows alone.

    Args:
        labels: of all rows of the log.
        columns: values of all rows, as text; None is missing.
        splits: of all rows.
    """
    assert [name for name, _ in store.context] == list(columns)
    expected_rows = [[row for row, s in enumerate(splits) if s == split] for split in range(3)]
    assert rows_of(store) == expected_rows
    for name, values in columns.items():
        counts = Counter(values[row] for row in expected_rows[0])
        missing = counts.pop(None, 0)
        kept = {value: count for value, count in counts.items() if count >= min_count}
        words = store.originals(name).to_pylist()
        assert words[:2] == [None, None]
        values_by_id = [str(word) for word in words[2:]]
        assert sorted(values_by_id) == sorted(kept), name
        unknown = len(expected_rows[0]) - missing - sum(kept.values())
        expected_counts = [unknown, missing, *(kept[value] for value in values_by_id)]
        assert store.train_counts(name).tolist() == expected_counts
        assert dict(store.context)[name] == len(words)
        ids = {None: 1} | {value: id_ for id_, value in enumerate(values_by_id, start=2)}
        for split in SPLITS:
            for part in store.partitions:
                of = part.requests(split)
                expected = [ids.get(values[row], 0) for row in of.time.tolist()]
                assert of.context[name].tolist() == expected, name
    for split in SPLITS:
        for part in store.partitions:
            of = part.requests(split)
            assert of.labels.tolist() == [labels[row] for row in of.time.tolist()]
            assert of.candidates.tolist() == [1] * len(of)
