"""The doctor: each failure is simulated by the facts that it would leave behind."""

import dataclasses
import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from trainer.doctor import checks as doctor
from trainer.doctor.checks import GIB, Check, Status, examine
from trainer.doctor.facts import Facts, Probe, gather, memory, normalised, read_probe, run_probe

HEALTHY = Facts(
    python=(3, 11, 7),
    versions={
        "torch": "2.13.0+cpu", "torchrec": "1.8.0", "torchx": "0.7.0", "ray": "2.60.0",
        "fbgemm-gpu-cpu": "1.8.0", "fbgemm-gpu": "1.8.0",
    },
    pins={"torch": "2.13.0", "torchx": "0.7.0", "ray": "2.60.0"},
    fbgemm_builds=("fbgemm-gpu-cpu",),
    probe=Probe({"devices": [], "gloo": 1.0, "operators": ["cpu"], "torchrec": "1.8.0"}),
    nvidia_gpus=(),
    cores=2,
    machine_cores=2,
    memory_total=16 * GIB,
    memory_available=12 * GIB,
    shm_total=8 * GIB,
    shm_free=8 * GIB,
    open_files=(65536, 65536),
    disk_free=100 * GIB,
)  # fmt: skip

GPU = "NVIDIA A100, 81920 MiB, 570.1"
SEEN_GPU = {"name": "NVIDIA A100", "bytes": 80 * GIB}


def healthy_but(**changes: object) -> Facts:
    return dataclasses.replace(HEALTHY, **changes)


def versions_but(**changes: str | None) -> dict[str, str]:
    changed = HEALTHY.versions | {normalised(name): to for name, to in changes.items()}
    return {name: version for name, version in changed.items() if version is not None}


def healthy_gpus() -> Facts:
    return healthy_but(
        versions=versions_but(torch="2.13.0", fbgemm_gpu_cpu=None),
        fbgemm_builds=("fbgemm-gpu",),
        nvidia_gpus=(GPU,),
        probe=Probe({**HEALTHY.probe.results, "devices": [SEEN_GPU], "operators": ["cpu", "cuda"]}),
    )


def probe_without(*stages: str, **errors: str) -> Probe:
    gone = {*stages, *errors}
    return Probe({k: v for k, v in HEALTHY.probe.results.items() if k not in gone}, errors)


def findings(facts: Facts) -> list[Check]:
    """What is not green."""
    return [check for check in examine(facts) if check.status is not Status.OK]


def only_finding(facts: Facts) -> Check:
    (finding,) = findings(facts)
    return finding


def test_this_installation_is_fit() -> None:
    failed = [check for check in examine(gather()) if check.status is Status.FAIL]
    assert failed == []


@pytest.mark.parametrize("facts", [HEALTHY, healthy_gpus()])
def test_healthy_facts_are_green(facts: Facts) -> None:
    assert findings(facts) == []


def test_every_failure_and_warning_has_a_line_that_repairs_it() -> None:
    broken = healthy_but(
        python=(3, 9, 1),
        versions={},
        fbgemm_builds=(),
        probe=Probe(errors={"start": "exit code 1"}),
        memory_available=0,
        shm_free=0,
        open_files=(256, 1024),
        disk_free=0,
    )
    found = findings(broken)
    assert len(found) == len(doctor.CHECKS) - 1  # cores are what they are
    assert all(check.repair for check in found)


def test_an_old_python_is_a_failure() -> None:
    finding = only_finding(healthy_but(python=(3, 10, 4)))
    assert (finding.status, finding.found) == (Status.FAIL, "3.10.4")
    assert "PYTHON=python3.11" in finding.repair


def test_two_fbgemm_builds_are_replaced_by_one() -> None:
    finding = only_finding(healthy_but(fbgemm_builds=("fbgemm-gpu", "fbgemm-gpu-cpu")))
    assert finding.status is Status.FAIL
    uninstall, _, install = finding.repair.partition(" && ")
    assert uninstall.endswith("pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu")
    assert "--force-reinstall" in install
    assert install.endswith("fbgemm-gpu-cpu==1.8.0")


def test_two_fbgemm_builds_on_gpus_are_replaced_by_cudas() -> None:
    facts = dataclasses.replace(
        healthy_gpus(),
        versions=versions_but(torch="2.13.0"),
        fbgemm_builds=("fbgemm-gpu", "fbgemm-gpu-cpu"),
    )
    assert only_finding(facts).repair.endswith("--force-reinstall fbgemm-gpu==1.8.0")


