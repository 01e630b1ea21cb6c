from __future__ import annotations

import dataclasses
import gzip
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from data.prepare import prepare
from data.sources.taobao import TaobaoSource
from data.store import EventStore

SMALL = {"min_events": 6, "train_targets": 2, "train_step": 2}


def write_log(file: Path) -> Path:
    """Users 5 and 9 with 7 and 6 page views in turn, and purchases that do not count."""
    lines = []
    for i in range(7):
        lines.append(f"5,{100 + i},{i % 2},pv,{1000 - i}")
        lines.append(f"5,{100 + i},{i % 2},buy,0")
        if i < 6:
            lines.append(f"9,{200 + i},7,pv,{2000 + i}")
    lines += [f"1,{item},1,pv,0" for item in (300, 301, 300)]
    file.write_text("\n".join(lines) + "\n")
    return file


def test_file_order_and_the_last_targets(tmp_path: Path) -> None:
    info = prepare(TaobaoSource(path=write_log(tmp_path / "log.csv"), **SMALL), tmp_path / "store")
    assert (info.users, info.events, info.items, info.order) == (2, 13, 15, "file")
    store = EventStore.open(tmp_path / "store")
    words = store.originals("item").to_pylist()
    [partition] = store.partitions
    assert [words[i] for i in partition.events["item"][:7]] == list(range(100, 107))

    def positives(split: str) -> list[int]:
        return [words[i] for i in partition.requests(split).candidates[::3]]

    # user 5 ends with 106, user 9 with 205: targets -1, -2, and -3 and -5
    assert positives("test") == [106, 205]
    assert positives("val") == [105, 204]
    assert positives("train") == [102, 104, 201, 203]
    train = partition.requests("train")
    assert train.end.tolist() == [2, 4, 7 + 1, 7 + 3]
    assert train.labels.tolist() == [1, 0, 0] * 4


def test_clicks_of_users_who_are_left_out_count_for_the_negatives(tmp_path: Path) -> None:
    source = TaobaoSource(path=write_log(tmp_path / "log.csv"), **SMALL)
    prepare(dataclasses.replace(source, negatives=200), tmp_path / "store")
    store = EventStore.open(tmp_path / "store")
    [partition] = store.partitions
    words = store.originals("item").to_pylist()
    of = partition.requests("test")  # of user 5, then of user 9
    drawn = Counter(words[i] for i in of.candidates[1 : of.offsets[1]])
    # free for user 5: six items of user 9 once each, 300 twice and 301 once
    assert set(drawn) == {*range(200, 206), 300, 301}
    assert drawn[300] / 200 == pytest.approx(2 / 9, abs=0.09)  # three standard deviations


def test_order_by_time(tmp_path: Path) -> None:
    source = TaobaoSource(path=write_log(tmp_path / "log.csv"), order="time", **SMALL)
    prepare(source, tmp_path / "store")
    store = EventStore.open(tmp_path / "store")
    words = store.originals("item").to_pylist()
    [partition] = store.partitions
    # user 5's times go down
    assert [words[i] for i in partition.events["item"][:7]] == list(range(106, 99, -1))
    assert partition.events["time"][:7].tolist() == list(range(994, 1001))


def test_a_header_is_not_expected_but_gzip_is_fine(tmp_path: Path) -> None:
    plain = write_log(tmp_path / "log.csv")
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    one = prepare(TaobaoSource(path=plain, **SMALL), tmp_path / "a")
    two = prepare(TaobaoSource(path=tmp_path / "log.csv.gz", **SMALL), tmp_path / "b")
    assert one.fingerprint == two.fingerprint


def test_options_that_leave_no_history_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="min_events must be above 93"):
        TaobaoSource(path=tmp_path, min_events=93)


def test_the_real_head_follows_the_protocol(shared_data: Path, tmp_path: Path) -> None:
    """Against plain Python over the raw lines."""
    file = shared_data / "taobao_userbehavior_head.csv.gz"
    clicks: dict[int, list[int]] = defaultdict(list)
    with gzip.open(file, "rt") as lines:
        for line in lines:
            cells = line.strip().split(",")
            if len(cells) == 5 and cells[3] == "pv":
                clicks[int(cells[0])].append(int(cells[1]))
    frequency = Counter(item for items in clicks.values() for item in items)
    kept = {user: items for user, items in clicks.items() if len(items) >= 210}

    prepare(TaobaoSource(path=file, truncated_line="skip"), tmp_path / "store")
    store = EventStore.open(tmp_path / "store")
    words = store.originals("item").to_pylist()
    assert dict(zip(words[1:], store.items["frequency"][1:], strict=True)) == frequency
    [partition] = store.partitions
    users = partition.original_users.to_pylist()
    assert sorted(users) == sorted(kept)
    for split, targets in (("test", [1]), ("val", [2]), ("train", range(93, 2, -5))):
        requests = partition.requests(split)
        items = [words[i] for i in requests.candidates]
        of_user = [users[int(u) - int(partition.users["user"][0])] for u in requests.user]
        assert items[::3] == [kept[user][-k] for user in users for k in targets]
        for user, one, two in zip(of_user, items[1::3], items[2::3], strict=True):
            assert not {one, two} & set(kept[user])
