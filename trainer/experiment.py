"""Everything a run depends on beside the data: one frozen dataclass."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from data.collate import GAP, GAP_BUCKETS, RECENCY
from modules.context import ContextConfig
from modules.ranker_config import RankerConfig
from modules.tables import FieldConfig
from sharding.apply import TableOptimizer
from sharding.plan import ShardingConfig
from sharding.search_tables import REPLICA_DTYPES

TEMPORAL_FIELDS = ("action", RECENCY, GAP)
"""How an event came; a candidate has id 0 there. All other fields are semantic."""


@dataclass(frozen=True, kw_only=True)
class FieldWidths:
    """Widths and starts of the tables of every field of an event."""

    attention_dim: int = 16
    """Attention width of a field."""
    representation_dim: int = 16
    """Representation width of a field."""
    attention_dims: dict[str, int] = field(default_factory=dict)
    """Attention width of single fields, e.g. item 8 category 4."""
    representation_dims: dict[str, int] = field(default_factory=dict)
    """Representation width of single fields."""
    attention_init_stds: dict[str, float] = field(default_factory=dict)
    """Start of the attention rows of single fields, e.g. item 1 category 0.3."""
    without: tuple[str, ...] = ()
    """Fields that the model does not see, e.g. recency, or a field of the context."""
    user: bool = False
    """Adds the user's id to the fields of the context."""
    attention_init_std: float = 0.01
    """Start of the attention rows of the semantic fields. With a dot product, about 1 is the
    identity prior: the first search already finds the events of the same item and category; with a
    cosine any start does that."""
    representation_init_std: float = 0.01
    """Start of the representation rows, and of the attention rows of the other fields."""

    def __post_init__(self) -> None:
        for name, std in (
            ("attention_init_std", self.attention_init_std),
            ("representation_init_std", self.representation_init_std),
            *(
                (f"attention_init_stds of {k!r}", std)
                for k, std in self.attention_init_stds.items()
            ),
        ):
            if not 0 <= std < math.inf:
                raise ValueError(f"{name} must be a number from 0 up, got {std}.")
        for dim in (
            self.attention_dim, self.representation_dim,
            *self.attention_dims.values(), *self.representation_dims.values(),
        ):  # fmt: skip
            if not 1 <= dim < 2**31:
                raise ValueError(f"Widths must be positive and below 2**31, got {dim}.")

    def fields(
        self,
        vocabularies: list[tuple[str, int]],
        recencies: int,
        *,
        time_gap: bool = False,
        others: Iterable[str] = (),
    ) -> tuple[FieldConfig, ...]:
        """Fields of the events and candidates of a model.

        Args:
            vocabularies: (name, num_embeddings) of the store's fields.
            recencies: longest history that is kept.
            time_gap: whether there is the field gap.
            others: fields of the context, which may be left out too.

        Raises:
            ValueError: a width is set for a field, or a field is left out, that the store lacks.
        """
        sizes = dict(vocabularies) | {RECENCY: recencies + 1}
        if time_gap:
            sizes[GAP] = GAP_BUCKETS
        for option in ("attention_dims", "representation_dims", "attention_init_stds"):
            _check_known(option, getattr(self, option), sizes)
        _check_known("without", self.without, [*sizes, *others])
        return tuple(
            FieldConfig(
                name=name,
                num_embeddings=size,
                attention_dim=self.attention_dims.get(name, self.attention_dim),
                representation_dim=self.representation_dims.get(name, self.representation_dim),
                semantic=name not in TEMPORAL_FIELDS,
                attention_init_std=self.attention_init_stds.get(
                    name,
                    self.representation_init_std
                    if name in TEMPORAL_FIELDS
                    else self.attention_init_std,
                ),
                representation_init_std=self.representation_init_std,
            )
            for name, size in sizes.items()
            if name not in self.without
        )

    def context(
        self, vocabularies: list[tuple[str, int]], numbers: list[str], users: int
    ) -> ContextConfig:
        """Fields of the requests of a model, as wide as representations are.

        Args:
            vocabularies: (name, num_embeddings) of the store's context columns.
            numbers: names of its numeric ones.
            users: of the store.
        """
        fields = [("user", users)] if self.user else []
        columns = tuple(place for place, name in enumerate(numbers) if name not in self.without)
        return ContextConfig(
            fields=tuple(f for f in (*fields, *vocabularies) if f[0] not in self.without),
            numbers=tuple(numbers[place] for place in columns),
            number_columns=columns if len(columns) < len(numbers) else (),
            width=self.representation_dim,
            init_std=self.representation_init_std,
        )


def _check_known(option: str, given: Iterable[str], known: Iterable[str]) -> None:
    if unknown := {*given} - {*known}:
        raise ValueError(f"{option} names {sorted(unknown)}, but the fields are {list(known)}.")


