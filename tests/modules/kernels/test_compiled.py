"""The kernel as compiled for sm_90: the interpreter accepts programs that the compiler refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.slow
def test_the_kernel_compiles_and_fits_the_registers(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.registers", "1"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    cells = ended.stdout.splitlines()[-1].strip("| ").split(" | ")
    tables, k, _, registers, spilled, *_ = cells
    assert (tables, k, spilled) == ("float32", "20", "0")
    assert int(registers) <= 128  # 16 warps of 65,536 registers, at least
