"""What a :class:`modules.ranker.LifelongRanker` is made of, and which parts go together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from modules.crossing.config import CrossingConfig
from modules.crossing.history import HistoryConfig
from modules.score import ScoreKind
from modules.tables import Projection, Sharing

SearchKind = Literal[
    "exact", "simhash", "category", "category_filled", "soft", "recent", "clusters", "all"
]
Pooling = Literal["attention", "self_attention", "collisions", "mean", "none"]
Head = Literal["mlp", "crossing", "separation"]
Auxiliary = Literal["full", "sampled", "none"]


MAX_GROUP_BITS = 8


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """Defaults are DARE's."""

    sharing: Sharing = "decoupled"
    """decoupled: attention and representation have tables of their own (DARE); shared: one table
    serves both (TWIN); projected: one table, seen through linear maps; three, four: events and
    candidates have tables of their own too, in attention alone or in both tasks."""
    projection: Projection = "field"
    """projected: one map for each field, without bias, or one for the whole event, with bias."""
    search: SearchKind = "exact"
    """How the K events are found. exact: by the score; simhash: by random sign bits (ETA);
    category: the last of the candidate's category (SIM hard), category_filled: and others where
    there are fewer (TWIN hard); soft: by a product of its own (SIM soft); recent: the last;
    clusters: exact, among clusters of events (TWIN-V2); all: no search, every event counts."""
    pooling: Pooling = "attention"
    """How events become one interest. attention: softmax of the score; with search all also
    self_attention: events attend to each other, then the candidate to them, and to their mean;
    collisions: by agreeing hashes (SDIM); mean: each event alike; none: the history is not read."""
    encoder: HistoryConfig = field(default_factory=HistoryConfig)
    """Of pooling self_attention, whose cost grows with the square of the history's length."""
    short_window: int = 0
    """Last events that a second attention sees, whose interest goes to the head too; 0: none."""
    score: ScoreKind = "dot"
    """Of the semantic fields: dot product by the root of their width, or cosine times a learned
    temperature. mlp: a small network of candidate and event (DIN)."""
    temperature: float = 6.0
    """Where the cosine's temperature starts."""
    top_k: int = 20
    """Events that the search hands to attention for each candidate (K)."""
    auxiliary: Auxiliary = "full"
    """The second loss, through attention over more than the K chosen events. full: over the whole
    history, as DARE; sampled: over the chosen and a few others; none: no second loss."""
    auxiliary_others: int = 5
    """sampled: others drawn for each candidate (M). Five do what the whole history does
    (docs/findings.md)."""
    hash_bits: int = 0
    """simhash: bits of a code (m); 0: twice the width that is hashed."""
    hash_recency: bool = True
    """simhash: False hashes the semantic fields alone, so that an item has one code."""
    hash_groups: int = 16
    """collisions: groups of hashes (G)."""
    hash_group_bits: int = 3
    """collisions: hashes of a group, all of which have to agree; at most 8."""
    target_aware: bool = True
    """Feeds the head the product of candidate and interest too."""
    head: Head = "mlp"
    """mlp: a perceptron on candidate, interests, their products and the context (DARE); crossing: a
    network whose fields they all are; separation: crossing of kind separation (SECN), and written
    down as that, so that one head has one name."""
    crossing: CrossingConfig = field(default_factory=CrossingConfig)
    """Of heads crossing and separation."""
    hidden: tuple[int, ...] = (200, 80)
    """Widths of the hidden layers of head mlp."""
    auxiliary_hidden: tuple[int, ...] = (200,)
    """Widths of the auxiliary head's hidden layers."""
    official_init: bool = False
    """Starts batch-norm gains and PReLU slopes from N(0, 0.01²) too, as the published code does."""
    small_maps: bool = False
    """Starts projections, SIM soft's maps and DIN's network from N(0, 0.01²), as the published code
    does; else maps start as the identity."""

    def __post_init__(self) -> None:
        for name in ("top_k", "auxiliary_others", "hash_groups", "hash_group_bits"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.hash_group_bits > MAX_GROUP_BITS:
            raise ValueError(
                f"hash_group_bits must be at most {MAX_GROUP_BITS}, got {self.hash_group_bits}: "
                "each doubles the memory."
            )
        for name in ("short_window", "hash_bits"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}.")
        for name in ("hidden", "auxiliary_hidden"):
            if min(getattr(self, name), default=1) < 1:
                raise ValueError(f"{name} widths must be positive, got {getattr(self, name)}.")
        for name, kind in (
            ("sharing", Sharing), ("projection", Projection), ("search", SearchKind),
            ("pooling", Pooling), ("score", ScoreKind), ("auxiliary", Auxiliary), ("head", Head),
        ):  # fmt: skip
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name} is one of {', '.join(get_args(kind))}; got {getattr(self, name)!r}."
                )
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive, got {self.temperature}.")
        if self.head == "separation":
            self._cross_by_separation()
        self._refuse_what_does_not_go_together()

    def _cross_by_separation(self) -> None:
        if self.crossing.kind != "separation":
            raise ValueError(
                f"head='separation' crosses by crossing.kind='separation', got "
                f"{self.crossing.kind!r}: take head='crossing', or crossing.kind='separation'."
            )
        object.__setattr__(self, "head", "crossing")

    def _refuse_what_does_not_go_together(self) -> None:
        if self.pooling != "attention":
            if self.search != "all":
                raise ValueError(
                    f"pooling={self.pooling!r} is of the whole history: it goes with search='all', "
                    f"not {self.search!r}."
                )
            if self.sharing != "shared":
                raise ValueError(
                    f"pooling={self.pooling!r} passes no gradient to attention tables, which would "
                    f"keep their random start: it goes with sharing='shared', not {self.sharing!r}."
                )
            if self.pooling == "none" and self.short_window:
                raise ValueError(
                    f"pooling='none' reads no history: it goes with short_window=0, not "
                    f"{self.short_window}."
                )
        if self.pooling != "self_attention" and self.encoder != HistoryConfig():
            raise ValueError(
                f"encoder is of pooling='self_attention', and pooling is {self.pooling!r}: leave "
                "encoder as it is."
            )
        if self.head == "mlp" and self.crossing != CrossingConfig():
            raise ValueError(
                "crossing is of the heads 'crossing' and 'separation', and head is 'mlp': set "
                "head='crossing', or leave crossing as it is."
            )
        allowed = _AUXILIARIES.get(self.search, get_args(Auxiliary))
        if self.auxiliary not in allowed:
            raise ValueError(
                f"search={self.search!r} goes with auxiliary={' or '.join(map(repr, allowed))}, "
                f"not {self.auxiliary!r}: {_REASONS[self.search]}."
            )
        if self.score == "mlp" and (
            self.search in ("simhash", "clusters", "category_filled")
            or self.pooling == "collisions"
        ):
            raise ValueError(
                "score='mlp' is no product of two vectors, which hashes and clusters need, and "
                "cannot leave the category out, as category_filled does: take score='dot' or "
                "'cosine'."
            )

    @property
    def interests(self) -> int:
        """Vectors that the head gets beside the candidate's."""
        of_pooling = {"none": 0, "self_attention": 2}.get(self.pooling, 1)
        return of_pooling + bool(self.short_window)

    @property
    def searches_first(self) -> bool:
        """Whether only what a search found, and some others, is looked up with gradient."""
        if self.pooling == "none" or self.search in ("all", "clusters"):
            return False
        # the auxiliary of a search by category, too, sees what it found alone
        return self.auxiliary != "full" or self.search in ("category", "category_filled")

    @property
    def attended(self) -> int:
        """Events that each candidate looks up after the search, in training."""
        others = self.auxiliary_others if self.auxiliary == "sampled" else 0
        return self.top_k + others + self.short_window


_AUXILIARIES: dict[str, tuple[Auxiliary, ...]] = {
    "category": ("full", "none"),
    "category_filled": ("full", "none"),
    "soft": ("full",),
    "clusters": ("full", "none"),
    "all": ("none",),
}
_REASONS = {
    "category": "its auxiliary, too, sees the found events alone",
    "category_filled": "its auxiliary, too, sees the found events alone",
    "soft": "the search learns through the auxiliary task over the whole history",
    "clusters": "every event is looked up anyway",
    "all": "attention sees the whole history already",
}
