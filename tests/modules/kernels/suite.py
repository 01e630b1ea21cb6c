"""What a search kernel must do, whatever compiles it: one suite.

class TestKernel(KernelSuite):
    kernel, device, search = "numba", "cpu", staticmethod(search_columns)
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modules.kernels import choice
from modules.kernels.column import Column
from modules.score import MLPScore, Score
from modules.search import Histories, Selection
from modules.search_units import ExactSearch
from modules.tables import FieldConfig
from modules.whole_tables import WholeKeys, WholeTables
from tests.modules.cases import make_config, make_ranker, make_requests, pack
from tests.modules.conformance import Log, SearchConformance, SearchUnit

ON_HOST = ("history_lengths", "candidate_counts")
FIELDS = (
    FieldConfig(name="item", num_embeddings=9, attention_dim=5),
    FieldConfig(name="recency", num_embeddings=9, attention_dim=3, semantic=False),
)
DOT = Score(FIELDS)

# three requests with 70 events (two tiles and more), none and 9; 5 candidates, 1 and 2
LENGTHS, COUNTS = torch.tensor([70, 0, 9]), torch.tensor([5, 1, 2])
WIDTHS = (16, 4, 12)


def unit_on(device: str) -> SearchUnit:
    """Exact search of keys that are tables, one row for each event, as a model asks for it."""

    def select(log: Log, k: int) -> Selection:
        request_of = torch.arange(len(log.counts)).repeat_interleave(log.counts)
        histories = Histories.of({}, {}, request_of.to(device), log.lengths, log.counts)
        number = torch.arange(len(log.keys), device=device)
        parts = [part.contiguous().to(device) for part in log.keys.split([5, 3], dim=1)]
        tables = WholeTables({"item": parts[:1], "recency": parts[1:]})
        keys = WholeKeys(tables, {"item": number, "recency": number})
        found = ExactSearch()(histories, lambda: (keys, log.queries.to(device)), DOT, k)
        return Selection(found.rows.cpu(), found.valid.cpu())

    def by_hand(log: Log) -> Tensor:
        (query,) = log.queries.double()
        keys = log.keys.double()
        return (keys[:, :5] @ query[:5] / 5**0.5 + keys[:, 5:] @ query[5:] / 3**0.5).float()

    return SearchUnit("fused", select, by_hand)


class FusedSearchConformance(SearchConformance):
    """The kernel does what every search unit does."""

    # there are none
    test_the_size_of_the_blocks_does_not_matter = None


def whole(dtype: torch.dtype = torch.float32, width: int = 8) -> WholeKeys:
    tables = WholeTables({"item": [torch.zeros(4, width).to(dtype)]})
    return WholeKeys(tables, {"item": torch.zeros(2, dtype=torch.int64)})


class KernelSuite:
    """The suite."""

    kernel: str
    device: str
    search: Callable[..., tuple[Tensor, Tensor]]

    @pytest.fixture(autouse=True)
    def kernel_runs_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(choice, "kernel_on", lambda device: self.kernel)

    def draw_columns(self, dtype: torch.dtype = torch.float32, rows: int = 30) -> list[Column]:
        """Small tables, so that ids come back."""
        draws = torch.Generator().manual_seed(0)
        tables = [torch.randn(rows, width, generator=draws) for width in WIDTHS]
        if dtype == torch.uint8:
            tables = [torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(t) for t in tables]
        return [
            Column(
                (table if dtype == torch.uint8 else table.to(dtype)).to(self.device),
                torch.randint(rows, (int(LENGTHS.sum()),), generator=draws).to(self.device),
            )
            for table in tables
        ]

    def draw_queries(self) -> Tensor:
        draws = torch.Generator().manual_seed(1)
        return torch.randn(int(COUNTS.sum()), sum(WIDTHS), generator=draws).to(self.device)

    @pytest.mark.parametrize("k", [1, 20, 100])
    def test_tiles_are_searched_as_one_history(self, k: int) -> None:
        columns, queries = self.draw_columns(), self.draw_queries()
        keys = torch.cat([numbers(table)[ids] for table, ids in columns], 1)
        assert_best(self.search(columns, queries, LENGTHS, COUNTS, k), keys, queries, k)

    def test_the_first_columns_can_make_a_cosine(self) -> None:
        columns, queries = self.draw_columns(), self.draw_queries()
        of_columns = [numbers(table)[ids] for table, ids in columns]
        keys = torch.cat([F.normalize(torch.cat(of_columns[:2], 1), dim=1), of_columns[2]], 1)
        found = self.search(columns, queries, LENGTHS, COUNTS, 4, normalized=2)
        assert_best(found, keys, queries, 4)

    @pytest.mark.parametrize("normalized", [0, 1])
    @pytest.mark.parametrize("alike", [1, 2, 3])
    def test_candidates_may_ask_columns_alike(self, alike: int, normalized: int) -> None:
        columns, queries = self.draw_columns(), self.draw_queries()
        queries[:, sum(WIDTHS[:-alike]) :] = queries[0, sum(WIDTHS[:-alike]) :]
        of_columns = [numbers(table)[ids] for table, ids in columns]
        of_columns[:normalized] = [F.normalize(rows, dim=1) for rows in of_columns[:normalized]]
        found = self.search(columns, queries, LENGTHS, COUNTS, 20, normalized=normalized)
        assert_best(found, torch.cat(of_columns, 1), queries, 20)

    def search_one_history(self, scores: list[float], k: int) -> list[int]:
        """Rows that one candidate keeps of events with these scores."""
        keys = torch.tensor(scores, device=self.device)[:, None]
        ids = torch.arange(len(scores), device=self.device)
        rows, valid = self.search(
            [Column(keys, ids)],
            torch.ones(1, 1, device=self.device),
            torch.tensor([len(scores)]),
            torch.tensor([1]),
            k,
        )
        return rows[valid].tolist()

    def test_of_equal_scores_the_later_event_wins(self) -> None:
        # across tiles, too: they end at a multiple of 32
        assert self.search_one_history([1.0] * 66, 3) == [65, 64, 63]

    def test_scores_of_either_sign_are_in_order(self) -> None:
        scores = [-1.0, 0.5, -2.0, 0.0, 3e38, -3e38]
        assert self.search_one_history(scores, 6) == [4, 1, 3, 0, 2, 5]

    def test_a_score_of_minus_infinity_is_never_chosen(self) -> None:
        assert self.search_one_history([-torch.inf, 2.0, -torch.inf], 3) == [1]
        assert self.search_one_history([-torch.inf] * 70, 3) == []

    def test_the_next_tiles_may_all_be_better(self) -> None:
        rising = [float(number) for number in range(200)]
        assert self.search_one_history(rising, 40) == list(range(199, 159, -1))
        assert self.search_one_history(rising[::-1], 40) == list(range(40))

    def test_what_the_kernel_cannot_do_is_not_left_to_it(self) -> None:
        without_category = Score(FIELDS, unused=frozenset({"item"}))
        assert choice.searches_fused(whole(), DOT, 1)
        assert choice.searches_fused(whole(), Score(FIELDS, "cosine"), 1)
        assert not choice.searches_fused(torch.zeros(2, 8).__getitem__, DOT, 1)
        assert not choice.searches_fused(whole(), MLPScore(FIELDS), 1)
        assert not choice.searches_fused(whole(), without_category, 1)
        assert not choice.searches_fused(whole(torch.float64), DOT, 1)

    @pytest.mark.parametrize("score", ["dot", "cosine"])
    def test_a_model_says_the_same_whoever_searches(
        self, score: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ranker = make_ranker(make_config(score=score), torch.float32).to(self.device).eval()
        bags = ranker.tables.attention.embedding_bags
        tables = {f.name: [bags[f"attention_{f.name}"].weight] for f in ranker.fields}
        whole_tables = ranker.tables.whole["attention"] = WholeTables(tables)
        batch = {
            name: value.to(self.device) if name not in ON_HOST else value
            for name, value in pack(make_requests()).items()
        }
        with torch.no_grad():
            by_kernel = ranker(**batch)
            read = dict(whole_tables.rows_read)
            monkeypatch.setattr(choice, "kernel_on", lambda device: None)
            by_stock = ranker(**batch)
        rows = len(batch["history"]["item"].values()) + len(batch["request_of"])
        assert read == dict.fromkeys((f.name for f in ranker.fields), rows)
        # stock operations read the padding of their blocks too
        assert all(count >= 2 * rows for count in whole_tables.rows_read.values())
        assert torch.equal(by_kernel.recency, by_stock.recency)
        torch.testing.assert_close(by_kernel.logits, by_stock.logits)


def numbers(table: Tensor) -> Tensor:
    """What a table stands for, in float64."""
    if table.dtype != torch.uint8:
        return table.double()
    scale, least = table[:, -8:].contiguous().view(torch.float32).double().unbind(1)
    return table[:, :-8] * scale[:, None] + least[:, None]


def assert_best(found: tuple[Tensor, Tensor], keys: Tensor, queries: Tensor, k: int) -> None:
    """Against ``torch.topk`` of float64 scores, of each candidate's own history."""
    rows, valid = found
    scores = queries.double() @ keys.double().T
    first = (LENGTHS.cumsum(0) - LENGTHS).repeat_interleave(COUNTS).tolist()
    length = LENGTHS.repeat_interleave(COUNTS).tolist()
    for c in range(len(queries)):
        own = scores[c, first[c] : first[c] + length[c]]
        chosen = rows[c][valid[c]]
        assert len(chosen) == len(set(chosen.tolist())) == min(k, length[c])
        expected = own.topk(min(k, length[c])).values
        torch.testing.assert_close(scores[c, chosen], expected, rtol=1e-5, atol=1e-5)
