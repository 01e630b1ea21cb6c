"""The parts that a configuration asks for."""

from __future__ import annotations

from torch import nn

from modules.collisions import HashCollisions
from modules.head import INIT_STD
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


def start_maps_small(model: nn.Module) -> None:
    """As published: N(0, 0.01²) for every linear map outside the heads."""
    for module in model.modules():
        if isinstance(module, (Projections, MLPScore, SoftSearch)):
            for name, parameter in module.named_parameters():
                if not name.endswith("bias"):
                    nn.init.normal_(parameter, std=INIT_STD)
