r"""Exact search unit (ESU): what events of the history say about a candidate.

.. math:: h = \sum_j \mathrm{softmax}_j(s_j)\, r_j

and the other ways to make one vector of a history.

Shapes: S candidates, K chosen events each, N events, A attention and R representation width;
in a block B requests, L events, C candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from modules.jagged import Block
from modules.joint_rows import JointRows, joint_scores
from modules.score import MLPScore, Score, dot

ScoreFunction = Callable[[Tensor, Tensor], Tensor]
"""(..., C, A) queries and (..., L, A) keys -> (..., C, L)."""


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension where ``mask``; zeros elsewhere, also where nothing is."""
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1) * mask


def attend_chosen(
    queries: Tensor, keys: Tensor, values: Tensor, valid: Tensor, score: ScoreFunction = dot
) -> tuple[Tensor, Tensor]:
    """Target attention over each candidate's own few events.

    Args:
        queries: (S, A).
        keys: (S, K, A).
        values: (S, K, R).
        valid: (S, K) bool.
        score: of queries and keys.

    Returns:
        (S, R) interests, zeros without history, and the (S, K) weights.
    """
    weights_SK = masked_softmax(score_chosen(queries, keys, score), valid)
    return (weights_SK[:, None] @ values).squeeze(1), weights_SK


def score_chosen(queries: Tensor, keys: Tensor, score: ScoreFunction = dot) -> Tensor:
    """(S, A) queries and each one's (S, K, A) keys -> (S, K)."""
    return score(queries[:, None], keys).squeeze(1)


def score_joint(keys: JointRows, queries: JointRows, score: Score | MLPScore) -> Tensor:
    """(S, P) scores of each candidate's own P events.

    Args:
        keys: whose events have attention rows.
        queries: whose candidates have; the same, where one lookup gave both.
        score: of the model.
    """
    if keys is queries and isinstance(score, Score) and not score.drops:
        return joint_scores(keys, score)
    of_events, of_candidates = keys.parts[0], queries.parts[1]
    of_each = of_events.unflatten(0, (len(of_candidates), keys.own))
    return score_chosen(score.query(of_candidates), score.key(of_each), score)


def attend_all(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    blocks: Iterable[Block],
    score: ScoreFunction = dot,
) -> Tensor:
    """Target attention over the whole history; the candidates of a request share one gather of it.

    Args:
        queries: (S, A).
        keys: (N, A).
        values: (N, R).
        blocks: of the batch.
        score: of queries and keys.

    Returns:
        (S, R) interests, zeros without history.
    """

    def attend(q_BCA: Tensor, k_BLA: Tensor, v_BLR: Tensor, mask_BL: Tensor) -> Tensor:
        return masked_softmax(score(q_BCA, k_BLA), mask_BL[:, None]) @ v_BLR

    return pool_blocks(attend, queries, keys, values, blocks)


def sum_all(queries: Tensor, keys: Tensor, values: Tensor, blocks: Iterable[Block]) -> Tensor:
    r"""Sum of the history's values weighted by the bare dot product,
    :math:`\sum_j \langle q, k_j \rangle r_j`: linear attention, whose cost per candidate does not
    grow with the history. Shapes as in :func:`attend_all`.
    """

    def attend(q_BCA: Tensor, k_BLA: Tensor, v_BLR: Tensor, mask_BL: Tensor) -> Tensor:
        return q_BCA @ ((k_BLA * mask_BL[:, :, None]).mT @ v_BLR)

    return pool_blocks(attend, queries, keys, values, blocks)


