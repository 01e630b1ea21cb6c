from __future__ import annotations

from pathlib import Path

import pytest

from data.prepare import prepare
from data.sources.tmall import TmallSource
from data.store import EventStore

HEADER = "user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type\n"
LOG = """\
1,10,1,100,1000,0829,0
1,11,1,100,,0828,0
1,12,2,101,1001,0829,2
1,13,2,101,1001,829,0
1,14,2,101,1001,0828,0
1,15,3,102,1001,1111,0
2,16,3,102,1001,1111,0
2,17,3,102,1001,1111,0
"""
SMALL = {"min_events": 4, "train_targets": 1}


@pytest.mark.parametrize("header", ["", HEADER])
def test_clicks_are_ordered_by_day_then_by_file(tmp_path: Path, header: str) -> None:
    (tmp_path / "log.csv").write_text(header + LOG)
    source = TmallSource(path=tmp_path / "log.csv", side=("seller", "brand"), **SMALL)
    prepare(source, tmp_path / "store")
    store = EventStore.open(tmp_path / "store")
    words = store.originals("item").to_pylist()
    [partition] = store.partitions
    # 12 is a purchase, the stamp of 13 has three characters
    assert [words[i] for i in partition.events["item"]] == [11, 14, 10, 15]
    assert partition.events["time"].tolist() == [0, 1, 2, 3]
    brands = store.originals("brand").to_pylist()
    assert [brands[i] for i in partition.events["brand"]] == [None, 1001, 1000, 1001]
    assert store.fields == [("item", 7), ("category", 4), ("seller", 4), ("brand", 3)]
    # what the user clicked anywhere is no negative
    test = partition.requests("test")
    assert words[test.candidates[0]] == 15
    assert {words[i] for i in test.candidates[1:]} <= {16, 17}


def test_a_model_sees_no_more_than_dare_s_unless_asked(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    prepare(TmallSource(path=tmp_path / "log.csv", **SMALL), tmp_path / "store")
    assert EventStore.open(tmp_path / "store").fields == [("item", 7), ("category", 4)]


def test_order_by_time_hides_the_clicks_of_the_same_day(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    prepare(TmallSource(path=tmp_path / "log.csv", order="time", **SMALL), tmp_path / "store")
    [partition] = EventStore.open(tmp_path / "store").partitions
    assert partition.events["time"].tolist() == [828, 828, 829, 1111]
    assert partition.requests("train").end.tolist() == [0]  # 14, after 11 of the same day
    assert partition.requests("test").end.tolist() == [3]
