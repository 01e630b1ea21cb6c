"""Self-attention over the fields of a candidate.

Shapes: S candidates, F fields, D width; A attention width in E heads of A / E.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class FieldAttention(nn.Module):
    r"""AutoInt (https://arxiv.org/abs/1810.11921): layers of self-attention over the fields.

    .. math::
        X' = \mathrm{ReLU}(\mathrm{softmax}(Q K^\top)\, V + X W_r), \quad Q, K, V = X W_{q,k,v},
        \qquad \mathrm{logit} = w \cdot \mathrm{flatten}(X_L)

    ``scale`` divides scores by the root of a head's width, ``layer_norm`` comes before ReLU, and
    :math:`W_r` is left out where the width stays. Parameters: 3 D A + D A in the first layer, 3 A²
    in others, F A in the head. FLOPs per candidate and layer: 2 (4 F D A + 2 F² A).
    """

    def __init__(
        self,
        fields: int,
        width: int,
        layers: int,
        attention_width: int,
        heads: int,
        *,
        scale: bool = True,
        residual: bool = True,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        options = {"scale": scale, "residual": residual, "layer_norm": layer_norm}
        widths = (width, *[attention_width] * (layers - 1))
        self.layers = nn.Sequential(
            *(_AttentionLayer(width_in, attention_width, heads, **options) for width_in in widths)
        )
        self.head = nn.Linear(fields * attention_width, 1, bias=False)

    def forward(self, fields: Tensor) -> Tensor:
        """(S, F, D) -> (S,)."""
        return self.head(self.layers(fields).flatten(1)).squeeze(1)


class _AttentionLayer(nn.Module):
    def __init__(
        self,
        width_in: int,
        width_out: int,
        heads: int,
        *,
        scale: bool,
        residual: bool,
        layer_norm: bool,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = None if scale else 1.0  # None is torch's: the root of a head's width
        self.residual = residual
        self.in_projection = nn.Linear(width_in, 3 * width_out, bias=False)
        skips_map = not residual or width_in == width_out
        self.shortcut = nn.Identity() if skips_map else nn.Linear(width_in, width_out, bias=False)
        self.norm = nn.LayerNorm(width_out) if layer_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(S, F, D) -> (S, F, A)."""
        projected = self.in_projection(x).unflatten(2, (3, self.heads, -1))
        q_SEFa, k_SEFa, v_SEFa = projected.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q_SEFa, k_SEFa, v_SEFa, scale=self.scale)
        out = attended.transpose(1, 2).flatten(2)
        if self.residual:
            out = out + self.shortcut(x)
        return self.norm(out).relu()
