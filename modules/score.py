r"""How well an event fits a candidate: one score for search and for attention.

.. math:: s = \langle q_s, k_s \rangle / \sqrt{d_s} + \langle q_t, k_t \rangle / \sqrt{d_t}

with the semantic fields (item, category, side columns) and the others (recency, action) scaled
apart, as DARE's code does. ``cosine`` puts :math:`\tau \cos(q_s, k_s)` in place of the first term.
Shapes: n rows, A attention width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.tables import FieldConfig

ScoreKind = Literal["dot", "cosine"]


class Score(nn.Module):
    """Scales queries and keys so that their plain dot product is the score.

    The dot product itself is left to the caller, who knows the cheapest way to it: a matrix product
    for the candidates of a request, a weighted sum for a few winners.
    """

    def __init__(
        self, fields: tuple[FieldConfig, ...], kind: ScoreKind = "dot", temperature: float = 6.0
    ) -> None:
        super().__init__()
        self.kind = kind
        self.widths = [
            sum(f.attention_dim for f in fields if f.semantic),
            sum(f.attention_dim for f in fields if not f.semantic),
        ]
        if kind == "cosine":
            self.temperature = nn.Parameter(torch.tensor([temperature]))

    def query(self, rows: Tensor) -> Tensor:
        """(n, A) attention rows of candidates -> (n, A)."""
        semantic, temporal = rows.split(self.widths, dim=-1)
        if self.kind == "cosine":
            semantic = F.normalize(semantic, dim=-1) * self.temperature
        else:
            semantic = semantic / max(self.widths[0], 1) ** 0.5
        return torch.cat([semantic, temporal / max(self.widths[1], 1) ** 0.5], dim=-1)

    def key(self, rows: Tensor) -> Tensor:
        """(n, A) attention rows of events -> (n, A)."""
        if self.kind == "dot":
            return rows
        semantic, temporal = rows.split(self.widths, dim=-1)
        return torch.cat([F.normalize(semantic, dim=-1), temporal], dim=-1)
