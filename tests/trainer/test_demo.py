"""``twofold demo`` from its command line to its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.trainer.command_lines import TINY
from trainer import cli

MODEL_KEYS = {
    "auc", "auc_interval", "gauc", "logloss", "normalized_entropy", "calibration", "train_samples",
    "train_seconds", "samples_per_second", "loss_first", "loss_last",
}  # fmt: skip


@pytest.fixture
def demo_store(store: Path, tmp_path: Path) -> Path:
    """The small store, by the name of the demonstration log."""
    copy = shutil.copytree(store, tmp_path / "store")
    info = json.loads((copy / "store.json").read_text())
    (copy / "store.json").write_text(json.dumps(info | {"source": "completejourney"}))
    return copy


@pytest.mark.slow
def test_demo_compares_dare_with_twin(
    demo_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "100")
    # the estimate lies within an interval of enough resamples
    arguments = ["demo", "--store", "store", "--processes", "1", "--", *TINY, "--bootstrap=200"]
    assert cli.run(arguments) == 0
    summary = json.loads(Path("runs/demo/summary.json").read_text())
    assert {"dataset", "events", "users", "requests", "world_size", "models", "versions"} == (
        summary.keys() - {"difference"}
    )
    assert (summary["dataset"], summary["world_size"]) == ("completejourney", 1)
    assert summary["requests"] == {"train": 268, "val": 48, "test": 53}
    assert {name: set(model) for name, model in summary["models"].items()} == {
        "dare": MODEL_KEYS,
        "twin": MODEL_KEYS,
    }
    for name, model in summary["models"].items():
        run = json.loads(Path(f"runs/demo/{name}/config.json").read_text())
        assert run["config"]["history_length"] == 16  # what stands behind the -- arrived
        assert 0 < model["auc_interval"][0] <= model["auc"] <= model["auc_interval"][1] < 1
    page = Path("runs/demo/report.html").read_text()
    assert "dare" in page
    assert "twin" in page
    shown = capfd.readouterr()
    assert "Traceback" not in shown.err
    assert shown.out.rstrip().endswith("Report: runs/demo/report.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "0"], "--processes must be at least 1, got 0"),
        (["--store", "store"], "holds synthetic, not completejourney"),
        (["--store", "thesis"], "no event store"),
    ],
)
def test_demo_refuses(
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("store").symlink_to(store)
    Path("thesis").mkdir()
    assert cli.run(["demo", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()