def _refuse_huge(config: Any) -> None:
    """Raises ValueError for a whole number of 2**31 or more, which no count or width is; seeds are
    looked at elsewhere.
    """
    for place in dataclasses.fields(config):
        value = getattr(config, place.name)
        if dataclasses.is_dataclass(value):
            _refuse_huge(value)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and number >= 2**31 and place.name != "seed":
                raise ValueError(f"{place.name} must be below 2**31, got {number}.")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What to train, on how much history, and how. Each field is a flag of ``twofold train``."""

    model: RankerConfig = field(default_factory=RankerConfig)
    """The two-stage ranker: search, attention, heads."""
    fields: FieldWidths = field(default_factory=FieldWidths)
    """Widths and starts of the tables of every field of an event."""
    tables: TableOptimizer = field(default_factory=TableOptimizer)
    """The tables' optimizer, fused into the backward pass."""
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    """What the sharding planner may choose from."""
    replica_steps: int = 0
    """Steps between two renewals of a copy of the attention tables on every rank, in which searches
    look up the history; nothing but what they find crosses the network then. 0: they read the
    tables themselves. Evaluation begins with a new copy."""
    replica_dtype: Literal["float32", "bfloat16", "int8"] = "bfloat16"
    """Of that copy. int8: a byte a number, and a scale and least value a row, 8 bytes together; of
    rows up to 8 wide, where that saves nothing, bfloat16."""
    history_length: int = 800
    """Most recent events of each history that are kept."""
    time_gap: bool = False
    """Adds the field gap: the time between an event and the request, two buckets a doubling."""
    requests_per_batch: int = 340
    """Requests of a global batch, all ranks together."""
    epochs: int = 1
    """Passes over the training requests."""
    dense_learning_rate: float = 1e-3
    """Learning rate of Adam, for everything that is not a table."""
    auxiliary_weight: float = 1.0
    """Weight of the auxiliary loss."""
    l2: float = 1e-6
    """Weight of the sum of squares of the heads' weights."""
    seed: int = 1
    """Seed of all parameters' start, the order of requests and the auxiliary's draws."""
    evaluate_every: int = 0
    """Steps between two evaluations on the validation split; 0: by evaluations_per_epoch."""
    evaluations_per_epoch: int = 4
    """Evaluations in an epoch, where evaluate_every does not say."""
    patience: int = 4
    """Evaluations without a better validation AUC after which training stops."""
    plateau_patience: int = 0
    """Evaluations without a better validation AUC, since the best one or the last reduction, after
    which all learning rates are reduced; 0: never. The weights go on from where they are. A
    reduction does not reset patience: give patience more than plateau_patience, or training stops
    before a reduced rate is tried."""
    plateau_factor: float = 0.1
    """What a reduction multiplies the learning rates by, of tables and of all else."""
    plateau_floor: float = 1e-3
    """Share of the first learning rates below which no reduction goes."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    bootstrap: int = 200
    """Resamples behind the interval of the test AUC."""
    record_gradients: int = 0
    """First steps in which the gradients of attention and of representation are compared, by
    category, for twofold analyze."""

    def __post_init__(self) -> None:
        for name in (
            "history_length", "requests_per_batch", "epochs", "evaluations_per_epoch", "patience",
            "log_every", "bootstrap",
        ):  # fmt: skip
            if not 1 <= getattr(self, name) < 2**31:
                raise ValueError(
                    f"{name} must be positive and below 2**31, got {getattr(self, name)}."
                )
        if not 0 < self.dense_learning_rate < math.inf:
            raise ValueError(
                f"dense_learning_rate must be positive, got {self.dense_learning_rate}."
            )
        for name in (
            "auxiliary_weight", "l2", "evaluate_every", "seed", "record_gradients", "replica_steps",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number from 0 up, got {getattr(self, name)}.")
        _refuse_huge(self)
        self._check_plateau()
        self._check_replica()
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2**63, got {self.seed}.")

    def _check_replica(self) -> None:
        if self.replica_dtype not in REPLICA_DTYPES:
            raise ValueError(
                f"replica_dtype must be one of {', '.join(REPLICA_DTYPES)}, got "
                f"{self.replica_dtype!r}."
            )
        model = self.model
        reads = model.pooling == "attention" and model.search in ("exact", "simhash", "soft")
        if self.replica_steps and not (reads and model.auxiliary != "full"):
            raise ValueError(
                "replica_steps is of models that search by attention rows without gradient: search "
                "exact, simhash or soft, auxiliary none or sampled. Nothing would read the copy of "
                f"search {model.search}, pooling {model.pooling}, auxiliary {model.auxiliary}."
            )

    def _check_plateau(self) -> None:
        for name in ("plateau_factor", "plateau_floor"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must lie between 0 and 1, both excluded, got {getattr(self, name)}."
                )
        if not 0 <= self.plateau_patience < self.patience:
            raise ValueError(
                f"plateau_patience must be from 0 up and below patience, got "
                f"{self.plateau_patience} and {self.patience}: training would stop before its "
                "first reduced learning rate. Give a larger patience, or 0 for no reductions."
            )

    def changed(self, **changes: object) -> Experiment:
        """A copy with other values."""
        return dataclasses.replace(self, **changes)
