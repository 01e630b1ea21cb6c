r"""How well an event fits a candidate: one score for search and for attention.

.. math:: s = \langle q_s, k_s \rangle / \sqrt{d_s} + \langle q_t, k_t \rangle / \sqrt{d_t}

with the semantic fields (item, category, side columns) and the others (recency, action) scaled
apart, as DARE's code does. ``cosine`` puts :math:`\tau \cos(q_s, k_s)` in place of the first term;
``mlp`` is DIN's small network. Shapes: n rows, A attention width; C candidates, L events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from modules.tables import FieldConfig

ScoreKind = Literal["dot", "cosine", "mlp"]

MLP_HIDDEN = 36
"""Width of DIN's network, as in DARE's code."""
PRELU_SLOPE = 0.1
NORM_EPS = 1e-12
"""Least length that a cosine divides by."""


def dot(queries: Tensor, keys: Tensor) -> Tensor:
    """(..., C, A) and (..., L, A) -> (..., C, L)."""
    return queries @ keys.mT


class Score(nn.Module):
    """Scales queries and keys so that their plain dot product is the score.

    The dot product itself is left to the caller, who knows the cheapest way to it: a matrix product
    for the candidates of a request, a weighted sum for a few winners.
    """

    def __init__(
        self,
        fields: tuple[FieldConfig, ...],
        kind: ScoreKind = "dot",
        temperature: float = 6.0,
        unused: frozenset[str] = frozenset(),
    ) -> None:
        """Semantic fields come first. ``unused`` ones do not enter the score."""
        super().__init__()
        self.kind = kind
        self.widths = [f.attention_dim for f in fields]
        self.semantic = [i for i, f in enumerate(fields) if f.semantic and f.name not in unused]
        self.temporal = [i for i, f in enumerate(fields) if not f.semantic and f.name not in unused]
        self.drops = len(self.semantic) + len(self.temporal) < len(fields)
        self.semantic_scale = _root(sum(self.widths[i] for i in self.semantic))
        self.temporal_scale = _root(sum(self.widths[i] for i in self.temporal))
        if kind == "cosine":
            self.temperature = nn.Parameter(torch.tensor([temperature]))

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Scores of what ``query`` and ``key`` return: (..., C, A), (..., L, A) -> (..., C, L)."""
        return dot(queries, keys)

    def of_fields(self, queries: Tensor, rows: list[Tensor]) -> Tensor:
        """The same score of rows that lie apart, which need not be joined for it.

        Args:
            queries: (B, C, A) of ``query``.
            rows: attention rows of the events, (B, L, width) for each field, as they are.

        Returns:
            (B, C, L).
        """
        widths = [self.widths[i] for i in (*self.semantic, *self.temporal)]
        parts = queries.split(widths, dim=-1)
        keys = [rows[i] for i in self.semantic]
        semantic = _summed(parts[: len(keys)], keys)
        if self.kind == "cosine" and keys:
            semantic = semantic / norms(*keys).clamp(min=NORM_EPS).unsqueeze(-2)
        return _summed(parts[len(keys) :], [rows[i] for i in self.temporal], semantic)

    @property
    def normalized_width(self) -> int:
        """Of the semantic columns, which a cosine normalizes; 0 of a dot product."""
        return sum(self.widths[i] for i in self.semantic) if self.kind == "cosine" else 0

    def query(self, rows: Tensor) -> Tensor:
        """(n, A) attention rows of candidates -> (n, A)."""
        semantic, temporal = self._parts(rows)
        return torch.cat([semantic * self._semantic_factor(), temporal * self.temporal_scale], -1)

    def key(self, rows: Tensor) -> Tensor:
        """(n, A) attention rows of events -> (n, A)."""
        return rows if self.kind == "dot" and not self.drops else torch.cat(self._parts(rows), -1)

    def hashable(self, rows: Tensor, *, semantic_only: bool = False) -> Tensor:
        """(n, A) rows of candidates or of events, scaled alike, so that the dot product of two is
        their score: what angles, and so sign hashes, are taken of.
        """
        semantic, temporal = self._parts(rows)
        semantic = semantic * abs(self._semantic_factor()) ** 0.5
        if semantic_only:
            return semantic
        return torch.cat([semantic, temporal * self.temporal_scale**0.5], -1)

    def hashable_width(self, *, semantic_only: bool = False) -> int:
        """Of what ``hashable`` returns."""
        used = self.semantic if semantic_only else self.semantic + self.temporal
        return sum(self.widths[i] for i in used)

    def _semantic_factor(self) -> Tensor | float:
        return self.temperature if self.kind == "cosine" else self.semantic_scale

    def _parts(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Semantic and other columns; the first normalized where the score is a cosine."""
        if self.drops:
            columns, nothing = rows.split(self.widths, dim=-1), [rows[..., :0]]
            semantic = torch.cat(nothing + [columns[i] for i in self.semantic], -1)
            temporal = torch.cat(nothing + [columns[i] for i in self.temporal], -1)
        else:
            width = sum(self.widths[i] for i in self.semantic)
            semantic, temporal = rows[..., :width], rows[..., width:]
        if self.kind == "cosine":
            semantic = F.normalize(semantic, dim=-1, eps=NORM_EPS)
        return semantic, temporal


def norms(*parts: Tensor) -> Tensor:
    """(..., width) parts of a vector -> (...) its length."""
    return sum(torch.linalg.vector_norm(part, dim=-1).square() for part in parts).sqrt()


def _summed(queries: tuple[Tensor, ...], keys: list[Tensor], total: Tensor | None = None) -> Tensor:
    """(B, C, L) dot products of all fields, added to ``total``."""
    for q, k in zip(queries, keys, strict=True):
        total = q @ k.mT if total is None else torch.baddbmm(total, q, k.mT)
    return total


def _root(width: int) -> float:
    return max(width, 1) ** -0.5


class MLPScore(nn.Module):
    r"""DIN's activation unit (https://arxiv.org/abs/1706.06978, section 4.3) as DARE's code has it:

    .. math:: s = \mathrm{MLP}([q; k; q - k; q \odot k]) / A

    The first layer is taken apart, so that the four inputs are never written side by side:
    :math:`W_1 q + W_2 k + W_3 (q - k) + W_4 (q \odot k)
    = (W_1 + W_3) q + (W_2 - W_3) k + (W_4 \operatorname{diag} q) k`.
    """

    def __init__(self, fields: tuple[FieldConfig, ...]) -> None:
        super().__init__()
        self.width = sum(f.attention_dim for f in fields)
        self.first = nn.Linear(4 * self.width, MLP_HIDDEN)
        self.activation = nn.PReLU(init=PRELU_SLOPE)
        self.second = nn.Linear(MLP_HIDDEN, 1)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(..., C, A) and (..., L, A) -> (..., C, L)."""
        of_query, of_key, of_difference, of_product = self.first.weight.split(self.width, dim=1)
        q_C1H = (queries @ (of_query + of_difference).mT + self.first.bias).unsqueeze(-2)
        k_1LH = (keys @ (of_key - of_difference).mT).unsqueeze(-3)
        # (..., C, A, H): W4 diag q of each candidate
        maps_CAH = queries.unsqueeze(-1) * of_product.mT
        hidden_CLH = keys.unsqueeze(-3) @ maps_CAH + q_C1H + k_1LH
        return self.second(self.activation(hidden_CLH)).squeeze(-1) / self.width

    def query(self, rows: Tensor) -> Tensor:
        """Rows as they are."""
        return rows

    def key(self, rows: Tensor) -> Tensor:
        """Rows as they are."""
        return rows
