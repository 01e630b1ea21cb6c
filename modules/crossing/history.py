r"""A user's past as two more fields: self-attention over it, then the candidate's attention.

Shapes: B histories, C candidates of each, T events (padded, the newest last), D width, E heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.attention import masked_softmax


@dataclass(frozen=True, kw_only=True)
class HistoryConfig:
    """Of a :class:`HistoryEncoder`."""

    heads: int = 2
    """Heads of the self-attention; they divide the width."""
    hidden: int = 64
    """Width of the feed-forward layer."""
    places: int = 512
    """Recency ranks with a vector of their own; older events share the last."""
    causal: bool = False
    """An event sees only itself and what came before it."""

    def __post_init__(self) -> None:
        for name in ("heads", "hidden", "places"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")


class HistoryEncoder(nn.Module):
    r"""One block of masked self-attention, then target attention (SASRec,
    https://arxiv.org/abs/1808.09781, and DIN, https://arxiv.org/abs/1706.06978).

    .. math::
        U &= \mathrm{LN}(Z + \mathrm{softmax}(Q K^\top / \sqrt{D/E})\, V W_o),
            \quad Q, K, V = (Z + P) W_{q,k,v} \\
        U &\leftarrow \mathrm{LN}(U + \mathrm{FFN}(U)) \\
        z^* &= \textstyle\sum_t \mathrm{softmax}_t(\langle U_t, v \rangle / \sqrt{D})\, U_t

    P is the vector of the recency rank, 0 for the newest event. Parameters: 4 D² + 2 D hidden +
    places D; FLOPs per row: 2 T (4 D² + 2 D hidden) + 4 T² D.
    """

    def __init__(self, width: int, config: HistoryConfig) -> None:
        super().__init__()
        if width % config.heads:
            raise ValueError(
                f"heads={config.heads} do not divide the width {width}: take a divisor of {width}."
            )
        self.heads, self.causal = config.heads, config.causal
        self.place = nn.Embedding(config.places, width)
        nn.init.normal_(self.place.weight, std=width**-0.5)
        self.in_projection = nn.Linear(width, 3 * width, bias=False)
        self.out_projection = nn.Linear(width, width, bias=False)
        self.attention_norm, self.forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, config.hidden), nn.ReLU(), nn.Linear(config.hidden, width)
        )

    def forward(self, events: Tensor, valid: Tensor, targets: Tensor) -> Tensor:
        """What a history says of each of C candidates, and its mean.

        Args:
            events: (B, T, D), in order of time.
            valid: (B, T) bool: True where there is an event; padding may stand on either side.
            targets: (B, C, D).

        Returns:
            (B, C, 2, D): z* and the mean of U; zeros without history.
        """
        encoded = self.encode(events, valid)
        scores_BCT = self.target_scores(targets, encoded)
        count = valid.sum(1, keepdim=True).clamp(min=1)
        mean_BCT = (valid.to(encoded.dtype) / count)[:, None].expand_as(scores_BCT)
        weights_BCT = masked_softmax(scores_BCT, valid[:, None])
        return torch.stack([weights_BCT @ encoded, mean_BCT @ encoded], dim=2)

    def target_scores(self, targets: Tensor, encoded: Tensor) -> Tensor:
        """(B, C, D) and (B, T, D) -> (B, C, T), of which the softmax is taken."""
        return targets @ encoded.mT / encoded.shape[2] ** 0.5

    def encode(self, events: Tensor, valid: Tensor) -> Tensor:
        """(B, T, D) and (B, T) -> U (B, T, D); what stands at padding means nothing."""
        # what an absent event holds must not reach a sum, not even times zero
        events = events.masked_fill(~valid.unsqueeze(2), 0)
        q_BETa, k_BETa, v_BETa = self.project(events, valid)
        mask = self.mask(valid)
        attended = F.scaled_dot_product_attention(q_BETa, k_BETa, v_BETa, attn_mask=mask)
        attended = self.out_projection(attended.transpose(1, 2).flatten(2))
        encoded = self.attention_norm(events + attended)
        return self.forward_norm(encoded + self.feed_forward(encoded))

    def project(self, events: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) and (B, T) -> queries, keys and values of the self-attention, (B, E, T, D / E)
        each.
        """
        newer = valid.flip(1).cumsum(1).flip(1) - valid.long()
        placed = events + self.place(newer.clamp(max=self.place.num_embeddings - 1))
        projected = self.in_projection(placed).unflatten(2, (3, self.heads, -1))
        return projected.permute(2, 0, 3, 1, 4).unbind()

    def mask(self, valid: Tensor) -> Tensor:
        """(B, 1, 1 or T, T) bool: which keys a query sees. Each sees one at least, for a softmax
        over nothing is NaN in some kernels.
        """
        if not self.causal:
            return (valid | ~valid.any(1, keepdim=True))[:, None, None]
        past = torch.ones(valid.shape[1:] * 2, dtype=torch.bool, device=valid.device).tril()
        itself = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
        return (past & valid.unsqueeze(1) | itself).unsqueeze(1)