def test_no_fbgemm_is_a_failure() -> None:
    found = {check.name: check for check in findings(healthy_but(fbgemm_builds=()))}
    assert found["FBGEMM build"].status is Status.FAIL
    assert found["FBGEMM build"].repair == "make -B setup"


def test_cudas_fbgemm_beside_a_cpu_torch_is_a_failure() -> None:
    finding = only_finding(healthy_but(fbgemm_builds=("fbgemm-gpu",)))
    assert finding.status is Status.FAIL
    assert finding.repair.endswith("fbgemm-gpu-cpu==1.8.0")


def test_a_cpu_build_on_gpus_is_a_warning() -> None:
    facts = dataclasses.replace(
        healthy_gpus(), versions=HEALTHY.versions, fbgemm_builds=("fbgemm-gpu-cpu",)
    )
    finding = only_finding(facts)
    assert (finding.status, finding.repair) == (Status.WARN, "make -B setup DEVICE=cuda")


def test_a_nightly_fbgemm_is_a_warning() -> None:
    versions = versions_but(fbgemm_gpu_nightly_cpu="1.8.0", fbgemm_gpu_cpu=None)
    facts = healthy_but(versions=versions, fbgemm_builds=("fbgemm-gpu-nightly-cpu",))
    assert only_finding(facts).status is Status.WARN


@pytest.mark.parametrize(
    ("torch", "torchrec", "fbgemm", "status"),
    [
        ("2.13.0+cpu", "1.8.0", "1.8.0", Status.OK),
        ("2.13.1+cpu", "1.8.2", "1.8.0", Status.OK),
        ("2.11.0", "1.6.0", "1.6.0", Status.OK),
        ("2.13.0+cpu", "1.8.0", "1.9.0", Status.FAIL),
        ("2.13.0+cpu", "1.6.0", "1.8.0", Status.FAIL),
        ("2.11.0", "1.8.0", "1.8.0", Status.FAIL),
        ("2.14.0", "1.9.0", "1.9.0", Status.WARN),
    ],
)
def test_torch_torchrec_and_fbgemm_come_as_a_set(
    torch: str, torchrec: str, fbgemm: str, status: Status
) -> None:
    versions = versions_but(torch=torch, torchrec=torchrec, fbgemm_gpu_cpu=fbgemm)
    assert doctor.check_pairing(healthy_but(versions=versions)).status is status


def test_a_wrong_set_is_repaired_for_the_torch_that_is_there() -> None:
    versions = versions_but(torch="2.11.0", torchrec="1.8.0")
    check = doctor.check_pairing(healthy_but(versions=versions))
    assert check.repair.endswith("fbgemm-gpu-cpu==1.6.0 torchrec==1.6.0")


def test_a_crash_of_the_operators_is_shown_with_its_signal() -> None:
    crash = "ended by SIGSEGV: Fatal Python error"
    finding = only_finding(healthy_but(probe=probe_without(operators=crash)))
    assert (finding.status, finding.found) == (Status.FAIL, crash)
    assert finding.repair.endswith("torch==2.13.0 torchrec==1.8.0")


def test_a_missing_torch_is_reported_not_raised() -> None:
    missing = "ModuleNotFoundError: No module named 'torch'"
    errors = dict.fromkeys(("devices", "gloo", "operators", "torchrec"), missing)
    facts = healthy_but(versions=versions_but(torch=None), probe=Probe(errors=errors))
    names = {check.name for check in findings(facts)}
    assert names == {"torch, torchrec, FBGEMM", "FBGEMM operators", "devices", "gloo"}


def test_gpus_that_torch_cannot_use_are_a_warning() -> None:
    facts = dataclasses.replace(healthy_gpus(), probe=HEALTHY.probe)
    finding = only_finding(facts)
    assert (finding.name, finding.status) == ("devices", Status.WARN)
    assert "DEVICE=cuda" in finding.repair


def test_a_gpu_is_named_with_its_memory_and_driver() -> None:
    check = doctor.check_devices(healthy_gpus())
    assert check.found == "1 CUDA: NVIDIA A100 80.0 GiB; driver 570.1"


def test_a_gloo_that_cannot_connect_names_the_loopback_interface() -> None:
    finding = only_finding(healthy_but(probe=probe_without(gloo="RuntimeError: no address")))
    assert (finding.status, finding.repair) == (Status.FAIL, "export GLOO_SOCKET_IFNAME=lo")