def mean_all(targets: Tensor, values: Tensor, blocks: Iterable[Block]) -> Tensor:
    """Mean of the history's values, the same for all candidates of a request.

    ``targets`` (S, R) say how many candidates there are; shapes as in :func:`attend_all`.
    """

    def mean(q_BCA: Tensor, k_BLA: Tensor, v_BLR: Tensor, mask_BL: Tensor) -> Tensor:
        in_history_BL = mask_BL.to(v_BLR.dtype)
        weights_B1L = (in_history_BL / in_history_BL.sum(1, keepdim=True).clamp(min=1))[:, None]
        return (weights_B1L @ v_BLR).expand(-1, q_BCA.shape[1], -1)

    return pool_blocks(mean, targets[:, :0], values[:, :0], values, blocks)


def encode_all(
    targets: Tensor,
    values: Tensor,
    blocks: Iterable[Block],
    encoder: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """What an encoder makes of the history, which the candidates of a request share.

    Args:
        targets: (S, R).
        values: (N, R).
        blocks: of the batch.
        encoder: (B, L, R) events, (B, L) mask and (B, C, R) targets -> (B, C, n, R).

    Returns:
        (S, n R), zeros without history.
    """

    def encode(q_BCR: Tensor, k_BLA: Tensor, v_BLR: Tensor, mask_BL: Tensor) -> Tensor:
        return encoder(v_BLR, mask_BL, q_BCR).flatten(2)

    return pool_blocks(encode, targets, values[:, :0], values, blocks)


def pool_blocks(
    pool: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    blocks: Iterable[Block],
) -> Tensor:
    """One vector for each candidate from its history, block by block.

    Args:
        pool: (B, C, A) queries, (B, L, A) keys, (B, L, R) values and the (B, L) mask of what is no
            padding -> (B, C, any width).
        queries: (S, A).
        keys: (N, A).
        values: (N, R).
        blocks: of the batch.

    Returns:
        (S, that width), zeros without history.
    """
    blocks = list(blocks)
    num_candidates = queries.shape[0]
    if not blocks:  # one masked event: gradients, all zero, reach all that they do elsewhere
        masked = torch.zeros(1, 1, dtype=torch.bool, device=values.device)
        return pool(queries[None], keys.sum(0)[None, None], values.sum(0)[None, None], masked)[0]
    # one row more, for the padding of the blocks
    padded_queries = torch.cat([queries, queries.new_zeros(1, queries.shape[1])])
    candidates = [block.candidates for block in blocks]
    pooled = [
        pool(queries_BCA, keys_BLA, values_BLR, block.row_mask).flatten(0, 1)
        for block, queries_BCA, keys_BLA, values_BLR in zip(
            blocks,
            _gather(padded_queries, candidates),
            _gather_events(keys, blocks),
            _gather_events(values, blocks),
            strict=True,
        )
    ]
    pooled_rows = torch.cat(pooled)
    interests = pooled_rows.new_zeros(num_candidates + 1, pooled_rows.shape[1])
    flat_candidates = torch.cat([numbers.flatten() for numbers in candidates])
    return interests.index_put((flat_candidates,), pooled_rows)[:num_candidates]


def _gather_events(rows: Tensor, blocks: list[Block]) -> list[Tensor]:
    """(B, L, width) of each block. Histories of equal length are there already: views will do."""
    numbers = [block.rows for block in blocks]
    sizes = [n.numel() for n in numbers]
    places = [*itertools.accumulate(sizes, initial=0)]
    if [block.first_row for block in blocks] != places[:-1] or places[-1] != len(rows):
        return _gather(rows, numbers)
    pieces = rows.split(sizes)
    return [piece.view(*n.shape, rows.shape[1]) for piece, n in zip(pieces, numbers, strict=True)]


def _gather(rows: Tensor, numbers: list[Tensor]) -> list[Tensor]:
    """``[rows[n] for n in numbers]`` as one gather: backward makes a gradient as large as ``rows``
    for each, so that one per block would cost the square of the batch.
    """
    gathered = rows.index_select(0, torch.cat([n.flatten() for n in numbers]))
    pieces = gathered.split([n.numel() for n in numbers])
    return [piece.view(*n.shape, rows.shape[1]) for piece, n in zip(pieces, numbers, strict=True)]
