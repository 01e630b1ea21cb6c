"""``head="separation"`` on the lifelong model: what any search found, the candidate and the context
cross in the separation network, against loops over fields and dimensions.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from modules.crossing.config import CrossingConfig
from modules.ranker_config import RankerConfig
from tests.batches import CONTEXT, collate, random_requests
from tests.modules.crossing import naive
from tests.modules.test_context import make_ranker

WHOLE: dict[str, Any] = {"search": "all", "auxiliary": "none"}
SEARCHES: dict[str, dict[str, Any]] = {
    "exact": {},
    "shared tables": {"sharing": "shared"},
    "cosine": {"score": "cosine"},
    "simhash": {"search": "simhash"},
    "category": {"search": "category"},
    "category_filled": {"search": "category_filled"},
    "soft": {"search": "soft"},
    "recent": {"search": "recent"},
    "clusters": {"search": "clusters"},
    "din": {"score": "mlp"},
    "all": WHOLE,
    "short window": {"short_window": 2},
    "collisions": {**WHOLE, "pooling": "collisions", "sharing": "shared"},
    "mean": {**WHOLE, "pooling": "mean", "sharing": "shared"},
    "self_attention": {**WHOLE, "pooling": "self_attention", "sharing": "shared"},
}
ONE_LAYER = CrossingConfig(layers=1)


@pytest.mark.parametrize("settings", SEARCHES.values(), ids=SEARCHES)
def test_interests_candidate_and_context_cross_in_each_dimension(settings: dict[str, Any]) -> None:
    ranker = make_ranker(head="separation", crossing=ONE_LAYER, **settings).eval()
    arguments, _ = collate(random_requests(3, 4))
    seen: dict[str, Any] = {}
    ranker.head.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(args=args, **kwargs), with_kwargs=True
    )
    logits = ranker(**arguments).logits
    network = ranker.head.layers
    for number, logit in enumerate(logits):
        # item, category and recency of the candidate, then of each interest
        vectors = [row[number, at : at + 4] for row in seen["args"] for at in (0, 4, 8)]
        assert len(vectors) == 3 * (1 + ranker.config.interests)
        fields_FD = torch.stack([*vectors, *seen["context"][number]])
        crossed = naive.separation(network.parts["interactions"], fields_FD)
        expected = crossed + seen["first_order"][number] + network.bias[0]
        torch.testing.assert_close(logit, expected, rtol=1e-4, atol=1e-5)
    assert len(fields_FD) == 3 * (1 + ranker.config.interests) + len(CONTEXT)


def test_it_is_the_crossing_head_of_kind_separation_by_another_word() -> None:
    """So that a run's config.json has one name for one model."""
    assert RankerConfig(head="separation") == RankerConfig(head="crossing")
    assert RankerConfig(head="separation").head == "crossing"
    assert RankerConfig(head="separation").crossing.kind == "separation"
    deep = CrossingConfig(form="cross", residual=True, deep=(8,))
    config = dataclasses.replace(RankerConfig(), head="separation", crossing=deep)
    assert config == RankerConfig(head="crossing", crossing=deep)


@pytest.mark.parametrize("kind", ["fm", "cross_v2", "linear"])
def test_a_network_of_another_kind_is_refused(kind: Any) -> None:
    message = f"head='separation'.*got '{kind}': take head='crossing', or crossing.kind="
    with pytest.raises(ValueError, match=message):
        RankerConfig(head="separation", crossing=CrossingConfig(kind=kind))
