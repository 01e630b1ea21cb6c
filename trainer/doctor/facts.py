"""What ``twofold doctor`` looks at: facts about this installation and this machine.

Nothing here imports torch: the doctor has to work where torch does not.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchx_specs.ending import signal_name

PROBE_TIMEOUT = 180  # seconds: a first import from a cold disk can take a minute


@dataclass(frozen=True)
class Probe:
    """How far ``probe`` came."""

    results: dict[str, Any] = field(default_factory=dict)
    """By stage, what it returned."""
    errors: dict[str, str] = field(default_factory=dict)
    """By stage, the exception it raised or how the process ended in it."""


@dataclass(frozen=True)
class Facts:
    """All that the checks read; tests make their own."""

    python: tuple[int, int, int]
    versions: dict[str, str]
    """Of installed distributions, by normalised name."""
    pins: dict[str, str]
    """Versions that twofold's metadata asks for, by normalised name."""
    fbgemm_builds: tuple[str, ...]
    """Distributions that bring FBGEMM's code; the empty alias is not among them."""
    probe: Probe
    nvidia_gpus: tuple[str, ...]
    """Name, memory and driver as nvidia-smi gives them, whether or not torch can use them."""
    cores: int
    """That this process may use."""
    machine_cores: int
    memory_total: int
    """Bytes, the container's limit included; 0 where the system does not say."""
    memory_available: int
    shm_total: int | None
    """Bytes; None where there is no /dev/shm."""
    shm_free: int | None
    open_files: tuple[int, int]
    """Soft and hard limit; a hard limit of -1 is none."""
    disk_free: int
    """Bytes in the current folder."""


def gather() -> Facts:
    """Looks at everything; takes as long as importing torch and torchrec."""
    versions = installed_versions()
    memory_total, memory_available = memory()
    shm = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None  # noqa: S108
    return Facts(
        python=sys.version_info[:3],
        versions=versions,
        pins=pinned_versions(),
        fbgemm_builds=tuple(name for name in fbgemm_distributions(versions) if brings_code(name)),
        probe=run_probe(),
        nvidia_gpus=nvidia_gpus(),
        cores=usable_cores(),
        machine_cores=os.cpu_count() or 1,
        memory_total=memory_total,
        memory_available=memory_available,
        shm_total=shm.total if shm else None,
        shm_free=shm.free if shm else None,
        open_files=open_files(),
        disk_free=shutil.disk_usage(".").free,
    )


def normalised(name: str) -> str:
    """One spelling for a distribution: ``fbgemm_gpu-cpu`` and ``fbgemm-gpu-cpu`` are the same."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_versions() -> dict[str, str]:
    """Versions of all installed distributions."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        if name := distribution.metadata["Name"]:  # a half-removed distribution has none
            found.setdefault(normalised(name), distribution.version)
    return found


def pinned_versions() -> dict[str, str]:
    """The ``name==version`` requirements of twofold, extras included; empty if not installed."""
    try:
        requirements = importlib.metadata.requires("twofold") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    pins = (re.match(r"([\w.-]+)(?:\[[^]]*])?==([^;\s]+)", line) for line in requirements)
    return {normalised(pin[1]): pin[2] for pin in pins if pin}


def fbgemm_distributions(versions: dict[str, str]) -> list[str]:
    """Everything called FBGEMM: the builds for CUDA and CPU, nightlies, and the empty alias."""
    return sorted(name for name in versions if name.startswith("fbgemm-gpu"))


def brings_code(name: str) -> bool:
    """Whether a distribution owns files of the package ``fbgemm_gpu``."""
    files = importlib.metadata.distribution(name).files or []
    return any(file.parts[0] == "fbgemm_gpu" for file in files)


def run_probe(command: tuple[str, ...] | None = None, timeout: float = PROBE_TIMEOUT) -> Probe:
    """Runs ``probe`` in a process of its own and reads how far it came."""
    script = str(Path(__file__).with_name("probe.py"))
    command = command or (sys.executable, "-P", script)  # -P: this folder hides no library
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as expired:
        output = (expired.stdout or b"").decode(errors="replace")  # bytes, whatever text= says
        return read_probe(output, f"no answer in {timeout:g} s")
    return read_probe(ended.stdout, describe_ending(ended.returncode, ended.stderr))


def describe_ending(returncode: int, stderr: str) -> str:
    """Exit code or signal, with the last line of stderr."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    how = f"ended by {signal_name(-returncode)}" if returncode < 0 else f"exit code {returncode}"
    return f"{how}: {lines[-1]}" if lines else how


def read_probe(stdout: str, ending: str) -> Probe:
    """A stage that began and did not end is where the process ended."""
    results: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for line in stdout.splitlines():
        try:
            said = json.loads(line)
        except ValueError:  # a library that prints on import, or a line cut short
            continue
        if not isinstance(said, dict):
            continue
        if "begin" in said:
            errors[said["begin"]] = ending
        elif "result" in said:
            results[said["end"]] = said["result"]
            del errors[said["end"]]
        elif "error" in said:
            errors[said["end"]] = said["error"]
    if not results and not errors:
        errors["start"] = ending
    return Probe(results, errors)


def nvidia_gpus() -> tuple[str, ...]:
    """One line for each GPU of the machine; none without a driver."""
    query = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    try:
        ended = subprocess.run(("nvidia-smi", *query), capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(ended.stdout.strip().splitlines()) if ended.returncode == 0 else ()


def usable_cores() -> int:
    """Cores that the affinity of this process allows."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """Total and available bytes, within the limits of this process's control groups."""
    try:
        meminfo = (proc / "meminfo").read_text()
    except OSError:  # not Linux
        return 0, 0
    kilobytes = dict(re.findall(r"(\w+):\s+(\d+) kB", meminfo))
    total = int(kilobytes.get("MemTotal", 0)) * 1024
    available = int(kilobytes.get("MemAvailable", 0)) * 1024
    for limit, used in _cgroup_limits(proc, cgroups):
        total, available = min(total, limit), min(available, max(0, limit - used))
    return total, available


def _cgroup_limits(proc: Path, cgroups: Path) -> list[tuple[int, int]]:
    """(limit, used) of this process's memory group and of those above it, versions 1 and 2."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers == "":
            root, names = cgroups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = cgroups / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(root))):
            found += _cgroup_limit(folder, *names)
    return found


def _cgroup_limit(folder: Path, limit: str, used: str, cache: str) -> list[tuple[int, int]]:
    """One or no (limit, used); file pages that can be dropped do not count as used."""
    try:
        limit_text = (folder / limit).read_text().strip()
        stat = (folder / "memory.stat").read_text()
        used_bytes = int((folder / used).read_text())
    except OSError:
        return []
    droppable = re.search(rf"^{cache} (\d+)$", stat, re.MULTILINE)
    if not limit_text.isdigit():  # "max"
        return []
    return [(int(limit_text), used_bytes - int(droppable[1] if droppable else 0))]


def open_files() -> tuple[int, int]:
    """Soft and hard limit of open files."""
    try:
        import resource
    except ImportError:  # not on Windows
        return sys.maxsize, -1
    return resource.getrlimit(resource.RLIMIT_NOFILE)
