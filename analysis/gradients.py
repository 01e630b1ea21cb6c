"""What attention and representation each ask of the same embedding row (DARE, sections 2.2, 5.1).

Shapes: N events, S candidates, C rows of the field's table, d width of a row; T steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from modules.bags import Ids
from modules.joint_rows import JointRows
from modules.tables import ATTENTION_ROLES, FieldConfig, Role

HISTOGRAM_BINS = 10


@dataclass(frozen=True)
class GradientStatistics:
    """Attention against representation, over T steps and the C rows of one field."""

    field: str
    steps: int
    attention_norm: list[float]
    r"""(T,) mean over all C rows of :math:`\lVert g^A_c \rVert`; a row that a step does not look
    up counts as 0 (DARE, figure 2)."""
    representation_norm: list[float]
    """(T,) likewise."""
    domination: float | None
    """Mean representation norm over mean attention norm."""
    mean_cosine: list[float | None]
    r"""(T,) mean over the rows with both gradients of :math:`\cos(g^A_c, g^R_c)`. None where no
    row has both, or where the two have different widths."""
    conflicting_steps: float | None
    """Share of steps whose mean cosine is negative (figure 3)."""
    conflicting_pairs: float | None
    """Share of (row, step) pairs whose cosine is negative."""
    conflicting_rows: float | None
    """Share of rows with a negative cosine in more than half of their steps."""
    rows: int
    """Rows that had both gradients in some step."""
    histogram: list[float]
    """Shares of these rows by the share of their steps with a negative cosine, in ten bins."""

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


class GradientRecorder:
    """Watches the first steps of a training.

    The rows of a lookup of ``tables`` are handed on as two views, one for attention and one for
    representation, so that autograd brings the gradient of each apart, also where one table serves
    both. They are summed by the id of one small field: nothing is as large as a table of items,
    and what the tables learn is not touched. With ``sharing="projected"`` the gradients are those
    of the mapped rows.

    Args:
        tables: of a ranker made with ``sums_rows=False``; sharded or not.
        fields: of the ranker, in its order.
        field: whose rows are compared.
        steps: 0 watches nothing.
    """

    def __init__(
        self, tables: nn.Module, fields: Sequence[FieldConfig], field: str, steps: int
    ) -> None:
        if steps and tables.sums_rows:
            raise ValueError(
                "Gradients of single rows are watched where tables hand rows out: "
                "LifelongRanker(sums_rows=False)."
            )
        self.field, self.steps = field, steps
        names = [f.name for f in fields]
        place = names.index(field)
        self.rows = fields[place].num_embeddings
        self._columns = [
            _columns([f.attention_dim for f in fields], place),
            _columns([f.representation_dim for f in fields], place),
        ]
        self._sums: list[Tensor | None] = [None, None]
        self._records: list[Tensor] = []
        self._by_row: Tensor | None = None
        self._device: torch.device | None = None
        self._tables = tables if steps else None
        if steps:
            tables.watch = self._split_paths

    def _split_paths(
        self, found: dict[Role, JointRows], events: Ids, candidates: Ids
    ) -> dict[Role, JointRows]:
        watched: dict[tuple[int, int], JointRows] = {}
        handed_on = {}
        for role, joint in found.items():
            if not (torch.is_grad_enabled() and joint.rows.requires_grad):
                return found
            path = role not in ATTENTION_ROLES
            # what one lookup gave for two roles of a path stays one
            if (key := (path, id(joint))) not in watched:
                parts = [events[self.field]] * (joint.events > 0)
                parts += [candidates[self.field]] * (len(joint.rows) > joint.events)
                ids = torch.cat([events[self.field][:0], *parts])
                self._device = joint.rows.device
                rows = self._watched(joint.rows, path, ids)
                watched[key] = dataclasses.replace(joint, rows=rows)
            handed_on[role] = watched[key]
        return handed_on

    def _watched(self, rows: Tensor, path: int, ids: Tensor) -> Tensor:
        """The same rows; their gradient is added to the sums of ``path``."""
        view = rows.view_as(rows)
        columns = self._columns[path]

        def add(gradient: Tensor) -> None:
            if self._sums[path] is None:
                width = columns.stop - columns.start
                self._sums[path] = gradient.new_zeros(self.rows, width, dtype=torch.float64)
            self._sums[path].index_add_(0, ids, gradient[:, columns].double())

        view.register_hook(add)
        return view

    def end_of_step(self) -> None:
        """After the backward pass of a step. Collective while there are steps to record."""
        if self._tables is None:
            return
        attention, representation = (self._of_all_ranks(path) for path in range(2))
        norm_A, norm_R = attention.norm(dim=1), representation.norm(dim=1)
        comparable = attention.shape[1] == representation.shape[1]
        both = (norm_A > 0) & (norm_R > 0) & comparable
        # without a cosine `both` is false everywhere
        inner = (attention * (representation if comparable else 0)).sum(dim=1)
        negative = both & (inner < 0)
        cosine = torch.where(both, inner / (norm_A * norm_R).clamp(min=1e-300), 0.0)
        record = [norm_A.mean(), norm_R.mean(), cosine.sum(), both.sum(), negative.sum()]
        self._records.append(torch.stack([number.double() for number in record]))
        by_row = torch.stack([negative, both]).double()
        self._by_row = by_row if self._by_row is None else self._by_row + by_row
        self._sums = [None, None]
        if len(self._records) == self.steps:
            self._stop()

    def _of_all_ranks(self, path: int) -> Tensor:
        """(C, d) gradient of the global batch's mean loss: the mean over ranks of theirs."""
        columns = self._columns[path]
        total = self._sums[path]
        if total is None:  # nothing was looked up here
            width = columns.stop - columns.start
            total = torch.zeros(self.rows, width, dtype=torch.float64, device=self._device)
        if dist.is_initialized():
            dist.all_reduce(total)
            total /= dist.get_world_size()
        return total

    def close(self) -> GradientStatistics:
        """Stops watching; what was found in the steps until now."""
        self._stop()
        records = torch.stack(self._records).cpu() if self._records else torch.zeros(0, 5)
        by_row = torch.zeros(2, self.rows) if self._by_row is None else self._by_row.cpu()
        return summarize(self.field, records, by_row)

    def _stop(self) -> None:
        if self._tables is not None:
            self._tables.watch = self._tables = None


