"""Batches of an event store for one rank, in an order that no world size changes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import numpy as np

from data.batch import RankingBatch
from data.collate import Collator
from data.errors import InputError
from data.source import Split
from data.store import EventStore


class RequestLoader:
    """Iterates the batches of one epoch: this rank's slice of every global batch.

    Each ``iter()`` goes on where the last one stopped and ends with its epoch; the next one
    begins the next epoch. The order of requests is a function of (seed, epoch) alone and is
    held in memory, 8 bytes a request.

    Args:
        store: a prepared log.
        split: "train", "val" or "test".
        requests_per_batch: G, of the global batch, all ranks together.
        history_length: most recent events of a history that are kept.
        time_gap: adds the field gap, of the time between each event and the request.
        shuffle: False gives the order of the store, in every epoch.
        prefetch: batches made ahead by a background thread; 0 makes them in the caller's.

    Raises:
        InputError: an empty split, or one that cannot be cut so for so many ranks.
    """

    def __init__(
        self,
        store: EventStore,
        split: Split,
        *,
        requests_per_batch: int,
        history_length: int,
        time_gap: bool = False,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        prefetch: int = 2,
    ) -> None:
        if history_length < 1:
            raise InputError(f"history_length must be at least 1, got {history_length}.")
        if requests_per_batch < world_size:
            raise InputError(
                f"requests_per_batch is {requests_per_batch}, fewer than the {world_size} ranks "
                f"that share it. Raise it to at least {world_size}, or start fewer processes."
            )
        if seed < 0:
            raise InputError(f"seed must not be negative, got {seed}.")
        self.rank, self.world_size = rank, world_size
        self.seed, self.shuffle, self.prefetch = seed, shuffle, prefetch
        self._epoch = self._batch = 0
        self._collate = Collator(store, split, history_length=history_length, time_gap=time_gap)
        self._batches = -(-len(self._collate) // requests_per_batch)
        _check_split(store, split, len(self._collate), self._batches, world_size)

    def __len__(self) -> int:
        """Batches of a whole epoch, the same at every rank."""
        return self._batches

    def set_epoch(self, epoch: int) -> None:
        """The next iteration begins at the start of ``epoch``."""
        self._epoch, self._batch = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Position of the next batch that the consumer has not been given.

        It means the same at every world size, as long as requests_per_batch and seed stay.
        """
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes to a position that ``state_dict`` gave, at this or another world size."""
        if not 0 <= state["batch"] < len(self):
            raise InputError(
                f"The loader cannot resume at batch {state['batch']}: an epoch has {len(self)} "
                f"batches. Resume with the store and requests_per_batch of the first run."
            )
        self._epoch, self._batch = state["epoch"], state["batch"]

    def __iter__(self) -> Iterator[RankingBatch]:
        epoch, first = self._epoch, self._batch
        for number, batch in enumerate(self._produce(epoch, first), start=first + 1):
            # before the yield: a batch counts as seen once the consumer has it
            self._epoch, self._batch = divmod(epoch * len(self) + number, len(self))
            yield batch

    def _produce(self, epoch: int, first: int) -> Iterator[RankingBatch]:
        order = self._order(epoch)
        batches = (self._make(order, epoch, number) for number in range(first, len(self)))
        return in_background(batches, self.prefetch) if self.prefetch else batches

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self._collate))
        seed = np.random.SeedSequence(self.seed, spawn_key=(0, epoch))
        return np.random.default_rng(seed).permutation(len(self._collate))

    def _make(self, order: np.ndarray, epoch: int, number: int) -> RankingBatch:
        together = equal_slice(order, number, len(self))
        return self._collate(
            equal_slice(together, self.rank, self.world_size),
            global_candidates=self._collate.count_candidates(together),
            seed=batch_seed(self.seed, epoch, number),
        )


def equal_slice(values: np.ndarray, number: int, count: int) -> np.ndarray:
    """Slice ``number`` of ``count``; their lengths differ by at most one.

    >>> [equal_slice(np.arange(5), number, 2).tolist() for number in range(2)]
    [[0, 1], [2, 3, 4]]
    """
    return values[len(values) * number // count : len(values) * (number + 1) // count]


def batch_seed(seed: int, epoch: int, batch: int) -> int:
    """Seed of the random draws of one global batch: 63 bits, as torch.Generator takes them."""
    # the spawn key keeps it apart from the order's seed, whose key starts with 0
    sequence = np.random.SeedSequence(seed, spawn_key=(1, epoch, batch))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def in_background(values: Iterator[RankingBatch], ahead: int) -> Iterator[RankingBatch]:
    """Yields ``values``, made up to ``ahead`` in advance by a thread.

    An exception of theirs is raised here, in its turn. The thread ends when this generator
    does: at the end, at an exception, or when the consumer drops it.
    """
    done = object()
    stop = threading.Event()
    ready: queue.Queue = queue.Queue(maxsize=ahead)

    def make() -> None:
        try:
            for value in values:
                ready.put((value, None))
                if stop.is_set():
                    return
            ready.put((done, None))
        except BaseException as error:  # the consumer's to handle
            ready.put((done, error))

    thread = threading.Thread(target=make, name="request-loader", daemon=True)
    thread.start()
    try:
        while True:
            value, error = ready.get()
            if error is not None:
                raise error
            if value is done:
                return
            yield value
    finally:
        stop.set()
        while not ready.empty():  # one free place is enough for the thread to see the event
            ready.get_nowait()
        thread.join()


def _check_split(
    store: EventStore, split: Split, requests: int, batches: int, world_size: int
) -> None:
    if requests == 0:
        raise InputError(
            f"{store.path} has no {split} requests: its log was too short for the split. Prepare "
            f"it again from a longer log, or with another split; twofold prepare "
            f"{store.info.source} --help names the options."
        )
    smallest = requests // batches
    if smallest < world_size:
        more = f", or raise requests_per_batch to {2 * world_size}" if batches > 1 else ""
        raise InputError(
            f"{world_size} ranks are too many: the {requests} {split} requests of {store.path} "
            f"make {batches} batches, the smallest of {smallest}. "
            f"Start at most {smallest} processes{more}."
        )
