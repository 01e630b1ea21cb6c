"""Embedding tables of events and candidates: which serve attention, which representation.

Shapes: N events, S candidates, A attention width, R representation width (sums over the fields).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from modules.bags import (
    Ids,
    each_alone,
    look_up,
    look_up_sums,
    make_collection,
    one_each,
    pick_rows,
)
from modules.joint_rows import JointRows, joint_sums
from modules.whole_tables import WholeKeys, WholeTables

Keys = Callable[[Tensor], Tensor]
"""(...) rows of the jagged history -> (..., A) attention rows of those events."""

Sums = Callable[[list[tuple[slice, Tensor]]], tuple[Tensor, list[Tensor]]]
"""Of some (S, K) events: which of the K, and (S, how many) weights of these, as often as wanted ->
``targets``, and for each the (S, R) weighted sum of ``values``."""


@dataclass(frozen=True, kw_only=True)
class FieldConfig:
    """One field of an event and of a candidate."""

    name: str
    num_embeddings: int
    """Rows of its tables; row 0 is "unknown"."""
    attention_dim: int = 16
    """Width of its attention rows (its share of A)."""
    representation_dim: int = 16
    """Width of its representation rows (its share of R)."""
    semantic: bool = True
    """Says what the event is about (item, category), not how it came (recency, action), for which
    a candidate has id 0. The score scales the two groups apart."""
    attention_init_std: float = 0.01
    """Standard deviation of its attention rows at the start."""
    representation_init_std: float = 0.01
    """Standard deviation of its representation rows at the start."""

    def __post_init__(self) -> None:
        if self.num_embeddings < 1:
            raise ValueError(f"Field {self.name!r}: num_embeddings must be at least 1.")
        for side in ("attention_dim", "representation_dim"):
            if getattr(self, side) < 1:
                raise ValueError(
                    f"Field {self.name!r}: {side} must be at least 1, got {getattr(self, side)}."
                )
        for side in ("attention_init_std", "representation_init_std"):
            if not 0 <= getattr(self, side) < math.inf:
                raise ValueError(
                    f"Field {self.name!r}: {side} must be 0 or more, got {getattr(self, side)}."
                )


class Rows(NamedTuple):
    """Embedding rows of N events and S candidates."""

    keys: Tensor
    """(N, A) attention rows of the events."""
    queries: Tensor
    """(S, A) attention rows of the candidates."""
    values: Tensor
    """(N, R) representation rows of the events."""
    targets: Tensor
    """(S, R) representation rows of the candidates."""


Role = Literal["keys", "queries", "values", "targets"]
Sharing = Literal["decoupled", "shared", "projected", "three", "four"]
Projection = Literal["field", "event"]

COLLECTIONS: dict[Sharing, dict[str, tuple[Role, ...]]] = {
    "decoupled": {"attention": ("keys", "queries"), "representation": ("values", "targets")},
    "shared": {"shared": ("keys", "queries", "values", "targets")},
    "projected": {"shared": ("keys", "queries", "values", "targets")},
    "three": {
        "attention_event": ("keys",),
        "attention_candidate": ("queries",),
        "representation": ("values", "targets"),
    },
    "four": {
        "attention_event": ("keys",),
        "attention_candidate": ("queries",),
        "representation_event": ("values",),
        "representation_candidate": ("targets",),
    },
}
"""Which tables serve which roles: all the difference that decoupling makes."""

ATTENTION_ROLES: tuple[Role, ...] = ("keys", "queries")
EVENT_ROLES: tuple[Role, ...] = ("keys", "values")


class EventTables(nn.Module):
    """The tables of every field, as many sets of them as ``sharing`` says.

    * decoupled: attention and representation apart, so that gradients of the two tasks never meet
      (DARE, https://arxiv.org/abs/2410.02604, section 3).
    * shared: one set serves both (TWIN, https://arxiv.org/abs/2302.02352).
    * projected: one set, seen through a linear map for each of the four roles.
    * three: attention of events, attention of candidates, representation.
    * four: a set for each role (DARE's "TWIN-4E").
    """

    def __init__(
        self,
        fields: tuple[FieldConfig, ...],
        sharing: Sharing = "decoupled",
        device: torch.device | None = None,
        projection: Projection = "field",
        sums_rows: bool = False,
    ) -> None:
        """``device`` is that of the tables; the maps of ``projected`` are made on the host. With
        ``sums_rows`` tables that represent alone do the sums of :meth:`attended` themselves.
        """
        super().__init__()
        self.roles = COLLECTIONS[sharing]
        self.sums_rows = sums_rows and not any(_serves_both(roles) for roles in self.roles.values())
        """Whether representation rows are summed where they are: no (S, K, R) tensor comes to be,
        and one row for K goes from rank to rank."""
        self.init_std: dict[str, float] = {}
        """Standard deviation of each table's rows at the start."""
        for name, roles in self.roles.items():
            tables = {}
            for f in fields:
                width, std = _side(f, roles, sharing)
                tables[f"{name}_{f.name}"] = (f.name, f.num_embeddings, width)
                self.init_std[f"{name}_{f.name}"] = std
            weighted = self.sums_rows and not _attends(roles)
            self.add_module(name, make_collection(tables, device, weighted))
        self.projections = Projections(fields, projection) if sharing == "projected" else None
        self.watch: Callable[[dict[Role, JointRows], Ids, Ids], dict[Role, JointRows]] | None = None
        """Given the rows of a lookup and the ids of events and candidates, says what to hand on in
        their stead: how gradients of single rows are seen."""
        self.whole = nn.ModuleDict()
        """Collection -> WholeTables, for those that serve attention and lie whole here."""

    def searched(self, events: Ids, candidates: Ids) -> tuple[Keys, Tensor]:
        """What a search needs, without gradient: ``keys``, and the (S, A) ``queries``.

        From tables that are whole here, the rows of an event are read when the search gets to it:
        no tensor of the length of all histories comes to be.
        """
        if not self.whole:
            looked_up, queries = self.attend(events, candidates)
            return (lambda rows: pick_rows(looked_up, rows)), queries

        of_keys, of_queries = self._whole("keys"), self._whole("queries")
        if of_keys is of_queries:
            of_keys, (events, candidates) = of_keys.at_hand(events, candidates)
            of_queries = of_keys
        else:
            of_keys, (events,) = of_keys.at_hand(events)
            of_queries, (candidates,) = of_queries.at_hand(candidates)
        keys, queries = WholeKeys(of_keys, events), of_queries(candidates)
        project = self.projections
        if project is None:
            return keys, queries
        return (lambda rows: project("keys", keys(rows))), project("queries", queries)

    def _whole(self, role: Role) -> WholeTables:
        return self.whole[next(name for name, roles in self.roles.items() if role in roles)]

    def attend(self, events: Ids, candidates: Ids) -> tuple[Tensor, Tensor]:
        """``keys, queries``: all that a search needs."""
        rows = self._rows(events, candidates, ATTENTION_ROLES)
        return rows["keys"], rows["queries"]

    def attended(self, events: Ids, candidates: Ids) -> tuple[JointRows, JointRows, Sums]:
        """Attention rows of each candidate's own (S, K) events, ``keys`` and ``queries``, and how
        representations are summed.
        """
        flat = {name: ids.flatten() for name, ids in events.items()}
        own = next(iter(events.values())).shape[1]
        wanted = ATTENTION_ROLES if self.sums_rows else Rows._fields
        rows = self._joint(flat, candidates, wanted, own)
        if self.sums_rows:
            sums = partial(self._look_up_sums, events, candidates)
        else:
            sums = partial(_sums, rows["values"], rows["targets"])
        return rows["keys"], rows["queries"], sums

    def _look_up_sums(
        self, events: Ids, candidates: Ids, parts: list[tuple[slice, Tensor]]
    ) -> tuple[Tensor, list[Tensor]]:
        of_events = [
            ({name: ids[:, part] for name, ids in events.items()}, weights)
            for part, weights in parts
        ]
        sums: list[Tensor] = []
        for name, roles in self.roles.items():
            asked = of_events if "values" in roles else []
            if "targets" in roles:
                asked = [*asked, each_alone(candidates)]
            if asked:
                sums += look_up_sums(self.get_submodule(name), asked)
        *of_parts, targets = sums  # values stand before targets in all COLLECTIONS
        return targets, of_parts

    def represent(self, candidates: Ids) -> Tensor:
        """``targets``: all that a model needs which reads no history."""
        return self._rows(_none_of(candidates), candidates, ("targets",))["targets"]

    def forward(self, events: Ids, candidates: Ids) -> Rows:
        """All four. One lookup per collection, so that each row is updated once a step."""
        return Rows(**self._rows(events, candidates, Rows._fields))

    def _rows(self, events: Ids, candidates: Ids, wanted: tuple[Role, ...]) -> dict[Role, Tensor]:
        joint = self._joint(events, candidates, wanted)
        return {role: of.parts[role not in EVENT_ROLES] for role, of in joint.items()}

    def _joint(
        self, events: Ids, candidates: Ids, wanted: tuple[Role, ...], own: int = 0
    ) -> dict[Role, JointRows]:
        """Roles that one lookup serves have the same rows. ``own``: as in :class:`JointRows`."""
        found: dict[Role, JointRows] = {}
        joined: dict[tuple[int, int], KeyedJaggedTensor] = {}
        for name, roles in self.roles.items():
            asked = [role for role in roles if role in wanted]
            if asked:
                of_events = events if {*asked} & {*EVENT_ROLES} else _none_of(events)
                of_candidates = candidates if {*asked} - {*EVENT_ROLES} else _none_of(candidates)
                counts = _count(of_events), _count(of_candidates)
                if counts not in joined:  # two collections that are asked the same share the ids
                    joined[counts] = one_each(of_events, of_candidates)
                rows = look_up(self.get_submodule(name), joined[counts])
                found |= dict.fromkeys(asked, JointRows(rows, counts[0], own))
        if self.projections is not None:
            found = {role: self._projected(role, joint) for role, joint in found.items()}
        return found if self.watch is None else self.watch(found, events, candidates)

    def _projected(self, role: Role, joint: JointRows) -> JointRows:
        """Rows of the events or of the candidates alone: no other role has the same."""
        part = role not in EVENT_ROLES
        rows = self.projections(role, joint.parts[part])
        return JointRows(rows, 0 if part else len(rows), joint.own)


class Projections(nn.Module):
    """A linear map for each role, from the shared tables' rows (DARE, section 2.3, "w/ proj.").

    ``field``: each field by a map of its own, without bias, as DARE's scripts do. ``event``: all
    fields of an event by one map, with bias. They start as the identity (cut or filled with zeros
    where widths differ), so that the model starts as the one it is compared with.
    """

    def __init__(self, fields: tuple[FieldConfig, ...], kind: Projection = "field") -> None:
        super().__init__()
        self.widths = [f.representation_dim for f in fields]
        if kind == "event":
            self.widths = [sum(self.widths)]
        for role in Rows._fields:
            out = [
                f.attention_dim if role in ATTENTION_ROLES else f.representation_dim for f in fields
            ]
            out = [sum(out)] if kind == "event" else out
            maps = [
                nn.Linear(width, width_out, bias=kind == "event")
                for width, width_out in zip(self.widths, out, strict=True)
            ]
            for linear in maps:
                nn.init.eye_(linear.weight)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
            self.add_module(role, nn.ModuleList(maps))

    def forward(self, role: str, rows: Tensor) -> Tensor:
        """(n, width of the tables) -> (n, A) or (n, R)."""
        parts = rows.split(self.widths, dim=-1)
        maps = self.get_submodule(role)
        return torch.cat([linear(part) for linear, part in zip(maps, parts, strict=True)], dim=-1)


def _attends(roles: tuple[Role, ...]) -> bool:
    return bool({*ATTENTION_ROLES} & {*roles})


def _represents(roles: tuple[Role, ...]) -> bool:
    return bool({"values", "targets"} & {*roles})


def _serves_both(roles: tuple[Role, ...]) -> bool:
    return _attends(roles) and _represents(roles)


def _side(field: FieldConfig, roles: tuple[Role, ...], sharing: Sharing) -> tuple[int, float]:
    """Width and start of a field's table that serves ``roles``."""
    if _serves_both(roles):
        equal = ["init_std"] if sharing == "projected" else ["dim", "init_std"]  # maps set widths
        for what in equal:
            attention = getattr(field, f"attention_{what}")
            representation = getattr(field, f"representation_{what}")
            if attention != representation:
                raise ValueError(
                    f"Shared tables serve both tasks, but field {field.name!r} has "
                    f"attention_{what} {attention} and representation_{what} {representation}. "
                    "Make them equal, or take sharing='decoupled'."
                )
    if _represents(roles):
        return field.representation_dim, field.representation_init_std
    return field.attention_dim, field.attention_init_std


def _none_of(ids: Ids) -> Ids:
    return {name: of_field[:0] for name, of_field in ids.items()}


def _count(ids: Ids) -> int:
    return len(next(iter(ids.values())))


def _sums(
    values: JointRows, targets: JointRows, parts: list[tuple[slice, Tensor]]
) -> tuple[Tensor, list[Tensor]]:
    """:data:`Sums` of rows that are here."""
    if values is targets:
        weights = [_spread(of_part, part, values.own) for part, of_part in parts]
        of_candidates, sums = joint_sums(values, torch.stack(weights, dim=1))
        return of_candidates, [*sums.unbind(1)]
    of_candidates = targets.parts[1]
    of_events = values.parts[0].unflatten(0, (len(of_candidates), values.own))
    sums = [(weights[:, None] @ of_events[:, part]).squeeze(1) for part, weights in parts]
    return of_candidates, sums


def _spread(weights: Tensor, part: slice, own: int) -> Tensor:
    """(S, some) weights -> (S, P), zeros elsewhere: so that one product makes all sums."""
    begin, end, _ = part.indices(own)
    return nn.functional.pad(weights, (begin, own - end))