def summarize(field: str, records: Tensor, by_row: Tensor) -> GradientStatistics:
    """What the sums say.

    Args:
        field: name.
        records: (T, 5) mean norm of attention, of representation, sum of the cosines, rows with
            both gradients, rows with a negative cosine.
        by_row: (2, C) steps with a negative cosine, steps with both gradients.
    """
    norm_A, norm_R, cosine, both, negative = records.double().unbind(1)
    mean_cosine = cosine / both  # NaN where no row has both
    known = mean_cosine[both > 0]
    seen = by_row[1] > 0
    share = by_row[0, seen] / by_row[1, seen]
    counts = torch.histc(share.double(), HISTOGRAM_BINS, min=0, max=1)
    return GradientStatistics(
        field=field,
        steps=len(records),
        attention_norm=norm_A.tolist(),
        representation_norm=norm_R.tolist(),
        domination=_ratio(norm_R.sum(), norm_A.sum()),
        mean_cosine=[
            m if b else None for m, b in zip(mean_cosine.tolist(), both.tolist(), strict=True)
        ],
        conflicting_steps=_ratio((known < 0).sum(), torch.tensor(len(known))),
        conflicting_pairs=_ratio(negative.sum(), both.sum()),
        conflicting_rows=_ratio((share > 0.5).sum(), seen.sum()),
        rows=int(seen.sum()),
        histogram=(counts / seen.sum().clamp(min=1)).tolist(),
    )


def _ratio(above: Tensor, below: Tensor) -> float | None:
    return float(above) / float(below) if below > 0 else None


def _columns(widths: list[int], place: int) -> slice:
    begin = sum(widths[:place])
    return slice(begin, begin + widths[place])
