"""RankingBatch: what moves and what stays."""

import dataclasses

import pytest
import torch
from torchrec import KeyedJaggedTensor

from data.batch import RankingBatch


def bags(keys: list[str], values: list[int], lengths: list[int]) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(keys, torch.tensor(values), lengths=torch.tensor(lengths))


@pytest.fixture
def batch() -> RankingBatch:
    #            request 0   request 1
    #   item     [3, 4]      []
    #   recency  [2, 1]      []
    return RankingBatch(
        context=bags(["user"], [7, 8], [1, 1]),
        history=bags(["item", "recency"], [3, 4, 2, 1], [2, 0, 2, 0]),
        candidates=bags(["item", "recency"], [5, 6, 0, 0], [1, 1, 1, 1]),
        request_of=torch.tensor([0, 1]),
        labels=torch.tensor([1.0, 0.0]),
        request_ids=torch.tensor([40, 41]),
        history_lengths=torch.tensor([2, 0]),
        candidate_counts=torch.tensor([1, 1]),
        global_candidates=4,
        seed=9,
        numbers=torch.tensor([[0.5, 2.0, 3.0], [1.0, float("nan"), 4.0]]),
    )


def test_to_moves_all_but_the_host_tensors(batch) -> None:
    moved = batch.to(torch.device("meta"))
    for value in (moved.context, moved.history, moved.candidates):
        assert value.values().device.type == "meta"
    for value in (moved.request_of, moved.labels, moved.request_ids, moved.numbers):
        assert value.device.type == "meta"
    assert moved.numbers.shape == (2, 3)
    assert moved.history_lengths.tolist() == [2, 0]
    assert moved.candidate_counts.tolist() == [1, 1]
    assert (moved.global_candidates, moved.seed) == (4, 9)


def test_to_leaves_the_original_where_it_was(batch) -> None:
    batch.to(torch.device("meta"))
    assert batch.history.values().tolist() == [3, 4, 2, 1]
    assert batch.labels.device.type == "cpu"


def test_a_batch_without_numbers_has_none_for_each_request(batch) -> None:
    plain = dataclasses.replace(batch, numbers=None)
    assert plain.numbers.shape == (2, 0)
    assert plain.numbers.dtype == torch.float32
    assert plain.to(torch.device("meta")).numbers.shape == (2, 0)
