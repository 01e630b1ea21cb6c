"""The search kernel: by Triton's interpreter where there is no GPU (tests/conftest.py)."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a CUDA device or TRITON_INTERPRET=1", allow_module_level=True)

from modules.kernels import choice
from modules.kernels.top_k_search import Column, programs, search_columns
from modules.score import MLPScore, Score
from modules.search import Histories, Selection
from modules.search_units import ExactSearch
from modules.tables import FieldConfig
from modules.whole_tables import WholeKeys, WholeTables
from tests.modules.cases import make_config, make_ranker, make_requests, pack
from tests.modules.conformance import Log, SearchConformance, SearchUnit

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ON_HOST = ("history_lengths", "candidate_counts")
FIELDS = (
    FieldConfig(name="item", num_embeddings=9, attention_dim=5),
    FieldConfig(name="recency", num_embeddings=9, attention_dim=3, semantic=False),
)
DOT = Score(FIELDS)


@pytest.fixture(autouse=True)
def kernels_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "runs_on", lambda device: True)


def whole_keys(log: Log) -> WholeKeys:
    """The keys of a log as tables, one row for each event."""
    number = torch.arange(len(log.keys), device=DEVICE)
    keys = log.keys.to(DEVICE)
    tables = WholeTables({"item": [keys[:, :5]], "recency": [keys[:, 5:]]})
    return WholeKeys(tables, {"item": number, "recency": number})


def histories_of(log: Log) -> Histories:
    request_of = torch.arange(len(log.counts)).repeat_interleave(log.counts)
    return Histories.of({}, {}, request_of.to(DEVICE), log.lengths, log.counts)


def select(log: Log, k: int) -> Selection:
    """As a model's search asks for it."""
    found = ExactSearch()(
        histories_of(log), lambda: (whole_keys(log), log.queries.to(DEVICE)), DOT, k
    )
    return Selection(found.rows.cpu(), found.valid.cpu())


def by_hand(log: Log) -> Tensor:
    (query,) = log.queries.double()
    keys = log.keys.double()
    return (keys[:, :5] @ query[:5] / 5**0.5 + keys[:, 5:] @ query[5:] / 3**0.5).float()


@pytest.mark.parametrize("unit", [SearchUnit("fused", select, by_hand)], ids=lambda u: u.name)
class TestFusedSearch(SearchConformance):
    """The kernel does what every search unit does."""

    # there are none, and the interpreter is slow
    test_the_size_of_the_blocks_does_not_matter = None


# three requests with 70 events (two tiles), none and 9; 5 candidates (two programs), 1 and 2
LENGTHS, COUNTS = torch.tensor([70, 0, 9]), torch.tensor([5, 1, 2])
WIDTHS = (16, 4, 12)


def draw_columns(dtype: torch.dtype = torch.float32, rows: int = 30) -> list[Column]:
    """Small tables, so that ids come back."""
    draws = torch.Generator().manual_seed(0)
    tables = [torch.randn(rows, width, generator=draws) for width in WIDTHS]
    if dtype == torch.uint8:
        tables = [torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(table) for table in tables]
    return [
        Column(
            (table if dtype == torch.uint8 else table.to(dtype)).to(DEVICE),
            torch.randint(rows, (int(LENGTHS.sum()),), generator=draws).to(DEVICE),
        )
        for table in tables
    ]


def draw_queries() -> Tensor:
    draws = torch.Generator().manual_seed(1)
    return torch.randn(int(COUNTS.sum()), sum(WIDTHS), generator=draws).to(DEVICE)


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


@pytest.mark.parametrize("k", [20, 100])
def test_two_tiles_are_searched_as_one_history(k: int) -> None:
    columns, queries = draw_columns(), draw_queries()
    keys = torch.cat([numbers(table)[ids] for table, ids in columns], 1)
    assert_best(search_columns(columns, queries, LENGTHS, COUNTS, k), keys, queries, k)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8])
def test_tables_of_any_type_are_read_as_what_they_stand_for(dtype: torch.dtype) -> None:
    columns, queries = draw_columns(dtype), draw_queries()
    keys = torch.cat([numbers(table)[ids] for table, ids in columns], 1)
    assert_best(search_columns(columns, queries, LENGTHS, COUNTS, 4), keys, queries, 4)


