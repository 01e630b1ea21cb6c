"""``twofold doctor``: is this installation fit to train, and if not, what repairs it?

``facts`` looks at the machine; a check is a function from those facts to a finding.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.doctor.facts import Facts, gather

GIB = 1024**3


class Status(StrEnum):
    """Only ``FAIL`` stops a run."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    status: Status
    found: str
    repair: str = ""
    """A line to type, empty if nothing is to be done."""


class Pairing(NamedTuple):
    """Releases that were built against one release of torch."""

    torchrec: str
    fbgemm: str


PAIRINGS = {"2.13": Pairing("1.8.0", "1.8.0"), "2.11": Pairing("1.6.0", "1.6.0")}
"""By minor release of torch."""

MINIMUM_PYTHON = (3, 11)
MINIMUM_OPEN_FILES = 4096
MINIMUM_MEMORY = 4 * GIB
MINIMUM_SHM = GIB // 4
MINIMUM_DISK = 5 * GIB

_PIP = shlex.join([sys.executable, "-m", "pip"])
_REPOSITORY = Path(__file__).parents[2]


def diagnose() -> list[Check]:
    """All checks of this installation."""
    return examine(gather())


def examine(facts: Facts) -> list[Check]:
    """All checks of the given facts."""
    return [check(facts) for check in CHECKS]


def main() -> int:
    """Prints the findings; returns 0, or 2 if one of them stops a run."""
    console = Console()
    with console.status("Trying the libraries (a few seconds)"):
        checks = diagnose()
    render(checks, console)
    return 2 if any(check.status is Status.FAIL for check in checks) else 0


def render(checks: list[Check], console: Console) -> None:
    """A table, then the lines that repair, uncut so that they can be copied."""
    colours = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red"}
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "check", "found"):
        table.add_column(column, overflow="fold")
    for check in checks:
        status = Text(check.status, style=colours[check.status])
        table.add_row(status, check.name, Text(check.found))
    console.print(table)
    for check in checks:
        if check.repair:
            console.print(Text(f"\n{check.name}:", style=colours[check.status]))
            console.print(Text(f"  {check.repair}"), soft_wrap=True)
    counts = {status: sum(check.status is status for check in checks) for status in Status}
    if counts[Status.FAIL]:
        console.print(f"\n{counts[Status.FAIL]} failed. Repair from the top, then run this again.")
    elif counts[Status.WARN]:
        console.print(f"\nFit to train. Warnings: {counts[Status.WARN]}.")
    else:
        console.print("\nFit to train.")


def check_python(facts: Facts) -> Check:
    """3.11 or newer."""
    found = ".".join(map(str, facts.python))
    if facts.python < MINIMUM_PYTHON:
        return Check(
            "Python", Status.FAIL, found, "rm -r .venv && make setup PYTHON=python3.11  # or newer"
        )
    return Check("Python", Status.OK, found)


def check_fbgemm_build(facts: Facts) -> Check:
    """Exactly one distribution brings FBGEMM's code, and it fits torch and this machine."""
    name, builds = "FBGEMM build", facts.fbgemm_builds
    if not builds:
        return Check(name, Status.FAIL, "none", _make_setup(facts))
    # builds own the same files: removing one breaks the other, so all go before one comes back
    replace = f"{_PIP} uninstall -y {' '.join(builds)} && {_install_fbgemm(facts)}"
    if len(builds) > 1:
        found = f"{' and '.join(builds)} overwrite each other's files"
        return Check(name, Status.FAIL, found, replace)
    (build,) = builds
    if "nightly" in build:
        return Check(name, Status.WARN, f"{build} fits a nightly torch only", replace)
    if build == "fbgemm-gpu" and facts.versions.get("torch", "").endswith("+cpu"):
        return Check(name, Status.FAIL, f"{build}, CUDA's, beside a CPU build of torch", replace)
    if build == "fbgemm-gpu-cpu" and _has_gpus(facts):
        found = f"{build}: the GPUs of this machine stay idle"
        return Check(name, Status.WARN, found, _make_setup(facts))
    if build == "fbgemm-gpu-cpu" and "fbgemm-gpu" in facts.versions:
        return Check(name, Status.OK, f"{build} (fbgemm-gpu is the empty alias)")
    return Check(name, Status.OK, build)


