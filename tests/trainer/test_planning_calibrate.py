"""Calibration: an entry that the catalogue reads, of speeds that a known machine would show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sharding.catalogue import load_nodes
from trainer import cli
from trainer.planning import calibrate as calibration
from trainer.planning.calibrate import as_toml
from trainer.planning.rank_speeds import rank_speeds

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Work takes no time but this."""
    told = [0.0]

    def seconds(work: Any, device: torch.device, now: Any = None) -> float:
        work()
        return told[0]

    monkeypatch.setattr(calibration, "median_seconds", seconds)
    monkeypatch.setattr(calibration, "COPIED", 2**12)
    monkeypatch.setattr(calibration, "SIDE", 10)
    return told


def test_speeds_are_work_over_time(clock: list[float]) -> None:
    clock[0] = 1e-3
    assert calibration.copy_gbs(CPU) == pytest.approx(2 * 4096 / 1e-3 / 1e9)
    assert calibration.product_tflops(CPU) == pytest.approx(2 * 1000 / 1e-3 / 1e12)


def test_an_entry_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    node = load_nodes()["CPU-SPR"]
    file = tmp_path / "mine.toml"
    file.write_text(as_toml(node).replace("[CPU-SPR]", "[mine]"))
    mine = load_nodes(file)["mine"]
    assert {**vars(mine), "name": ""} == {**vars(node), "name": ""}


def test_nothing_is_written_over_and_names_are_plain(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("kept")
    assert cli.run(["plan", "--calibrate", "--out", str(file)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert file.read_text() == "kept"
    other = str(tmp_path / "other.toml")
    assert cli.run(["plan", "--calibrate", "--out", other, "--name", "a]b"]) == 2
    assert "letters, digits and hyphens" in capsys.readouterr().err
    assert cli.run(["plan", "--calibrate", "--out", other, "--ranks", "-1"]) == 2
    assert "--ranks is from 0 to" in capsys.readouterr().err


@pytest.mark.soak
def test_two_ranks_of_this_machine_are_measured() -> None:
    found = rank_speeds(2, cuda=False, overhead=1.0)
    assert min(found.exchange_gbs, found.all_to_all_ms, found.all_reduce_ms) > 0
    assert max(found.all_to_all_ms, found.all_reduce_ms) < 1e3
