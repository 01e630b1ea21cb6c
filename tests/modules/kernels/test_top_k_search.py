"""The search kernel of GPUs: by Triton's interpreter where there is none (tests/conftest.py)."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a CUDA device or TRITON_INTERPRET=1", allow_module_level=True)

from modules.kernels import choice
from modules.kernels.top_k_search import programs, search_columns
from tests.modules.kernels.suite import (
    COUNTS,
    DOT,
    LENGTHS,
    FusedSearchConformance,
    KernelSuite,
    assert_best,
    numbers,
    unit_on,
    whole,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class TestKernel(KernelSuite):
    kernel, device, search = "triton", DEVICE, staticmethod(search_columns)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8])
    def test_tables_of_any_type_are_read_as_what_they_stand_for(self, dtype: torch.dtype) -> None:
        columns, queries = self.draw_columns(dtype), self.draw_queries()
        keys = torch.cat([numbers(table)[ids] for table, ids in columns], 1)
        assert_best(self.search(columns, queries, LENGTHS, COUNTS, 4), keys, queries, 4)

    def test_what_this_kernel_can_read_is_left_to_it(self) -> None:
        for dtype in (torch.float32, torch.bfloat16, torch.uint8):
            assert choice.searches_fused(whole(dtype), DOT, 128)
        assert not choice.searches_fused(whole(), DOT, 129)
        assert not choice.searches_fused(
            whole(torch.uint8, width=14), DOT, 1
        )  # scales at odd places


@pytest.fixture
def triton_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "kernel_on", lambda device: "triton")


@pytest.mark.usefixtures("triton_runs_here")
@pytest.mark.parametrize("unit", [unit_on(DEVICE)], ids=lambda unit: unit.name)
class TestConformance(FusedSearchConformance):
    """By this kernel."""


def test_long_histories_come_first_and_no_program_has_more_than_its_candidates() -> None:
    # first row, length, first candidate, candidates
    assert programs(torch.tensor([3, 0, 8]), torch.tensor([1, 2, 5]), shared=4).tolist() == [
        [3, 8, 3, 4],
        [3, 8, 7, 1],
        [0, 3, 0, 1],
        [3, 0, 1, 2],
    ]
