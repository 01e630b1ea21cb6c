"""Which value gets which id: an order in which blocks of neighbouring ids carry equal loads.

A row-wise shard is a block of rows. In the order of a log popular values come early, so the first
block would serve most lookups.

Shapes: V values, one id each.
"""

from __future__ import annotations

import numpy as np
import polars as pl


def lay_out(values: pl.DataFrame, by: str, before: int = 0) -> pl.DataFrame:
    """The rows of ``values`` in the order of their ids, by what they hold and not by where they
    stood.

    Args:
        values: ``original``, each value once, and the counts.
        by: column of counts.
        before: lookups of ids that stand before the first value: unknown, missing.
    """
    falling = values.sort(by, "original", descending=[True, False])
    return falling[even_order(falling[by].to_numpy(), before)]


def even_order(counts: np.ndarray, before: int = 0) -> np.ndarray:
    r"""(V,) places in ``counts``, (V,) falling, in the order of their ids.

    A value with more than the mean count m has a surplus c - m, all others lack something. They
    fill up each surplus: with h hot values in some order, surpluses s and their sum S, and n cold
    values j in some order, ids follow the keys

    .. math:: \Big(\sum_{k < i} s_k + s_i / 2\Big) \Big/ S, \qquad (j + 1/2) / n

    So each hot value stands in the middle of as many cold ones as make up for it, and the load
    before any id is in proportion to the ids before it, but for about half of the hot value near
    by. Both orders are van der Corput's, by the ranks of the counts: every stretch of ids has hot
    and cold values of all ranks, so blocks of ids are alike in the number of different ids that a
    batch asks for, too. ``before`` is a hot value that has to come first.

    >>> even_order(np.array([6, 3, 1, 1, 1])).tolist()  # two blocks of 6 would have 6 | 6
    [2, 0, 4, 3, 1]
    """
    mean = (counts.sum() + before) / max(len(counts), 1)
    hot = np.count_nonzero(counts > mean)
    hot_ids, cold_ids = _spread(np.arange(hot)), _spread(np.arange(hot, len(counts)))
    surplus = counts[hot_ids] - mean
    first = max(before - mean, 0)
    hot_key = (first + np.cumsum(surplus) - surplus / 2) / (first + surplus.sum())
    cold_key = (np.arange(len(cold_ids)) + 0.5) / len(cold_ids)
    keys = np.concatenate([hot_key, cold_key])
    return np.concatenate([hot_ids, cold_ids])[np.argsort(keys, kind="stable")]


def _spread(ranked: np.ndarray) -> np.ndarray:
    """The values at the places of van der Corput's sequence: the first few are far apart, and the
    first n of them spread evenly whatever n is.
    """
    places = np.zeros(1, np.int64)  # the binary digits of 0, 1, 2 ... read backwards
    while len(places) < len(ranked):
        places = np.concatenate([2 * places, 2 * places + 1])
    spread = np.empty_like(ranked)
    spread[places[places < len(ranked)]] = ranked
    return spread