def check_pairing(facts: Facts) -> Check:
    """The libraries come as a set: the compiled parts of one release fit no other."""
    name = "torch, torchrec, FBGEMM"
    torch, torchrec = facts.versions.get("torch"), facts.versions.get("torchrec")
    fbgemm = [facts.versions[build] for build in facts.fbgemm_builds]
    found = f"{torch or 'none'}, {torchrec or 'none'}, {' and '.join(fbgemm) or 'none'}"
    if torch is None or torchrec is None or not fbgemm:
        return Check(name, Status.FAIL, found, _make_setup(facts))
    pairing = PAIRINGS.get(_minor(torch))
    if pairing is None:
        found += f"; tried were only sets with torch {' and '.join(PAIRINGS)}"
        return Check(name, Status.WARN, found, _make_setup(facts))
    minors = (_minor(torchrec), {_minor(version) for version in fbgemm})
    if minors != (_minor(pairing.torchrec), {_minor(pairing.fbgemm)}):
        found += f"; torch {_minor(torch)} goes with {pairing.torchrec} and {pairing.fbgemm}"
        repair = f"{_install_fbgemm(facts)} torchrec=={pairing.torchrec}"
        return Check(name, Status.FAIL, found, repair)
    return Check(name, Status.OK, found)


def check_operators(facts: Facts) -> Check:
    """FBGEMM's kernels were loaded and have made one right step."""
    name, errors = "FBGEMM operators", facts.probe.errors
    for stage in ("start", "operators", "torchrec"):
        if stage in errors:
            where = "torchrec does not load: " if stage == "torchrec" else ""
            return Check(name, Status.FAIL, where + errors[stage], _reinstall(facts))
    if "operators" not in facts.probe.results:
        return Check(name, Status.FAIL, "not reached: see the checks below", _reinstall(facts))
    return Check(name, Status.OK, f"one step on {' and '.join(facts.probe.results['operators'])}")


def check_torchx(facts: Facts) -> Check:
    """Launches every job of several processes."""
    return _check_pin("TorchX", "torchx", facts, missing=Status.FAIL)


def check_ray(facts: Facts) -> Check:
    """Needed on a cluster only."""
    return _check_pin("Ray", "ray", facts, missing=Status.WARN)


def _check_pin(name: str, distribution: str, facts: Facts, missing: Status) -> Check:
    version, pin = facts.versions.get(distribution), facts.pins.get(distribution)
    if version is None:
        return Check(name, missing, "none", _make_setup(facts))
    if pin not in (None, version):
        return Check(
            name,
            Status.WARN,
            f"{version}; tried with {pin}",
            f"{_PIP} install {distribution}=={pin}",
        )
    return Check(name, Status.OK, version)


def check_devices(facts: Facts) -> Check:
    """GPUs: none is fine."""
    name, seen = "devices", facts.probe.results.get("devices")
    if seen is None:
        error = facts.probe.errors.get("devices", "not tried")
        return Check(name, Status.FAIL, f"torch does not load: {error}", _reinstall(facts))
    if seen:
        devices = ", ".join(f"{gpu['name']} {_gib(gpu['bytes'])}" for gpu in seen)
        drivers = {line.rpartition(",")[2].strip() for line in facts.nvidia_gpus}
        driver = f"; driver {', '.join(sorted(drivers))}" if drivers else ""
        return Check(name, Status.OK, f"{len(seen)} CUDA: {devices}{driver}")
    if facts.nvidia_gpus:
        return Check(
            name,
            Status.WARN,
            f"CPU only: torch cannot use {len(facts.nvidia_gpus)} GPUs ({facts.nvidia_gpus[0]})",
            "make setup DEVICE=cuda  # if that is done, update the driver",
        )
    return Check(name, Status.OK, "CPU only")


def check_cores(facts: Facts) -> Check:
    """Cores that this process may use."""
    of = f" of {facts.machine_cores}" if facts.cores != facts.machine_cores else ""
    return Check("cores", Status.OK, f"{facts.cores}{of}")


def check_memory(facts: Facts) -> Check:
    """Memory, a container's limit included."""
    if not facts.memory_total:
        return Check("memory", Status.OK, "not known on this system")
    found = f"{_gib(facts.memory_available)} available of {_gib(facts.memory_total)}"
    if facts.memory_available < MINIMUM_MEMORY:
        return Check(
            "memory",
            Status.WARN,
            f"{found}; the demonstration needs {_gib(MINIMUM_MEMORY)}",
            "ps aux --sort=-rss | head  # what takes it; in a container, raise its limit",
        )
    return Check("memory", Status.OK, found)


