import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError
from tests.trainer.run_folders import edit, write_run
from trainer.metrics import Difference
from trainer.report.figures import Series, curves
from trainer.report.page import load_runs, write_report
from trainer.report.sections import _series

OPTIONAL_SECTIONS = {
    "summary.json": "Test metrics",
    "metrics.jsonl": "Training",
    "plan.json": "Sharding plan",
    "analysis.json": "Table lookups per step",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs; copied by tests that change them."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "dare", "dare", auc=0.7969)
    write_run(folder / "twin", "twin", auc=0.7846)
    return folder


@pytest.fixture
def runs(written: Path, tmp_path: Path) -> list[Path]:
    return [
        Path(shutil.copytree(written / name, tmp_path / "runs" / name)) for name in ("dare", "twin")
    ]


def report(runs: list[Path], title: str = "Report", **differences: Difference) -> str:
    path = runs[0].parent / "report.html"
    write_report(path, runs, title, differences=differences)
    return path.read_text(encoding="utf-8")


def text(html: str) -> str:
    """What a reader sees, with single spaces."""
    html = re.sub(r"<(style|title)>.*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def sections(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


class Nesting(HTMLParser):
    """Asserts that every element is closed, in order."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_report_of_one_run_has_every_section(runs: list[Path]) -> None:
    assert sections(report(runs[:1])) == [
        "Test metrics",
        "Data",
        "Training",
        "Sharding plan",
        "Table lookups per step",
        "Behaviour of the model",
        "Provenance",
    ]


def test_report_of_two_runs_compares_them(runs: list[Path]) -> None:
    html = report(runs, **{"dare − twin": Difference(0.0123, (0.0094, 0.0151))})
    seen = text(html)
    assert "dare ranks with AUC 0.7969 (0.7928–0.8010) on the test requests" in seen
    assert "ahead of twin with 0.7846." in seen
    assert "Paired difference of AUC" in seen
    assert "+0.0123" in seen
    assert '<td class="best">0.7969</td><td>0.7846</td>' in html


def test_numbers_are_those_of_the_files(runs: list[Path]) -> None:
    seen = text(report(runs[:1]))
    for fact in (
        "events 1,469,307",
        "train requests 113,117",
        "86,502 candidates of 2,143 users, 33.3 % of them positive",
        "attention_item 68,510 16 4.2 MiB row_wise fused exact_row_wise_adagrad 0, 1",
        "attention_item 42,840 + 1,632,000",
        "Training loss 0.693 → 0.527",
        "Seed 1",
        "twofold train dare --data stores/demo --out runs/dare",
    ):
        assert fact in seen, fact


def test_page_needs_nothing_from_elsewhere_and_stays_small(runs: list[Path]) -> None:
    html = report(runs)
    assert "<script" not in html
    assert "@import" not in html
    assert "url(http" not in html
    # references point into the page; namespaces are names, not links
    assert all(link.startswith("#") for link in re.findall(r'(?:href|src)="([^"]*)"', html))
    assert len(html) < 500_000


def test_page_is_well_formed(runs: list[Path]) -> None:
    parser = Nesting()
    parser.feed(report(runs))
    parser.close()
    assert parser.open == []


def test_every_reference_of_a_picture_is_in_the_page(runs: list[Path]) -> None:
    html = report(runs)
    wanted = re.findall(r'href="#([^"]+)"', html) + re.findall(r"url\(#([^)]+)\)", html)
    assert wanted
    assert set(wanted) <= set(re.findall(r' id="([^"]+)"', html))


def test_pictures_take_their_colours_and_font_from_the_page(runs: list[Path]) -> None:
    pictures = "".join(re.findall(r"<svg.*?</svg>", report(runs), flags=re.DOTALL))
    assert "var(--run-0)" in pictures
    assert "var(--run-1)" in pictures
    assert "font-family" not in pictures
    assert not re.findall(r"#0a0[01]", pictures)


def test_the_same_runs_give_the_same_bytes(runs: list[Path]) -> None:
    assert report(runs) == report(runs)


@pytest.mark.parametrize("file", OPTIONAL_SECTIONS)
def test_a_section_whose_file_is_missing_is_left_out(runs: list[Path], file: str) -> None:
    (runs[0] / file).unlink()
    assert OPTIONAL_SECTIONS[file] not in sections(report(runs[:1]))


def test_a_run_that_has_only_begun_can_be_reported(runs: list[Path]) -> None:
    for file in OPTIONAL_SECTIONS:
        (runs[0] / file).unlink()
    assert sections(report(runs[:1])) == ["Data", "Provenance"]


def test_undefined_metrics_are_dashes(runs: list[Path]) -> None:
    edit(runs[0], "summary.json", auc=None, auc_interval=[None, None], gauc=None, positives=0)
    seen = text(report(runs[:1]))
    assert "AUC – 95 % interval – GAUC, within users –" in seen
    assert "AUC with 95 % intervals" not in seen


def test_text_of_the_files_is_escaped(runs: list[Path]) -> None:
    evil = '<script>alert("&$x^2$")</script>'
    edit(runs[0], "config.json", experiment=evil, command=evil, config={"name": evil})
    edit(runs[0], "summary.json", model=evil)
    html = report(runs, title=evil)
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_several_runs_are_called_by_their_folders_one_by_its_model(
    runs: list[Path], tmp_path: Path
) -> None:
    edit(runs[1], "summary.json", model="twin_completejourney")
    assert [run.name for run in load_runs(runs[1:])] == ["twin_completejourney"]
    assert [run.name for run in load_runs(runs)] == ["dare", "twin"]
    again = shutil.copytree(runs[0], tmp_path / "again" / "dare")
    assert [run.name for run in load_runs([runs[0], again])] == ["runs/dare", "again/dare"]


def test_an_evaluation_stands_at_the_samples_trained_until_its_step(runs: list[Path]) -> None:
    rows = [
        {"kind": "train", "step": 10, "samples": 1000, "loss": 0.6},
        {"kind": "eval", "split": "val", "step": 10, "samples": 77, "auc": 0.7},
        {"kind": "train", "step": 20, "samples": 2000, "loss": 0.5},
        {"kind": "eval", "split": "val", "step": 15, "samples": 77, "auc": 0.8},
    ]
    (runs[0] / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = load_runs(runs)[0]
    assert _series(run, "eval", "auc").x.tolist() == [1000, 1500]
    assert _series(run, "train", "loss").x.tolist() == [1000, 2000]


def test_runs_on_different_data_are_said_not_to_compare(runs: list[Path]) -> None:
    assert "cannot be compared" not in report(runs)
    edit(runs[1], "config.json", data={"source": "taobao", "fingerprint": "0b"})
    assert "2 different event stores. Their metrics cannot be compared" in text(report(runs))


def test_blocks_of_a_plan_are_as_high_as_their_bytes(runs: list[Path]) -> None:
    table = {"width": 16, "compute_kernel": "fused", "optimizer": "", "sharding_type": "table_wise"}
    big = {"name": "big", "rows": 300, "bytes": 19200, "shards": [_whole(0, 300)], **table}
    half = {"name": "half", "rows": 150, "bytes": 9600, "shards": [_whole(1, 150)], **table}
    edit(runs[0], "plan.json", world_size=2, tables=[big, half])
    heights = re.findall(r'class="block" style="height: ([0-9.]+)px', report(runs[:1]))
    assert [float(height) for height in heights] == [240, 120]


def _whole(rank: int, rows: int) -> dict[str, object]:
    return {"rank": rank, "offset": [0, 0], "size": [rows, 16]}


def test_a_replicated_table_stands_on_every_rank(runs: list[Path]) -> None:
    table = {"width": 16, "compute_kernel": "dense", "optimizer": "adam", "shards": None}
    table |= {"name": "small", "rows": 10, "bytes": 640, "sharding_type": "data_parallel"}
    edit(runs[0], "plan.json", world_size=3, tables=[table])
    assert report(runs[:1]).count('title="small, rank') == 3


def test_a_last_line_cut_short_is_left_out_but_no_other(runs: list[Path]) -> None:
    log = runs[0] / "metrics.jsonl"
    complete = log.read_text()
    rows = len(complete.splitlines())
    log.write_text(complete + '{"kind": "tra')
    assert len(load_runs(runs)[0].metrics) == rows
    log.write_text('{"kind": "tra\n' + complete)
    with pytest.raises(InputError, match=r"metrics.jsonl, line 1, is not JSON"):
        load_runs(runs)


def test_a_folder_that_is_no_run_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run folder: it has no config\.json"):
        write_report(tmp_path / "report.html", [tmp_path], "Report")
    assert list(tmp_path.iterdir()) == []


def test_a_long_run_does_not_make_a_large_picture() -> None:
    steps = np.arange(1.0, 200_001)
    picture = curves([Series("dare", 0, steps, 1 / steps)], "loss")
    assert len(picture) < 60_000


def test_a_run_of_one_logged_step_has_a_picture() -> None:
    one = Series("dare", 0, np.array([2048.0]), np.array([0.69]))
    assert "0.6900" in curves([one], "loss")
