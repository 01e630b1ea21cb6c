r"""Exact search unit (ESU): what the chosen events say about a candidate.

.. math:: h = \sum_j \mathrm{softmax}_j(s_j)\, r_j

Shapes: S candidates, K chosen events each, N events, A attention and R representation width;
in a block B requests, L events, C candidates.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from modules.jagged import Block


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension where ``mask``; zeros elsewhere, also where nothing is."""
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1) * mask


def attend_chosen(
    queries: Tensor, keys: Tensor, values: Tensor, valid: Tensor, log_weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Target attention over each candidate's own few events.

    Args:
        queries: (S, A).
        keys: (S, K, A).
        values: (S, K, R).
        valid: (S, K) bool.
        log_weight: (S, K) added to the scores.

    Returns:
        (S, R) interests, zeros without history, and the (S, K) weights.
    """
    scores_SK = (keys @ queries[:, :, None]).squeeze(2)
    if log_weight is not None:
        scores_SK = scores_SK + log_weight.to(scores_SK.dtype)
    weights_SK = masked_softmax(scores_SK, valid)
    return (weights_SK[:, None] @ values).squeeze(1), weights_SK


def attend_all(queries: Tensor, keys: Tensor, values: Tensor, blocks: Iterable[Block]) -> Tensor:
    """Target attention over the whole history; the candidates of a request share one gather of it.

    Args:
        queries: (S, A).
        keys: (N, A).
        values: (N, R).
        blocks: of the batch.

    Returns:
        (S, R) interests, zeros without history.
    """
    blocks = list(blocks)
    num_candidates = queries.shape[0]
    if not blocks:
        return values.new_zeros(num_candidates, values.shape[1])
    # one row more, for the padding of the blocks
    padded_queries = torch.cat([queries, queries.new_zeros(1, queries.shape[1])])
    rows, candidates = [block.rows for block in blocks], [block.candidates for block in blocks]
    pooled = []
    for block, queries_BCA, keys_BLA, values_BLR in zip(
        blocks,
        _gather(padded_queries, candidates),
        _gather(keys, rows),
        _gather(values, rows),
        strict=True,
    ):
        weights_BCL = masked_softmax(queries_BCA @ keys_BLA.mT, block.row_mask[:, None])
        pooled.append((weights_BCL @ values_BLR).flatten(0, 1))
    pooled_rows = torch.cat(pooled)
    interests = pooled_rows.new_zeros(num_candidates + 1, values.shape[1])
    flat_candidates = torch.cat([numbers.flatten() for numbers in candidates])
    return interests.index_put((flat_candidates,), pooled_rows)[:num_candidates]


def _gather(rows: Tensor, numbers: list[Tensor]) -> list[Tensor]:
    """``[rows[n] for n in numbers]`` as one gather: backward makes a gradient as large as ``rows``
    for each, so that one per block would cost the square of the batch.
    """
    gathered = rows[torch.cat([n.flatten() for n in numbers])]
    pieces = gathered.split([n.numel() for n in numbers])
    return [piece.view(*n.shape, rows.shape[1]) for piece, n in zip(pieces, numbers, strict=True)]
