"""The trained score of every event of a history, and of what it would be without the items.

Shapes: S candidates, N events; in a block B requests, L events, C candidates; A attention width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from data.batch import RankingBatch
from modules.bags import ids_of
from modules.jagged import Block, blocks
from modules.ranker import LifelongRanker

PLACE = ("category", "recency")
"""The fields that the published measure of search quality scores by."""


def block_scores(
    ranker: LifelongRanker, batch: RankingBatch, only: Collection[str] | None = None
) -> Iterator[tuple[Block, Tensor]]:
    """Blocks with their (B, C, L) scores, -inf where there is no event.

    It is the score of search and attention as trained, all fields and their scaling. ``only`` sets
    the columns of all other fields to 0 in queries and keys: a dot product loses their terms and
    keeps its scale; a cosine becomes that of the columns left.

    Collective where the tables are sharded.
    """
    names = [f.name for f in ranker.fields]
    events, candidates = ids_of(batch.history, names), ids_of(batch.candidates, names)
    keys, queries = ranker.tables.attend(events, candidates)
    if only is not None:
        mask = field_mask(ranker, only, keys)
        keys, queries = keys * mask, queries * mask
    keys, queries = ranker.score.key(keys), ranker.score.query(queries)
    padded = torch.cat([queries, queries.new_zeros(1, queries.shape[1])])
    for block in blocks(batch.history_lengths, batch.candidate_counts, queries.device):
        scores_BCL = ranker.score(padded[block.candidates], keys[block.rows])
        yield block, scores_BCL.masked_fill(~block.row_mask[:, None], -torch.inf)


def field_mask(ranker: LifelongRanker, only: Collection[str], like: Tensor) -> Tensor:
    """(A,) 1 in the attention columns of some fields, 0 in the others."""
    return torch.cat(
        [like.new_full((f.attention_dim,), float(f.name in only)) for f in ranker.fields]
    )


def has_partial_scores(ranker: LifelongRanker) -> bool:
    """Whether a score by category and recency alone means something: not through a network, nor
    where a map has mixed the fields' columns.
    """
    config = ranker.config
    mixed = config.sharing == "projected" and config.projection == "event"
    named = {f.name for f in ranker.fields}
    return config.score != "mlp" and not mixed and named.issuperset(PLACE)


def chooses_by_score(ranker: LifelongRanker) -> bool:
    """Whether the search takes the K highest scores."""
    return ranker.config.search == "exact"


def chooses_events(ranker: LifelongRanker) -> bool:
    """Whether there is a search, and it chooses events, not clusters of them."""
    return ranker.config.search not in ("clusters", "all")
