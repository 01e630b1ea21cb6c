"""Where the time of training went."""

from __future__ import annotations

import time

import pytest
import torch

from trainer.checkpoint import Position
from trainer.meter import Meter, bound_by
from trainer.processes import Ranks, process_group


def test_time_until_a_batch_is_there_is_input() -> None:
    def slowly() -> object:
        for number in range(3):
            time.sleep(0.05)
            yield number

    meter = Meter(Ranks(0, 1, 1, torch.device("cpu")))
    begin = time.perf_counter()
    for _ in meter.waiting_for(slowly()):
        time.sleep(0.1)
    # what the consumer takes is not in it
    assert 0.15 <= float(meter.waited[0]) <= time.perf_counter() - begin - 0.3
    assert float(meter.waited[1]) == 0


@pytest.mark.parametrize("world_size", [1, 2])
def test_standing_still_in_a_step_is_waiting_where_there_are_others(world_size: int) -> None:
    meter = Meter(Ranks(0, world_size, world_size, torch.device("cpu")))
    with meter.step():
        time.sleep(0.1)
    assert (float(meter.waited[1]) >= 0.09) == (world_size == 2)


def test_working_in_a_step_is_no_waiting() -> None:
    meter = Meter(Ranks(0, 2, 2, torch.device("cpu")))
    begin = time.perf_counter()
    with meter.step():
        worked = time.thread_time()
        while time.thread_time() - worked < 0.1:
            sum(range(1000))
    # on a busy machine it also stands still for want of a core
    assert float(meter.waited[1]) <= time.perf_counter() - begin - 0.1


def test_a_record_adds_what_was_waited_for_to_the_position() -> None:
    position = Position(seconds=7.0, input_seconds=1.0)
    with process_group() as ranks:
        meter = Meter(ranks)
        meter.waited[0] += 2
        meter.steps = 1
        meter.record(position)
    assert position.input_seconds == pytest.approx(3.0)
    assert position.communication_seconds == 0
    assert float(meter.waited.sum()) == 0


@pytest.mark.parametrize(
    ("waited", "expected"),
    [
        ((1, 2), "Bound by compute: 70% of training was computing, 10% waiting for input, "
                 "20% waiting for other ranks."),
        ((6, 1), "Bound by input: "),
        ((1, 6), "Bound by communication: "),
        ((0, 11), "Bound by communication: 0% of training was computing"),
    ],
)  # fmt: skip
def test_the_sentence_names_the_largest_share(waited: tuple[int, int], expected: str) -> None:
    of_input, in_steps = waited
    position = Position(seconds=10, input_seconds=of_input, communication_seconds=in_steps)
    found = bound_by(position)
    assert found["bound"].startswith(expected)
    assert all(0 <= share <= 1 for share in found["time_shares"].values())
