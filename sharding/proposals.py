"""Which few of all plans TorchRec's planner rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.types import Proposer, ShardingOption

from sharding.replicated import DATA_PARALLEL

CACHED = "fused_uvm_caching"
"""FBGEMM's kernel for tables of the host's memory with a cache on the device."""

_Key = tuple[str, str]  # path of the collection, table
_Choice = dict[_Key, ShardingOption]


class CutProposer(Proposer):
    """Whole tables first; then with one, two, four ... of them cut, from the largest on, and from
    the one that takes longest on. The same with tables replicated that are cheaper so: for all
    ranks together, or for the rank that would hold them. Last, with the largest in the host's
    memory.

    TorchRec's own proposers go through the options of one table at a time: with thousands of
    tables, each proposal of seconds, they end nowhere near a plan.
    """

    def load(
        self, search_space: list[ShardingOption], enumerator: EmbeddingEnumerator | None = None
    ) -> None:
        """Takes the options that there are."""
        self._proposals = iter(_proposals(search_space))

    def propose(self) -> list[ShardingOption] | None:
        """The next, or None."""
        return next(self._proposals, None)

    def feedback(self, *_: object, **__: object) -> None:
        """Nothing depends on it."""


def _proposals(search_space: Sequence[ShardingOption]) -> Iterator[list[ShardingOption]]:
    options: dict[_Key, list[ShardingOption]] = {}
    for option in search_space:
        options.setdefault((option.path, option.name), []).append(option)
    sharded = {key: [o for o in of if o.compute_kernel == "fused"] for key, of in options.items()}
    replicas = _first(options, lambda o: o.sharding_type == DATA_PARALLEL)
    whole = {
        key: min(of, key=lambda o: (o.num_shards, _plainest(o))) if of else replicas[key]
        for key, of in sharded.items()
    }
    parted = _first(sharded, lambda o: o is not whole[o.path, o.name] and is_cut(o))
    from_largest = sorted(whole, key=lambda key: (-_bytes(whole[key]), key))
    for replicated in _replicated(whole, parted, replicas):
        base = whole | replicated
        yield [*base.values()]
        by_bytes = [key for key in from_largest if key in parted and key not in replicated]
        by_time = sorted(by_bytes, key=lambda key: (-_busiest(whole[key]), key))
        for order in (by_bytes, by_time):
            for count in _doubling(len(order)):
                yield [*(base | {key: parted[key] for key in order[:count]}).values()]
    cached = _first(options, lambda o: o.compute_kernel == CACHED)
    largest = [key for key in from_largest if key in cached]
    for count in _doubling(len(largest)):
        in_host = {key: cached[key] for key in largest[:count]}
        yield [*(whole | in_host).values()]
        yield [*(whole | parted | in_host).values()]


def _first(
    options: dict[_Key, list[ShardingOption]], wanted: Callable[[ShardingOption], bool]
) -> _Choice:
    """The fastest of those wanted, of each table that has one."""
    found = {
        key: min(filter(wanted, of), key=_fastest, default=None) for key, of in options.items()
    }
    return {key: option for key, option in found.items() if option is not None}


def _replicated(whole: _Choice, parted: _Choice, replicas: _Choice) -> list[_Choice]:
    """What to replicate: nothing; what takes all ranks together less time; also what takes less
    than the rank that is busiest with it otherwise; also all tables of a collection, so that its
    lookups exchange nothing at all: of each collection, and of all; also all that may be.
    """

    def total(option: ShardingOption) -> float:
        return sum(shard.perf.total for shard in option.shards)

    def others(key: _Key) -> list[ShardingOption]:
        return [of[key] for of in (whole, parted) if key in of]

    cheaper = {k: o for k, o in replicas.items() if total(o) < min(map(total, others(k)))}
    sooner = {k: o for k, o in replicas.items() if _busiest(o) < min(map(_busiest, others(k)))}
    sharded_paths = {path for path, _ in whole.keys() - replicas.keys()}
    entire: dict[str, _Choice] = {}
    for (path, name), option in replicas.items():
        if path not in sharded_paths:
            entire.setdefault(path, {})[path, name] = option
    every = {key: option for choice in entire.values() for key, option in choice.items()}
    found: list[_Choice] = [{}]
    for choice in (
        cheaper,
        cheaper | sooner,
        *(cheaper | of for of in entire.values()),
        cheaper | every,
        replicas,
    ):
        if choice not in found:
            found.append(choice)
    return found


def is_cut(option: ShardingOption) -> bool:
    """Whether ranks hold parts of it."""
    return option.num_shards > 1 and option.sharding_type != DATA_PARALLEL


def _doubling(last: int) -> Iterator[int]:
    """1, 2, 4, ... and ``last``."""
    count = 1
    while count < last:
        yield count
        count *= 2
    if last:
        yield last


def _busiest(option: ShardingOption) -> float:
    return max(shard.perf.total for shard in option.shards)


def _plainest(option: ShardingOption) -> tuple[bool, float, str]:
    """TorchRec lists the options in the order of a set of strings, another in every process: of
    those that are alike, as all are on one rank, the same must be taken each time.
    """
    return option.sharding_type != "table_wise", _busiest(option), option.sharding_type


def _fastest(option: ShardingOption) -> tuple[float, bool, str]:
    return _busiest(option), option.sharding_type != "table_wise", option.sharding_type


def _bytes(option: ShardingOption) -> int:
    return max(shard.storage.hbm + shard.storage.ddr for shard in option.shards)
