"""The published protocol on raw files of Taobao's and Tmall's format, from log to table.

The files are drawn, the format is true: what their users would run, on users of 210 clicks.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from data.prepare import prepare
from data.sources.taobao import TaobaoSource
from data.sources.tmall import TmallSource
from data.store import EventStore
from tests.trainer.sweep.small_sweeps import lines
from trainer import cli

USERS, CLICKS, ITEMS = 12, 215, 400


def taobao(file: Path) -> TaobaoSource:
    """No header: user, item, category, behaviour, second."""
    draw, rows = random.Random(0), []
    for second in range(CLICKS):
        for user in range(1, USERS + 1):
            item = draw.randrange(1, ITEMS)
            rows.append(f"{user},{item},{item % 7},pv,{1_511_544_070 + second}")
        rows.append(f"1,{draw.randrange(1, ITEMS)},1,buy,{1_511_544_070 + second}")
    file.write_text("\n".join(rows) + "\n")
    return TaobaoSource(path=file)


def tmall(file: Path) -> TmallSource:
    """A header, seller and brand, days as MMDD."""
    draw = random.Random(0)
    rows = ["user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type"]
    for click in range(CLICKS):
        for user in range(1, USERS + 1):
            item = draw.randrange(1, ITEMS)
            rows.append(f"{user},{item},{item % 7},{item % 5},,{511 + click // 40:04d},0")
    file.write_text("\n".join(rows) + "\n")
    return TmallSource(path=file)


@pytest.mark.parametrize("source", [taobao, tmall])
@pytest.mark.usefixtures("small_table")
def test_the_published_table_comes_from_a_raw_file(
    source: type, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(source(tmp_path / "log.csv"), tmp_path / "store")
    info = EventStore.open(tmp_path / "store").info
    # 19 training targets a user, each with two negatives
    assert info.requests == {"train": 19 * USERS, "val": USERS, "test": USERS}
    assert info.candidates["train"] == 3 * info.requests["train"]
    code = cli.run(
        [
            "sweep", "dare-table-paper", "--data", str(tmp_path / "store"), "--out",
            str(tmp_path / "sweep"), "--seeds", "1", "--rows", "dare", "twin", "--",
            "--fields.attention-dim=4", "--fields.representation-dim=4", "--bootstrap=10",
        ]
    )  # fmt: skip
    assert code == 0, capsys.readouterr()
    rows = lines(tmp_path / "sweep" / "table.csv")
    assert [row["row"] for row in rows] == ["dare", "twin"]
    for cell in lines(tmp_path / "sweep" / "results.csv"):
        assert float(cell["test_auc"]) == pytest.approx(0.5, abs=0.35)  # drawn: nothing to learn