def check_shared_memory(facts: Facts) -> Check:
    """Memory under /dev/shm, through which NCCL and worker processes talk."""
    if facts.shm_free is None or facts.shm_total is None:
        return Check("shared memory", Status.OK, "no /dev/shm on this system")
    found = f"{_gib(facts.shm_free)} free of {_gib(facts.shm_total)}"
    if facts.shm_free < MINIMUM_SHM:
        return Check(
            "shared memory",
            Status.WARN,
            found,
            "sudo mount -o remount,size=2G /dev/shm  # docker: run --shm-size=2g",
        )
    return Check("shared memory", Status.OK, found)


def check_open_files(facts: Facts) -> Check:
    """Each rank opens a socket to every other, and the store some files for each partition."""
    soft, hard = facts.open_files
    if soft >= MINIMUM_OPEN_FILES or soft < 0:
        return Check("open files", Status.OK, "no limit" if soft < 0 else f"{soft}")
    if 0 <= hard < MINIMUM_OPEN_FILES:
        repair = f"sudo prlimit --pid $$ --nofile={16 * MINIMUM_OPEN_FILES}"
    else:
        repair = f"ulimit -n {16 * MINIMUM_OPEN_FILES if hard < 0 else hard}"
    return Check("open files", Status.WARN, f"limit {soft}, of at most {hard}", repair)


def check_disk(facts: Facts) -> Check:
    """Room for stores, runs and checkpoints."""
    found = f"{_gib(facts.disk_free)} free here"
    if facts.disk_free < MINIMUM_DISK:
        return Check("disk", Status.WARN, found, "du -xh -d 2 . | sort -h | tail  # what takes it")
    return Check("disk", Status.OK, found)


def check_gloo(facts: Facts) -> Check:
    """The ranks of a CPU run talk through gloo."""
    if "gloo" in facts.probe.results:
        return Check("gloo", Status.OK, "a process group on the loopback address works")
    found = facts.probe.errors.get("gloo", "not tried: torch does not load")
    # gloo looks the host name up, which fails on many laptops
    return Check("gloo", Status.FAIL, found, "export GLOO_SOCKET_IFNAME=lo")


CHECKS = (
    check_python,
    check_fbgemm_build,
    check_pairing,
    check_operators,
    check_torchx,
    check_ray,
    check_devices,
    check_gloo,
    check_cores,
    check_memory,
    check_shared_memory,
    check_open_files,
    check_disk,
)


def _minor(version: str) -> str:
    """2.13 for 2.13.0+cpu."""
    return ".".join(version.split("+")[0].split(".")[:2])


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"


def _has_gpus(facts: Facts) -> bool:
    return bool(facts.nvidia_gpus or facts.probe.results.get("devices"))


def _make_setup(facts: Facts) -> str:
    """-B: also where the setup believes to be up to date."""
    return "make -B setup" + (" DEVICE=cuda" if _has_gpus(facts) else "")


def _install_fbgemm(facts: Facts) -> str:
    """Installs the one FBGEMM that fits, over whatever is left of another."""
    version = _pairing_of(facts.versions.get("torch", "")).fbgemm
    if _has_gpus(facts) and not facts.versions.get("torch", "").endswith("+cpu"):
        wanted = [f"fbgemm-gpu=={version}"]
    else:
        alias = _REPOSITORY / "packaging" / "fbgemm-gpu-cpu-alias"
        wanted = [str(alias)] if alias.is_dir() else []
        wanted.append(f"fbgemm-gpu-cpu=={version}")
    return f"{_PIP} install --no-deps --force-reinstall {shlex.join(wanted)}"


def _reinstall(facts: Facts) -> str:
    """Puts the compiled libraries back as they were released."""
    torch = facts.versions.get("torch") or facts.pins.get("torch") or "2.13.0"
    torch = torch.split("+")[0]
    return f"{_install_fbgemm(facts)} torch=={torch} torchrec=={_pairing_of(torch).torchrec}"


def _pairing_of(torch: str) -> Pairing:
    """Of an unknown release: the pairing that twofold pins."""
    return PAIRINGS.get(_minor(torch), next(iter(PAIRINGS.values())))
