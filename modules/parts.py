"""The parts that a configuration asks for."""

from __future__ import annotations

from torch import nn

from modules.collisions import HashCollisions
from modules.context import ContextConfig
from modules.crossing.history import HistoryEncoder
from modules.crossing.network import make_crossing
from modules.head import INIT_STD, CrossingHead, InterestHead
from modules.ranker_config import RankerConfig
from modules.score import MLPScore, Score
from modules.search_units import (
    CATEGORY,
    CategorySearch,
    ExactSearch,
    RecentSearch,
    Search,
    SimHashSearch,
    SoftSearch,
)
from modules.tables import FieldConfig, Projections


def make_score(config: RankerConfig, fields: tuple[FieldConfig, ...]) -> Score | MLPScore:
    """Of search and attention."""
    if config.score == "mlp":
        return MLPScore(fields)
    # equal in all that a filled category search finds, but for what fills it up
    unused = frozenset({CATEGORY}) if config.search == "category_filled" else frozenset()
    return Score(fields, config.score, config.temperature, unused)


def make_search(
    config: RankerConfig, fields: tuple[FieldConfig, ...], score: Score | MLPScore
) -> Search | None:
    """None where nothing is searched, or not among events.

    Raises:
        ValueError: the search needs a field that there is not.
    """
    match config.search:
        case "simhash":
            width = score.hashable_width(semantic_only=not config.hash_recency)
            bits = config.hash_bits or 2 * width
            return SimHashSearch(width, bits, semantic_only=not config.hash_recency)
        case "category" | "category_filled":
            if CATEGORY not in {f.name for f in fields}:
                raise ValueError(f"search={config.search!r} needs a field {CATEGORY!r}.")
            return CategorySearch(fill=config.search == "category_filled")
        case "soft":
            return SoftSearch(sum(f.attention_dim for f in fields))
        case "recent":
            return RecentSearch()
        case "exact":
            return ExactSearch()
        case _:
            return None


def make_collisions(config: RankerConfig, score: Score | MLPScore) -> HashCollisions | None:
    """Of ``pooling="collisions"``."""
    if config.pooling != "collisions":
        return None
    return HashCollisions(score.hashable_width(), config.hash_groups, config.hash_group_bits)


def make_encoder(config: RankerConfig, fields: tuple[FieldConfig, ...]) -> HistoryEncoder | None:
    """Of ``pooling="self_attention"``."""
    if config.pooling != "self_attention":
        return None
    return HistoryEncoder(sum(f.representation_dim for f in fields), config.encoder)


def make_head(
    config: RankerConfig, fields: tuple[FieldConfig, ...], context: ContextConfig
) -> InterestHead | CrossingHead:
    """Of the main task.

    Raises:
        ValueError: there is nothing to look at, or fields of unequal width shall cross.
    """
    if not fields and not len(context):
        raise ValueError("There is no field left to predict from.")
    if config.head == "mlp":
        return InterestHead(
            sum(f.representation_dim for f in fields),
            config.hidden,
            config.target_aware,
            config.official_init,
            interests=config.interests,
            context_dim=len(context) * context.width,
        )
    widths = {f.name: f.representation_dim for f in fields}
    if len(context):
        widths["the context's fields"] = context.width
    if len(set(widths.values())) > 1:
        raise ValueError(
            f"head='crossing' crosses fields of one width, got representation widths {widths}. "
            "Give all fields the same."
        )
    width = next(iter(widths.values()))
    count = len(fields) * (1 + config.interests) + len(context)
    return CrossingHead(make_crossing(config.crossing, count, width), width)


def make_auxiliary_head(config: RankerConfig, fields: tuple[FieldConfig, ...]) -> InterestHead:
    """Of the auxiliary task: a perceptron that sees candidate and interest alone."""
    width = sum(f.representation_dim for f in fields)
    return InterestHead(
        width, config.auxiliary_hidden, config.target_aware, config.official_init, interests=1
    )


def start_maps_small(model: nn.Module) -> None:
    """As published: N(0, 0.01²) for every linear map outside the heads."""
    for module in model.modules():
        if isinstance(module, (Projections, MLPScore, SoftSearch)):
            for name, parameter in module.named_parameters():
                if not name.endswith("bias"):
                    nn.init.normal_(parameter, std=INIT_STD)
