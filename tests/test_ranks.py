"""The helper that runs a function on gloo ranks."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.ranks import RankError, run_ranks


def add_ranks(rank: int, world_size: int, offset: float) -> float:
    total = torch.tensor(rank + offset)
    dist.all_reduce(total)
    return total.item()


def raise_on_rank_one(rank: int, world_size: int) -> None:
    if rank == 1:
        raise ValueError("one of us is wrong")
    dist.barrier()  # waits for a rank that will never come


def die_on_rank_one(rank: int, world_size: int) -> None:
    if rank == 1:
        os._exit(7)
    dist.barrier()


def hang(rank: int, world_size: int) -> None:
    time.sleep(60)


def return_what_does_not_pickle(rank: int, world_size: int) -> object:
    return lambda: rank


def return_tensor(rank: int, world_size: int) -> torch.Tensor:
    return torch.ones(1)


def test_all_reduce_adds_the_ranks() -> None:
    # 0.5 + 1.5 + 2.5
    assert run_ranks(add_ranks, 3, 0.5) == [4.5, 4.5, 4.5]


def test_results_come_in_the_order_of_the_ranks() -> None:
    assert run_ranks(lambda rank, world_size: (rank, world_size), 2) == [(0, 2), (1, 2)]


def test_a_rank_has_one_thread_and_its_environment() -> None:
    def facts(rank: int, world_size: int) -> tuple[int, str, str]:
        return torch.get_num_threads(), os.environ["LOCAL_RANK"], os.environ["WORLD_SIZE"]

    assert run_ranks(facts, 2) == [(1, "0", "2"), (1, "1", "2")]


def test_an_exception_arrives_with_its_traceback() -> None:
    with pytest.raises(RankError, match=r"rank 1 raised:(.|\n)*one of us is wrong"):
        run_ranks(raise_on_rank_one, 2)


def test_a_silent_death_arrives_as_its_exit_code() -> None:
    began = time.monotonic()
    with pytest.raises(RankError, match="rank 1 died without a word; exit code 7"):
        run_ranks(die_on_rank_one, 2)
    assert time.monotonic() - began < 20


def test_a_hang_ends_at_the_timeout() -> None:
    with pytest.raises(RankError, match="0 of 2 ranks answered"):
        run_ranks(hang, 2, timeout=1.0)


def test_a_tensor_is_refused() -> None:
    with pytest.raises(RankError, match=r"return \.tolist\(\)"):
        run_ranks(return_tensor, 1)


def test_a_result_that_does_not_pickle_is_an_error() -> None:
    with pytest.raises(RankError, match=r"rank 0 raised:(.|\n)*pickle"):
        run_ranks(return_what_does_not_pickle, 1)
