"""What ranks say to each other."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist

from data.errors import InputError
from tests.ranks import RankError, run_ranks
from tests.trainer.small_runs import ranks_of
from trainer.processes import Ends, _told_once, gather_rows, on_first_rank, process_group


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([2, 1], [[0, 0], [0, 1], [1, 0]]),
        ([0, 2], [[1, 0], [1, 1]]),
        ([1, 0, 3, 0], [[0, 0], [2, 0], [2, 1], [2, 2]]),
        ([0, 0], []),
    ],
    ids=str,
)
def test_unequal_numbers_of_rows_are_gathered_in_the_order_of_the_ranks(
    rows: list[int], expected: list[list[int]]
) -> None:
    def gather(rank: int, world_size: int) -> list[list[int]]:
        own = torch.tensor([[rank, i] for i in range(rows[rank])], dtype=torch.int64)
        return gather_rows(own.reshape(-1, 2)).tolist()

    assert run_ranks(gather, len(rows)) == [expected] * len(rows)


def test_what_rank_0_refuses_ends_every_rank() -> None:
    def refused(rank: int, world_size: int) -> tuple[str, float]:
        def action() -> None:
            raise InputError("no such store")

        with pytest.raises(InputError) as error:
            on_first_rank(ranks_of(rank, world_size), action)
        together = torch.ones(1)
        dist.all_reduce(together)  # no rank was left behind in a collective
        return str(error.value), together.item()

    answers = run_ranks(refused, 3)
    assert answers[0] == ("no such store", 3.0)
    assert answers[1:] == [("Rank 0 ended the run; its message says why.", 3.0)] * 2


def test_the_action_runs_on_rank_0_only_and_before_the_others_go_on() -> None:
    def act(rank: int, world_size: int) -> int:
        done: list[int] = []
        on_first_rank(ranks_of(rank, world_size), lambda: done.append(rank))
        return len(done)

    assert run_ranks(act, 3) == [1, 0, 0]


def test_a_crash_of_ours_on_rank_0_does_not_leave_the_others_waiting() -> None:
    def crash(rank: int, world_size: int) -> None:
        def action() -> None:
            raise ZeroDivisionError

        on_first_rank(ranks_of(rank, world_size), action)

    with pytest.raises(RankError, match=r"rank 0 raised:(.|\n)*ZeroDivisionError"):
        run_ranks(crash, 2)


def test_a_single_process_is_a_group_of_one_and_leaves_none_behind() -> None:
    def alone(rank: int, world_size: int) -> tuple:
        dist.destroy_process_group()  # the helper's
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            del os.environ[name]
        with process_group() as ranks:
            facts = (ranks.rank, ranks.world_size, ranks.local_world_size, ranks.first)
            backend = dist.get_backend()
        return facts, backend, dist.is_initialized()

    facts, backend, left = run_ranks(alone, 1)[0]
    assert facts == (0, 1, 1, True)
    assert backend == ("nccl" if torch.cuda.is_available() else "gloo")
    assert not left


@pytest.mark.parametrize(
    ("words", "told"),
    [((), "twofold: Interrupted.\n"), (("Nothing is kept.",), "twofold: Nothing is kept.\n")],
)
def test_an_interruption_is_told_with_what_its_raiser_knows(
    words: tuple[str, ...], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, _told_once(Ends(dist.HashStore(), 0)):
        raise KeyboardInterrupt(*words)
    assert (ended.value.code, capfd.readouterr().err) == (2, told)
