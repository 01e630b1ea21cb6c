"""The mistakes a user makes at the command line: one message, exit code 2, nothing left behind."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.sources.synthetic import Synthetic
from tests.trainer.command_lines import TINY, Ended, Job
from trainer import cli

HEADER = "user,item,time,label\n"
LOGS = {
    "missing column": ("user,item\n1,2\n", "", "no column 'time'"),
    "cut line": (f"{HEADER}1,2,3,0\n1,2", "", "line 3: 2 columns where 4 are expected"),
    "wrong type": (f"{HEADER}1,2,soon,0\n", "", "column time"),
    "empty file": ("", "", "mpty"),
    "no rows": (HEADER, "", "no events"),
    "negative id": (f"{HEADER}-1,2,3,0\n", "", "id -1 in event 1"),
    "huge id": (f"{HEADER}{2**64},2,3,0\n", "", "read as text"),
    "nan time": (f"{HEADER}1,2,nan,0\n", "", "time nan"),
    "infinite time": (f"{HEADER}1,2,inf,0\n", "", "time inf"),
    "nan label": (f"{HEADER}1,2,3,nan\n", "--label label", "label nan is not 0 or 1"),
    "label 2": (f"{HEADER}1,2,3,2\n", "--label label", "label 2.0 is not 0 or 1"),
    "unsorted": (f"{HEADER}1,2,9,0\n1,3,5,1\n", "--label label", "--sort"),
    "no label column": (f"{HEADER}1,2,3,0\n", "--label clicked", "no column 'clicked'"),
    "option out of range": (f"{HEADER}1,2,3,0\n", "--negatives 0", "at least 1, got 0"),
    "no partitions": (f"{HEADER}1,2,3,0\n", "--partitions 0", "from 1 to 512, got 0"),
}
TRAINING = {
    "no history": ("--history-length 0", "history_length must be positive"),
    "no K": ("--model.top-k 0", "top_k must be at least 1, got 0"),
    "no width": ("--fields.attention-dim 0", "Widths must be positive"),
    "nan rate": ("--dense-learning-rate nan", "dense_learning_rate must be positive"),
    "infinite rate": ("--tables.learning-rate inf", "learning_rate must be positive"),
    "huge seed": (f"--seed {2**63}", "seed must be below 2**63"),
    "huge history": (f"--history-length {2**99}", "below 2**31"),
    "huge K": (f"--model.top-k {10**400}", "top_k must be below 2**31"),
    "unknown field": ("--fields.attention-dims shop 4", "['shop'], but the fields are ['item'"),
    "unknown table": ("--sharding.table-kinds shop row_wise", "unknown tables ['shop']"),
    "no kernel": ("--tables.kind adam", "runs on CUDA only"),
    "unequal widths": (
        "--model.sharing shared --fields.attention-dim 8 --fields.attention-init-std 0.01",
        "attention_dim 8 and representation_dim 4",
    ),
    "no memory": ("--sharding.memory-gib 1e-9", "do not fit on 1 rank(s)"),
    "divergence": ("--tables.learning-rate 1e38 --tables.kind sgd", "the model has diverged"),
}


def told(err: str, *parts: str) -> None:
    """One message with all the parts, and nothing of ours around it."""
    words = " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert err.count("twofold: ") == 1 or err.count("╰") == 1, err
    for part in parts:
        assert part in words, f"{part!r} not in: {err}"


def refused(ended: Ended, *parts: str) -> None:
    """All ranks end with 2, and one of them says why."""
    assert set(ended.codes) == {2}, ended
    told(ended.err, *parts)


@pytest.mark.parametrize("case", LOGS, ids=lambda name: name.replace(" ", "-"))
def test_bad_log(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    text, options, message = LOGS[case]
    (tmp_path / "log.csv").write_text(text)
    paths = ["--path", str(tmp_path / "log.csv"), "--out", str(tmp_path / "store")]
    assert cli.run(["prepare", "table", *paths, *options.split()]) == 2
    told(capsys.readouterr().err, message)
    assert list(tmp_path.iterdir()) == [tmp_path / "log.csv"]


def test_missing_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone, out = str(tmp_path / "gone.csv"), str(tmp_path / "store")
    for source in ("table", "taobao", "tmall"):
        assert cli.run(["prepare", source, "--path", gone, "--out", out]) == 2
        told(capsys.readouterr().err, gone)
    assert list(tmp_path.iterdir()) == []


def test_one_event_and_twice_the_same_are_no_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.csv").write_text(f"{HEADER}1,2,3,0\n2,2,3,1\n2,2,3,1\n")
    paths = ["--path", str(tmp_path / "log.csv"), "--out", str(tmp_path / "store")]
    assert cli.run(["prepare", "table", *paths, "--label", "label"]) == 0
    assert "users 2" in " ".join(capsys.readouterr().out.split())


def test_no_bytes_crash_the_preparation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, log, out = random.Random(0), tmp_path / "log.csv", tmp_path / "store"
    alphabet = b'0123456789,,,\n\n\n"-.eE \t;\x00\xff\xc3(nanif'
    for _ in range(150):
        body = bytes(draw.choices(alphabet, k=draw.randrange(120)))
        log.write_bytes(body if draw.random() < 0.2 else HEADER.encode() + body)
        options = draw.choice([[], ["--label", "label"], ["--sort"], ["--text", "user", "item"]])
        paths = ["--path", str(log), "--out", str(out)]
        code = cli.run(["prepare", "table", *paths, *options, "--force"])
        err = capsys.readouterr().err
        assert code in (0, 2), (log.read_bytes(), options, err)
        assert "Traceback" not in err
        assert {*tmp_path.iterdir()} <= {log, out}


@pytest.mark.parametrize("case", TRAINING, ids=lambda name: name.replace(" ", "-"))
def test_bad_override(store: Path, tmp_path: Path, case: str) -> None:
    options, message = TRAINING[case]
    out = tmp_path / "run"
    line = ["train", "dare", "--data", store, "--out", out, *TINY, *options.split()]
    refused(Job(tmp_path, *line).end(), message)
    assert not out.exists()


def test_bad_folders(store: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").touch()
    for data, out, message in (
        (tmp_path / "none", tmp_path / "run", "does not exist"),
        (tmp_path / "thesis", tmp_path / "run", "no event store"),
        (store, tmp_path / "thesis", "is not empty and holds no run"),
        (store, tmp_path / "thesis" / "text", "cannot be made"),
        (store, store, "is not empty and holds no run"),
    ):
        job = Job(tmp_path, "train", "dare", "--data", data, "--out", out, *TINY)
        refused(job.end(), message)
        job.err.unlink()
    assert not (tmp_path / "run").exists()
    assert [file.name for file in (tmp_path / "thesis").iterdir() if file.name[0] != "."] == [
        "text"
    ]


def test_store_of_an_older_version(store: Path, tmp_path: Path) -> None:
    old = shutil.copytree(store, tmp_path / "old")
    info = json.loads((old / "store.json").read_text())
    (old / "store.json").write_text(json.dumps(info | {"format": 0}))
    job = Job(tmp_path, "train", "dare", "--data", old, "--out", tmp_path / "run", *TINY)
    refused(job.end(), "format 0", "Prepare")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("world_size", [1, 2])
def test_run_folder_in_use(store: Path, tmp_path: Path, world_size: int) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = ["train", "dare", "--data", store, "--out", out, *TINY]
        refused(Job(tmp_path, *line, world_size=world_size).end(), "in use by another job")
    assert [file.name for file in out.iterdir()] == [".lock"]


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one step."""
    folder = tmp_path_factory.mktemp("bad")
    line = ["train", "dare", "--data", store, "--out", folder / "run", *TINY]
    assert Job(folder, *line, "--requests-per-batch", 400).end().codes == [0]
    return folder / "run"


