"""Tables that lie whole in the memory of this process, for searches: rows without gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modules.bags import Ids, pick_rows


class WholeTables(nn.Module):
    """Rows of tables that lie whole in the memory of this process, without gradient.

    As bags of one, whose kernels fetch rows ahead: from tables larger than the cache they come
    faster than by ``index_select``, and 8-bit rows faster still (docs/performance.md).
    """

    def __init__(self, tables: dict[str, list[Tensor]]) -> None:
        """Field -> the (num_embeddings, width) parts of its table, side by side. They are neither
        parameters nor buffers of this module: another module owns them, or they are a copy. uint8
        stands for FBGEMM's 8-bit rows, whose last 8 bytes are their scale and least value.
        """
        super().__init__()
        self.tables = tables
        self.rows_read = dict.fromkeys(tables, 0)
        """Of each field's table, until now."""

    def at_hand(self, *asked: Ids) -> tuple[WholeTables, list[Ids]]:
        """Where to read the rows of these ids, and by which ids there."""
        return self, [*asked]

    def count(self, ids: Ids) -> None:
        """Adds to ``rows_read``."""
        for name in self.tables:
            self.rows_read[name] += ids[name].numel()

    @torch.no_grad()
    def forward(self, ids: Ids) -> Tensor:
        """(...) ids of each field -> (..., A) float32, fields side by side."""
        return torch.cat(self.by_field(ids), dim=-1)

    @torch.no_grad()
    def by_field(self, ids: Ids) -> list[Tensor]:
        """(...) ids of each field -> its (..., width) float32 rows: joining them would cost as much
        as reading them.
        """
        self.count(ids)
        return [self._read_all(parts, ids[name]) for name, parts in self.tables.items()]

    def _read_all(self, parts: list[Tensor], ids: Tensor) -> Tensor:
        rows = [self._read(part, ids) for part in parts]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=-1)

    @staticmethod
    def _read(table: Tensor, ids: Tensor) -> Tensor:
        bags = ids.flatten()[:, None]
        if table.dtype == torch.uint8:
            if not len(bags):  # its CUDA kernel launches nothing for nothing, which is an error
                return torch.zeros(*ids.shape, table.shape[1] - 8, device=ids.device)
            rows = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(table, bags)
        elif table.is_contiguous():
            rows = nn.functional.embedding_bag(bags, table, mode="sum")
        else:  # embedding_bag would begin by copying all of it
            rows = table.index_select(0, ids.flatten())
        return rows.float().unflatten(0, ids.shape)


class WholeKeys:
    """:data:`modules.tables.Keys` from whole tables: a search may ask for rows, or read the tables
    itself.
    """

    def __init__(self, whole: WholeTables, events: Ids) -> None:
        self.tables, self.events = whole.tables, events
        self._whole = whole

    def count_all(self) -> None:
        """For who reads all events from the tables themselves."""
        self._whole.count(self.events)

    def __call__(self, rows: Tensor) -> Tensor:
        """See :data:`modules.tables.Keys`."""
        return self._whole(self._ids(rows))

    def by_field(self, rows: Tensor) -> list[Tensor]:
        """The same, each field's apart."""
        return self._whole.by_field(self._ids(rows))

    def _ids(self, rows: Tensor) -> Ids:
        return {name: pick_rows(ids, rows) for name, ids in self.events.items()}
