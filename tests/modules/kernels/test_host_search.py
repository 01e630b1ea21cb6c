"""The search kernel of CPUs."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba")

from modules.kernels import choice
from modules.kernels.column import Column
from modules.kernels.host_search import search_columns
from tests.modules.kernels.suite import (
    COUNTS,
    DOT,
    LENGTHS,
    FusedSearchConformance,
    KernelSuite,
    unit_on,
    whole,
)


class TestKernel(KernelSuite):
    kernel, device, search = "numba", "cpu", staticmethod(search_columns)

    @pytest.mark.parametrize("nan", [torch.nan, -torch.nan])
    def test_a_score_that_is_no_number_is_chosen(self, nan: float) -> None:
        # and so comes to the loss, which stops training
        assert self.search_one_history([1.0, 2.0, nan, 3.0] * 20, 2) == [78, 74]

    @pytest.mark.parametrize("beyond", [-1, 30, 2**40])
    def test_an_id_beyond_its_table_is_refused(self, beyond: int) -> None:
        columns, queries = self.draw_columns(), self.draw_queries()
        columns[1].ids[3] = beyond
        with pytest.raises(IndexError, match=f"id {beyond}, in a table of 30"):
            search_columns(columns, queries, LENGTHS, COUNTS, 4)

    def test_a_key_of_zeros_has_cosine_zero(self) -> None:
        keys = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [5.0, 1.0]])
        rows, valid = search_columns(
            [Column(keys, torch.arange(3))],
            torch.tensor([[1.0, 0.0]]),
            torch.tensor([3]),
            torch.tensor([1]),
            3,
            normalized=1,
        )
        assert valid.all()
        assert rows.tolist() == [[2, 1, 0]]

    def test_other_tables_are_left_to_stock_operations(self) -> None:
        assert not choice.searches_fused(whole(torch.bfloat16), DOT, 1)
        assert not choice.searches_fused(whole(torch.uint8, width=16), DOT, 1)
        in_a_wider_one = whole()
        in_a_wider_one.tables["item"] = [torch.zeros(4, 9)[:, :8]]
        assert not choice.searches_fused(in_a_wider_one, DOT, 1)


@pytest.mark.parametrize("unit", [unit_on("cpu")], ids=lambda unit: unit.name)
class TestConformance(FusedSearchConformance):
    """By this kernel."""


def test_numba_compiles_for_cpus_and_triton_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice.kernel_on(torch.device("cpu")) == "numba"
    monkeypatch.setattr(choice, "_is_installed", lambda package: package == "triton")
    assert choice.kernel_on(torch.device("cuda")) == "triton"
    assert choice.kernel_on(torch.device("cpu")) is None
    assert not choice.searches_fused(whole(), DOT, 1)
