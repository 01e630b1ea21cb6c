r"""Scores and weighted sums of rows that one lookup gave for events and candidates together.

What autograd would make of their parts it would join again into the gradient of the lookup: a copy
of all rows, after one that brings transposed products into order. Here the gradient of each lookup
is written once, where the tables' update reads it.

Shapes: S candidates, P events of each, A attention and R representation width, H sums.
Joint rows are (S P + S, width): the events of each candidate, candidate by candidate, then the
candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from modules.score import NORM_EPS, Score, norms


@dataclass(frozen=True)
class JointRows:
    """What one lookup gave: (n + S, width) rows, those of n events first."""

    rows: Tensor
    events: int
    """n."""
    own: int = 0
    """P, where each candidate has its own: n = S P, candidate by candidate; else not looked at."""

    @cached_property
    def parts(self) -> tuple[Tensor, Tensor]:
        """Rows of the events, and of the candidates."""
        # a split, whose backward joins both gradients; that of a slice fills up with zeros and adds
        events, candidates = self.rows.split([self.events, len(self.rows) - self.events])
        return events, candidates


def joint_scores(rows: JointRows, score: Score) -> Tensor:
    """(S, P) scores of attention rows."""
    learned = [parameter for parameter in score.parameters() if parameter.requires_grad]
    return _Scores.apply(rows.rows, rows.own, score, *learned)


def joint_sums(rows: JointRows, weights_SHP: Tensor) -> tuple[Tensor, Tensor]:
    """(S, R) targets, and the (S, H, R) sums of each candidate's events by H sets of weights."""
    return _Sums.apply(rows.rows, weights_SHP)


def _apart(rows: Tensor, own: int) -> tuple[Tensor, Tensor]:
    """(S, P, width) of the events, (S, width) of the candidates: views."""
    count = len(rows) // (own + 1)
    return rows[: count * own].view(count, own, rows.shape[1]), rows[count * own :]


class _Scores(torch.autograd.Function):
    r"""With the scaled query :math:`u = (u_s, u_t)` of the candidate and a key :math:`(k_s, k_t)`,

    .. math:: s = \langle u_s, k_s \rangle / \nu + \langle u_t, k_t \rangle, \qquad
        \frac{\partial s}{\partial k_s}
        = \frac{u_s}{\nu} - \frac{\langle u_s, k_s \rangle}{\nu^3} k_s

    where :math:`\nu = |k_s|` of a cosine, and 1 of a dot product, whose last term is not there.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, rows: Tensor, own: int, score: Score, *parameters: Tensor
    ) -> Tensor:
        keys_SPA, candidates_SA = _apart(rows, own)
        with torch.enable_grad():  # of the few candidates: scaling has a gradient of its own
            asked = candidates_SA.detach().requires_grad_()
            query_SA = score.query(asked)
        ctx.scaling = asked, query_SA, parameters
        ctx.own, ctx.width = own, score.normalized_width
        query_SA = query_SA.detach()
        if not ctx.width:
            ctx.save_for_backward(rows)
            return _dot(keys_SPA, query_SA)
        semantic, temporal = slice(ctx.width), slice(ctx.width, None)
        norm_SP = norms(keys_SPA[..., semantic])
        cosine_SP = _dot(keys_SPA[..., semantic], query_SA[:, semantic])
        cosine_SP = cosine_SP / norm_SP.clamp(min=NORM_EPS)
        ctx.save_for_backward(rows, norm_SP, cosine_SP)
        return cosine_SP + _dot(keys_SPA[..., temporal], query_SA[:, temporal])

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_SP: Tensor) -> tuple[Tensor | None, ...]:
        rows, *of_cosine = ctx.saved_tensors
        keys_SPA, _ = _apart(rows, ctx.own)
        asked, query_SA, parameters = ctx.scaling
        u_SA, grad_SP = query_SA.detach().to(rows.dtype), grad_SP.to(rows.dtype)
        grad = torch.empty_like(rows)
        of_keys, of_candidates = _apart(grad, ctx.own)
        if not ctx.width:
            torch.mul(grad_SP[..., None], u_SA[:, None], out=of_keys)
            grad_u = _weighted(grad_SP, keys_SPA)
        else:
            norm_SP, cosine_SP = (saved.to(rows.dtype) for saved in of_cosine)
            semantic, temporal = slice(ctx.width), slice(ctx.width, None)
            scaled_SP = grad_SP / norm_SP.clamp(min=NORM_EPS)
            turned_SP = scaled_SP * cosine_SP / norm_SP.clamp(min=NORM_EPS)
            # a key too short to be divided by its length is divided by a constant
            turned_SP = turned_SP.masked_fill(norm_SP < NORM_EPS, 0)
            torch.mul(-turned_SP[..., None], keys_SPA[..., semantic], out=of_keys[..., semantic])
            of_keys[..., semantic].addcmul_(scaled_SP[..., None], u_SA[:, None, semantic])
            torch.mul(grad_SP[..., None], u_SA[:, None, temporal], out=of_keys[..., temporal])
            grad_u = torch.cat(
                [
                    _weighted(scaled_SP, keys_SPA[..., semantic]),
                    _weighted(grad_SP, keys_SPA[..., temporal]),
                ],
                dim=1,
            )
        of_candidate_rows, *of_parameters = torch.autograd.grad(
            query_SA, [asked, *parameters], grad_u.to(query_SA.dtype), retain_graph=True
        )
        of_candidates.copy_(of_candidate_rows)
        return grad, None, None, *of_parameters


class _Sums(torch.autograd.Function):
    r""":math:`h_i = \sum_j w_{ij} r_j`, so that :math:`\partial / \partial r_j = \sum_i w_{ij} g_i`
    and :math:`\partial / \partial w_{ij} = \langle g_i, r_j \rangle`.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, weights_SHP: Tensor) -> tuple[Tensor, Tensor]:
        values_SPR, targets_SR = _apart(rows, weights_SHP.shape[2])
        ctx.save_for_backward(rows, weights_SHP)
        return targets_SR.clone(), weights_SHP @ values_SPR

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, grad_targets_SR: Tensor, grad_sums_SHR: Tensor
    ) -> tuple[Tensor, Tensor]:
        rows, weights_SHP = ctx.saved_tensors
        values_SPR, _ = _apart(rows, weights_SHP.shape[2])
        grad_sums_SHR = grad_sums_SHR.to(rows.dtype)
        grad = torch.empty_like(rows)
        of_values, of_targets = _apart(grad, weights_SHP.shape[2])
        weights_SHP1 = weights_SHP.to(rows.dtype)[..., None]
        torch.mul(weights_SHP1[:, 0], grad_sums_SHR[:, :1], out=of_values)
        for i in range(1, weights_SHP.shape[1]):
            of_values.addcmul_(weights_SHP1[:, i], grad_sums_SHR[:, i : i + 1])
        of_targets.copy_(grad_targets_SR)
        return grad, (grad_sums_SHR @ values_SPR.mT).to(weights_SHP.dtype)


def _dot(keys_SPA: Tensor, query_SA: Tensor) -> Tensor:
    """(S, P)."""
    return (query_SA[:, None] @ keys_SPA.mT).squeeze(1)


def _weighted(weights_SP: Tensor, keys_SPA: Tensor) -> Tensor:
    """(S, A) sum over the events."""
    return (weights_SP[:, None] @ keys_SPA).squeeze(1)
