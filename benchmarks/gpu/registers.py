"""What the search kernel takes of a GPU, counted from its machine code: no GPU is needed.

    python -m benchmarks.gpu.registers

Compiles for sm_90 (H100, H200) and prints Markdown: registers of a thread, bytes spilled, shared
memory of a program, and instructions as they stand in the code (a pass through the loop, what is
before and after it included). Triton's interpreter accepts programs that its compiler refuses, so
the tests run this too.
"""

from __future__ import annotations

import collections
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from modules.kernels import top_k_search
from modules.kernels.column import Column

CASES = (
    # type, K, candidates that share a gather, cosine
    (torch.float32, 20, 1, False),
    (torch.float32, 20, 2, False),
    (torch.float32, 20, 4, False),
    (torch.float32, 50, 1, False),
    (torch.float32, 128, 1, False),
    (torch.float32, 128, 4, False),
    (torch.float32, 20, 1, True),
    (torch.bfloat16, 20, 1, False),
    (torch.uint8, 20, 1, False),
)
WIDTH, FIELDS = 16, 3


class Hopper:
    """Stands in for the driver of a GPU, so that Triton compiles for one that is not there."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: Any = None) -> int:
        return 0


def main() -> None:
    """Of all cases, or with an argument of the first so many."""
    driver.set_active(Hopper())
    print(f"triton {triton.__version__}, {FIELDS} fields {WIDTH} wide\n")
    print("| tables | K | candidates | registers | spilled | shared | instructions | shuffles |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for dtype, k, shared, cosine in CASES[: int(sys.argv[1]) if len(sys.argv) > 1 else None]:
        kernel = compiled(dtype, k, shared, cosine=cosine)
        registers, spilled, operations = assembled(kernel.asm["ptx"])
        print(
            f"| {str(dtype)[6:]}{', cosine' if cosine else ''} | {k} | {shared} | {registers} "
            f"| {spilled} | {kernel.metadata.shared} | {sum(operations.values())} "
            f"| {operations['SHFL']} |",
            flush=True,
        )


class Compiling:
    """Stands in for the kernel: is compiled where that would be launched."""

    def __init__(self) -> None:
        self._kernel, self.code = top_k_search.search_kernel, None

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def compile_(*args: Any, **kwargs: Any) -> None:
            self.code = self._kernel.warmup(*args, grid=grid, **kwargs)

        return compile_


def compiled(dtype: torch.dtype, k: int, shared: int, *, cosine: bool) -> Any:
    """The kernel as it is launched for tables of a type."""
    width = WIDTH + 8 * (dtype == torch.uint8)
    ids = torch.zeros(16, dtype=torch.int64)
    columns = [Column(torch.zeros(16, width).to(dtype), ids) for _ in range(FIELDS)]
    queries, one_request = torch.zeros(shared, WIDTH * FIELDS), torch.tensor([shared])
    with mock.patch.object(top_k_search, "search_kernel", Compiling()) as compiling:
        normalized = (FIELDS - 1) * cosine
        top_k_search.search_columns(columns, queries, one_request, one_request, k, normalized)
    return compiling.code


def assembled(ptx: str) -> tuple[int, int, collections.Counter[str]]:
    """Registers, bytes spilled, and machine instructions by name."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    (architecture,) = re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx)
        told = subprocess.run(
            [tools / "ptxas", "-v", "--gpu-name", architecture, source, "-o", binary],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
        code = subprocess.run(
            [tools / "nvdisasm", "-c", binary], capture_output=True, text=True, check=True
        ).stdout
    lines = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\w+)", code, re.MULTILINE)
    (registers,) = re.findall(r"Used (\d+) registers", told)
    (spilled,) = re.findall(r"(\d+) bytes spill stores", told)
    return int(registers), int(spilled), collections.Counter(lines)


if __name__ == "__main__":
    main()
