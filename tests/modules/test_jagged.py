"""Blocks are a jagged batch, nothing more and nothing less."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modules.jagged import Block, blocks, first_rows

HISTORIES = [
    pytest.param([0, 3, 1, 200, 4, 5, 6, 0, 37], [2, 1, 6, 3, 1, 4, 2, 3, 5], id="mixed"),
    pytest.param([9] * 7, [1, 2, 3, 1, 2, 3, 1], id="equal"),
    pytest.param([2**i for i in range(9)], [1] * 9, id="doubling"),
    pytest.param([12, 9, 12], [2, 0, 3], id="a request without candidates"),
    pytest.param([0, 0], [1, 2], id="no history"),
    pytest.param([], [], id="no request"),
    pytest.param([1], [1], id="one"),
]
BLOCK_EVENTS = [1, 10, 64, 65_536]


def split(lengths: list[int], counts: list[int]) -> list[Block]:
    as_tensors = [torch.tensor(numbers, dtype=torch.int64) for numbers in (lengths, counts)]
    return list(blocks(*as_tensors, torch.device("cpu")))


def owners(counts: list[int]) -> Tensor:
    """Request of each event or candidate."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))


@pytest.fixture(params=BLOCK_EVENTS)
def block_events(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("modules.jagged.BLOCK_EVENTS", request.param)
    return request.param


def test_first_rows_is_where_pieces_begin() -> None:
    assert first_rows(torch.tensor([2, 0, 3, 1])).tolist() == [0, 2, 2, 5]


def test_a_block_is_laid_out_as_documented() -> None:
    # events 0 1 2 | 3 4, candidates 0 | 1 2; the longest history first
    (block,) = split([2, 3], [2, 1])
    assert block.rows.tolist() == [[2, 3, 4], [0, 1, 0]]
    assert block.row_mask.tolist() == [[True, True, True], [True, True, False]]
    assert block.candidates.tolist() == [[2, 3], [0, 1]]


@pytest.mark.usefixtures("block_events")
@pytest.mark.parametrize(("lengths", "counts"), HISTORIES)
def test_every_event_is_in_one_block(lengths: list[int], counts: list[int]) -> None:
    rows = [row for block in split(lengths, counts) for row in block.rows[block.row_mask].tolist()]
    assert sorted(rows) == list(range(sum(lengths)))


@pytest.mark.usefixtures("block_events")
@pytest.mark.parametrize(("lengths", "counts"), HISTORIES)
def test_every_candidate_with_a_history_is_in_one_block(
    lengths: list[int], counts: list[int]
) -> None:
    numbers = [n for block in split(lengths, counts) for n in block.candidates.flatten().tolist()]
    owner = owners(counts).tolist()
    expected = [n for n in range(sum(counts)) if lengths[owner[n]] > 0]
    assert sorted(n for n in numbers if n != sum(counts)) == expected


@pytest.mark.usefixtures("block_events")
@pytest.mark.parametrize(("lengths", "counts"), HISTORIES)
def test_a_candidate_meets_the_events_of_its_request(lengths: list[int], counts: list[int]) -> None:
    for block in split(lengths, counts):
        for rows, mask, candidates in zip(
            block.rows, block.row_mask, block.candidates, strict=True
        ):
            (request,) = owners(lengths)[rows[mask]].unique()
            real = candidates[candidates < sum(counts)]
            assert len(real) == counts[request]
            assert (owners(counts)[real] == request).all()


@pytest.mark.usefixtures("block_events")
@pytest.mark.parametrize(("lengths", "counts"), HISTORIES)
def test_at_most_half_of_a_history_is_padding(lengths: list[int], counts: list[int]) -> None:
    for block in split(lengths, counts):
        assert (block.row_mask.sum(1) * 2 >= block.rows.shape[1]).all()


@pytest.mark.parametrize(("lengths", "counts"), HISTORIES)
def test_a_block_of_several_requests_keeps_the_limit(
    lengths: list[int], counts: list[int], block_events: int
) -> None:
    for block in split(lengths, counts):
        assert block.rows.numel() <= block_events or len(block.rows) == 1


def test_similar_histories_share_a_block() -> None:
    assert len(split([10, 5, 10, 7, 6, 9], [1] * 6)) == 1
    assert len(split([10, 4, 10, 7, 6, 9], [1] * 6)) == 2


def test_blocks_say_whether_their_rows_follow_each_other() -> None:
    def firsts(lengths: list[int]) -> list[int | None]:
        counts = torch.ones(len(lengths), dtype=torch.int64)
        return [b.first_row for b in blocks(torch.tensor(lengths), counts, torch.device("cpu"))]

    assert firsts([4, 4, 4]) == [0]
    assert firsts([4, 0, 4]) == [0]
    assert firsts([4, 3, 4]) == [None]  # padded
    assert firsts([4, 1, 4, 1]) == [None, None]  # others lie between