@pytest.mark.parametrize(
    ("limits", "repair"),
    [
        ((1024, 20000), "ulimit -n 20000"),
        ((1024, -1), "ulimit -n 65536"),
        ((256, 1024), "sudo prlimit --pid $$ --nofile=65536"),
    ],
)
def test_few_open_files_are_raised_to_the_hard_limit(limits: tuple[int, int], repair: str) -> None:
    finding = only_finding(healthy_but(open_files=limits))
    assert (finding.status, finding.repair) == (Status.WARN, repair)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("memory", {"memory_available": GIB}),
        ("shared memory", {"shm_total": GIB // 16, "shm_free": GIB // 16}),
        ("disk", {"disk_free": GIB}),
        ("TorchX", {"versions": versions_but(torchx="0.8.0")}),
        ("Ray", {"versions": versions_but(ray=None)}),
    ],
)
def test_scarcity_is_a_warning(name: str, changes: dict[str, object]) -> None:
    finding = only_finding(healthy_but(**changes))
    assert (finding.name, finding.status) == (name, Status.WARN)


def test_systems_without_these_facts_are_green() -> None:
    assert findings(healthy_but(shm_total=None, shm_free=None, memory_total=0)) == []


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_a_probe_that_dies_names_the_signal_and_its_last_words() -> None:
    code = """
import json, os, sys
print(json.dumps({"begin": "devices"})); print(json.dumps({"end": "devices", "result": []}))
print(json.dumps({"begin": "operators"}), flush=True)
print("illegal operand", file=sys.stderr, flush=True)
os.kill(os.getpid(), 4)
"""
    probe = run_probe(python(code))
    assert probe.results == {"devices": []}
    assert probe.errors == {"operators": "ended by SIGILL: illegal operand"}


def test_a_probe_that_hangs_is_ended() -> None:
    code = """print('{"begin": "gloo"}', flush=True); import time; time.sleep(60)"""
    assert run_probe(python(code), timeout=2).errors == {"gloo": "no answer in 2 s"}


def test_a_probe_that_does_not_start_says_why() -> None:
    assert run_probe(python("raise SystemExit('no')")).errors == {"start": "exit code 1: no"}


def test_what_libraries_print_is_not_an_answer() -> None:
    assert read_probe('hello\n3\n{"end": "gloo", "error": "no"}\n', "").errors == {"gloo": "no"}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("line", "group", "limit", "used", "cache"),
    [
        ("0::/job", "job", "memory.max", "memory.current", "inactive_file"),
        (
            "4:cpu,memory:/job", "memory/job",
            "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
        ),
    ],
)  # fmt: skip
def test_memory_is_bounded_by_the_control_group(
    tmp_path: Path, line: str, group: str, limit: str, used: str, cache: str
) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "meminfo", "MemTotal:  8000 kB\nMemAvailable:  7000 kB\n")
    write(proc / "self" / "cgroup", line + "\n")
    write(cgroups / group / limit, "1024000\n")
    write(cgroups / group / used, "600000\n")
    write(cgroups / group / "memory.stat", f"{cache} 100000\n")
    # 600,000 bytes are used, 100,000 of them file pages that can be dropped
    assert memory(proc, cgroups) == (1024000, 524000)


def test_a_group_without_limit_leaves_the_machines_memory(tmp_path: Path) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "meminfo", "MemTotal:  8000 kB\nMemAvailable:  7000 kB\n")
    write(proc / "self" / "cgroup", "0::/\n")
    write(cgroups / "memory.max", "max\n")
    assert memory(proc, cgroups) == (8000 * 1024, 7000 * 1024)


@pytest.mark.parametrize(
    ("facts", "code", "last"),
    [
        (HEALTHY, 0, "Fit to train."),
        (healthy_but(disk_free=0), 0, "Fit to train. Warnings: 1."),
        (healthy_but(python=(3, 9, 0)), 2, "1 failed. Repair from the top, then run this again."),
    ],
)
def test_only_failures_change_the_exit_code(
    facts: Facts,
    code: int,
    last: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "gather", lambda: facts)
    assert doctor.main() == code
    assert capsys.readouterr().out.strip().splitlines()[-1] == last


def test_a_repair_is_printed_uncut() -> None:
    output = io.StringIO()
    repair = "pip install " + "x" * 200
    check = Check("build", Status.FAIL, "[two] builds", repair)
    doctor.render([check], Console(file=output, width=40))
    assert repair in output.getvalue()
    assert "[two]" in output.getvalue()