def test_checkpoint_of_another_model(store: Path, run: Path, tmp_path: Path) -> None:
    before = sorted((file, file.stat().st_mtime_ns) for file in run.rglob("[!.]*"))
    train = ["train", "dare", "--data", store, "--out", run, *TINY]
    for line, message in (
        ([*train, "--resume"], "requests_per_batch: 400 -> 67"),
        ([*train, "--requests-per-batch", 400, "--resume", "--model.top-k", 3], "top_k: 4 -> 3"),
        (train, "--resume, or start over with --replace"),
        (["evaluate", tmp_path, "--data", store], "is no run folder"),
    ):
        job = Job(tmp_path, *line)
        refused(job.end(), message)
        job.err.unlink()
    assert before == sorted((file, file.stat().st_mtime_ns) for file in run.rglob("[!.]*"))


def test_another_store(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    options = ["--users", "60", "--events-per-user", "40", "--items", "200", "--categories", "10"]
    assert cli.run(["prepare", "synthetic", "--out", str(other), *options]) == 0
    train = ["train", "dare", "--data", other, "--out", run, *TINY, "--requests-per-batch", 400]
    for line, message in (
        ([*train, "--resume"], "another store"),
        (["evaluate", run, "--data", other], "is not the store that"),
    ):
        job = Job(tmp_path, *line)
        refused(job.end(), message)
        job.err.unlink()


def test_more_ranks_than_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, out = tmp_path / "store", tmp_path / "run"
    options = ["--users", "1", "--events-per-user", "16", "--lengths", "fixed"]
    assert cli.run(["prepare", "synthetic", "--out", str(store), *options]) == 0
    job = Job(tmp_path, "train", "dare", "--data", store, "--out", out, *TINY, world_size=2)
    refused(job.end(), "request", "rank")
    assert not out.exists()


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_mistake_of_one_rank_ends_all(store: Path, tmp_path: Path, wrong: int) -> None:
    """One host lacks the store: its rank says so, the other only ends."""
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
    (tmp_path / str(1 - wrong) / "store").symlink_to(store)
    job = Job(
        tmp_path,
        *["train", "dare", "--data", "store", "--out", tmp_path / "run", *TINY],
        world_size=2,
        cwd="{rank}",
    )
    ended = job.end()
    assert ended.codes[wrong] == 2
    assert ended.codes[1 - wrong] != 0
    told(ended.err, "store does not exist")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """One of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mount is not allowed here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_full_disk(store: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(small_disk / "store")
    assert cli.run(["prepare", "synthetic", "--users", "1000", "--out", out]) == 2
    told(capsys.readouterr().err, "is full", "--out")
    assert list(small_disk.iterdir()) == []
    wide = ["--fields.attention-dim", 512, "--fields.representation-dim", 512]
    line = ["train", "dare", "--data", store, "--out", small_disk / "run", *TINY, *wide]
    refused(Job(small_disk.parent, *line).end(), "No space left", "free")
    assert list(small_disk.rglob("*")) == []


def test_ctrl_c_in_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Synthetic) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Synthetic, "event_frames", interrupt)
    refused(
        Job(tmp_path, "prepare", "synthetic", "--out", tmp_path / "store").end(),
        "Interrupted. What was not complete is removed.",
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["stderr", "stdout"]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("moment", ["training", "later"])
def test_ctrl_c_in_training(store: Path, tmp_path: Path, world_size: int, moment: str) -> None:
    """Before the first checkpoint nothing is left; after it the run can be resumed."""
    out, endless = tmp_path / "run", ["--epochs", 100_000, "--patience", 100_000]
    often = ["--evaluate-every", 3 if moment == "later" else 1_000_000]
    line = ["train", "dare", "--data", store, "--out", out, *TINY, *endless, *often]
    job = Job(tmp_path, *line, world_size=world_size)
    saved = out / "checkpoints" / "last" / "position.json"
    job.wait_until(saved.exists if moment == "later" else job.prints("train 10/"))
    job.signal(signal.SIGINT)
    ended = job.end()
    # the other rank may notice first that its connection is gone
    assert 2 in ended.codes
    assert {*ended.codes} <= {1, 2}
    kept = "Complete checkpoints are kept: --resume goes on from the last one"
    told(ended.err, "Interrupted", kept if moment == "later" else "nothing is kept")
    assert saved.exists() == (moment == "later")
    assert out.exists() == (moment == "later")


def test_sigterm_of_one_rank_ends_all(store: Path, tmp_path: Path) -> None:
    """As a scheduler ends a job: all save, and say that they can be started again."""
    out = tmp_path / "run"
    line = ["train", "dare", "--data", store, "--out", out, *TINY, "--epochs", 100_000]
    job = Job(tmp_path, *line, "--evaluate-every", 1_000_000, world_size=2)
    job.wait_until(job.prints("train 10/"))
    job.signal(signal.SIGTERM, ranks=[1])
    ended = job.end()
    assert ended.codes == [75, 75]
    told(ended.err, "saved after step", "--resume goes on from there")
    assert (out / "checkpoints" / "last" / "position.json").exists()