def test_the_first_columns_can_make_a_cosine() -> None:
    columns, queries = draw_columns(), draw_queries()
    of_columns = [numbers(table)[ids] for table, ids in columns]
    keys = torch.cat([F.normalize(torch.cat(of_columns[:2], 1), dim=1), of_columns[2]], 1)
    found = search_columns(columns, queries, LENGTHS, COUNTS, 4, normalized=2)
    assert_best(found, keys, queries, 4)


def search_one_history(scores: list[float], k: int) -> list[int]:
    """Rows that one candidate keeps of events with these scores."""
    keys = torch.tensor(scores, device=DEVICE)[:, None]
    ids = torch.arange(len(scores), device=DEVICE)
    rows, valid = search_columns(
        [Column(keys, ids)],
        torch.ones(1, 1, device=DEVICE),
        torch.tensor([len(scores)]),
        torch.tensor([1]),
        k,
    )
    return rows[valid].tolist()


def test_of_equal_scores_the_later_event_wins() -> None:
    # across tiles, too: 0 to 63 are one, 64 and 65 the next
    assert search_one_history([1.0] * 66, 3) == [65, 64, 63]


def test_scores_of_either_sign_are_in_order() -> None:
    assert search_one_history([-1.0, 0.5, -2.0, 0.0, 3e38, -3e38], 6) == [4, 1, 3, 0, 2, 5]


def test_a_score_of_minus_infinity_is_never_chosen() -> None:
    assert search_one_history([-torch.inf, 2.0, -torch.inf], 3) == [1]


def test_long_histories_come_first_and_no_program_has_more_than_its_candidates() -> None:
    # first row, length, first candidate, candidates
    assert programs(torch.tensor([3, 0, 8]), torch.tensor([1, 2, 5]), shared=4).tolist() == [
        [3, 8, 3, 4],
        [3, 8, 7, 1],
        [0, 3, 0, 1],
        [3, 0, 1, 2],
    ]


def whole(dtype: torch.dtype = torch.float32, width: int = 8) -> WholeKeys:
    tables = WholeTables({"item": [torch.zeros(4, width).to(dtype)]})
    return WholeKeys(tables, {"item": torch.zeros(2, dtype=torch.int64)})


def test_what_the_kernel_can_do_is_left_to_it() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.uint8):
        assert choice.searches_fused(whole(dtype), DOT, 128)
    assert choice.searches_fused(whole(), Score(FIELDS, "cosine"), 1)


def test_what_the_kernel_cannot_do_is_not_left_to_it() -> None:
    without_category = Score(FIELDS, unused=frozenset({"item"}))
    assert not choice.searches_fused(torch.zeros(2, 8).__getitem__, DOT, 1)
    assert not choice.searches_fused(whole(), DOT, 129)
    assert not choice.searches_fused(whole(), MLPScore(FIELDS), 1)
    assert not choice.searches_fused(whole(), without_category, 1)
    assert not choice.searches_fused(whole(torch.float64), DOT, 1)
    assert not choice.searches_fused(whole(torch.uint8, width=14), DOT, 1)  # scales at odd places


def test_on_a_cpu_everything_is_left_to_the_stock_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    assert not choice.runs_on(torch.device("cpu"))
    assert not choice.searches_fused(whole(), DOT, 1)


@pytest.mark.parametrize("score", ["dot", "cosine"])
def test_a_model_says_the_same_whoever_searches(
    score: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker = make_ranker(make_config(score=score), torch.float32).to(DEVICE).eval()
    bags = ranker.tables.attention.embedding_bags
    tables = {f.name: [bags[f"attention_{f.name}"].weight] for f in ranker.fields}
    ranker.tables.whole["attention"] = WholeTables(tables)
    batch = {
        name: value.to(DEVICE) if name not in ON_HOST else value
        for name, value in pack(make_requests()).items()
    }
    whole_tables = ranker.tables.whole["attention"]
    with torch.no_grad():
        by_kernel = ranker(**batch)
        read = dict(whole_tables.rows_read)
        monkeypatch.setattr(choice, "runs_on", lambda device: False)
        by_stock = ranker(**batch)
    rows = len(batch["history"]["item"].values()) + len(batch["request_of"])
    assert read == dict.fromkeys((f.name for f in ranker.fields), rows)
    # stock operations read the padding of their blocks too
    assert all(count >= 2 * rows for count in whole_tables.rows_read.values())
    assert torch.equal(by_kernel.recency, by_stock.recency)
    torch.testing.assert_close(by_kernel.logits, by_stock.logits)
