"""On a Ray cluster a store becomes what it becomes on one machine, byte for byte, or nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.errors import InputError
from data.prepare import prepare
from data.sources.synthetic import Synthetic
from data.sources.teacher import Teacher
from data.store import EventStore
from tests.trainer.launching import running, start
from tests.trainer.ray_head import running_head

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # Ray takes its time on busy cores
ROOT = Path(__file__).parents[2]


def build(which: str, folder: Path, shared_data: Path) -> list[str]:
    """Stores of tests/data/ray_stores.py; the messages of what was refused."""
    finished = subprocess.run(
        [sys.executable, "-m", "tests.data.ray_stores", which, str(folder), str(shared_data)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=560,
    )
    return [json.loads(line) for line in finished.stdout.splitlines() if line.startswith('"')]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> tuple[Path, list[str]]:
    """The folder of the stores of a log that is made, and the messages."""
    folder = tmp_path_factory.mktemp("stores")
    return folder, build("made", folder, shared_data)


def check_same(folder: Path, name: str, partitions: int) -> None:
    """Every file of both stores, of which there are so many partitions at least."""
    local, on_ray = (folder / f"{name}-{engine}" for engine in ("local", "ray"))
    files = {file.relative_to(local) for file in local.rglob("*.*")}
    assert files == {file.relative_to(on_ray) for file in on_ray.rglob("*.*")}
    for file in files:
        assert (local / file).read_bytes() == (on_ray / file).read_bytes(), file
    store = EventStore.open(on_ray)
    assert store.info.events
    assert len(store.partitions) >= partitions


@pytest.mark.parametrize(("name", "partitions"), [("labelled", 2), ("long", 9)])
def test_every_file_is_the_same(built: tuple[Path, list[str]], name: str, partitions: int) -> None:
    check_same(built[0], name, partitions)


@pytest.mark.soak
def test_every_file_of_other_sources_is_the_same(tmp_path: Path, shared_data: Path) -> None:
    build("more", tmp_path, shared_data)
    for name, partitions in [("synthetic", 2), ("completejourney", 1)]:
        check_same(tmp_path, name, partitions)
    if (tmp_path / "taobao-local").exists():  # the log is here
        check_same(tmp_path, "taobao", 2)


@pytest.mark.soak
def test_on_a_cluster_that_runs_every_file_is_the_same(tmp_path: Path) -> None:
    options = ["--users", "300", "--events-per-user", "100", "--items", "500", "--partitions", "3"]
    prepared = ["twofold", "prepare", "synthetic", *options]
    log = tmp_path / "log"
    with running_head(tmp_path / "head") as head:
        ways = {
            "local": [],
            "ray": ["--engine", "ray", "--address", head.address],
            "auto": ["--engine", "ray", "--address", "auto"],
        }
        environment = head.environment | {"RAY_ADDRESS": head.address}  # what auto stands for
        # the clients find out by themselves that it is on the loopback address
        del environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"]
        for way, words in ways.items():
            process = start(
                *prepared, *words, "--out", tmp_path / f"store-{way}", log=log, **environment
            )
            with running(process, signal.SIGINT):
                assert process.wait(timeout=150) == 0, log.read_text()
        assert head.process.poll() is None  # a client does not end the cluster
    check_same(tmp_path, "store", 3)
    (tmp_path / "store-auto").rename(tmp_path / "again-ray")
    (tmp_path / "store-local").rename(tmp_path / "again-local")
    check_same(tmp_path, "again", 3)


def test_an_error_of_a_task_is_one_message_and_leaves_nothing(
    built: tuple[Path, list[str]],
) -> None:
    folder, (no_date, cut) = built
    assert no_date.startswith(f"{folder}/log/1.csv: column brand, row ")
    assert no_date.endswith("Write ISO dates (2026-01-31 12:00:00) or integers.")
    assert cut.startswith(f"{folder}/log/2.csv, line 2,002: 2 columns where 6 are expected")
    assert cut.endswith("leave the line out with --truncated-line skip.")
    assert not [path for path in folder.iterdir() if path.name.startswith("refused")]


@pytest.mark.soak
def test_ctrl_c_leaves_nothing(out: Path) -> None:
    command = ["prepare", "synthetic", "--users", "400_000", "--engine", "ray", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer.main", *command],
        cwd=ROOT,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # no terminal's, which would have told Ray, too
    )
    deadline = time.monotonic() + 200
    while not list(out.parent.glob("*.partial-*/scratch/*.block")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 2, errors
    assert "Traceback" not in errors


def test_a_cluster_that_is_started_is_on_the_loopback_address_and_asks_for_a_token() -> None:
    program = """
import os
from data.ray_safety import shut_out_others
shut_out_others()
from data.ray_engine import cluster
from tests.trainer.launching import family, listening_beyond_loopback
with cluster(None):
    members = family(os.getpid())
    print(len(members), listening_beyond_loopback(members), os.environ["RAY_AUTH_MODE"])
"""
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.split(maxsplit=1)
    assert int(told[0]) > 4  # all that Ray consists of
    assert told[1] == "[] token\n"


def test_rows_without_users_are_refused_by_name(out: Path) -> None:
    with pytest.raises(InputError, match=r"source teacher has rows without users.*engine local"):
        prepare(Teacher(), out, engine="ray")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"])
def test_an_address_where_nobody_answers_is_refused(out: Path, address: str) -> None:
    with pytest.raises(InputError, match=rf"No Ray cluster answers at --address {address} .*auto"):
        prepare(Synthetic(), out, engine="ray", address=address)


def test_an_address_without_the_engine_is_refused(out: Path) -> None:
    with pytest.raises(InputError, match=r"--address auto .* Add --engine ray"):
        prepare(Synthetic(), out, address="auto")
