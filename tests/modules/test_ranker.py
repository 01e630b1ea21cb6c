"""Facts about the whole ranker that need no second computation."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from modules.bags import initialize_tables_
from modules.ranker import LifelongRanker, RankerOutput
from modules.ranker_config import RankerConfig
from modules.tables import COLLECTIONS, FieldConfig
from tests.modules.cases import (
    FIELDS,
    LENGTHS,
    TOP_K,
    Request,
    fields_for,
    make_config,
    make_ranker,
    make_requests,
    pack,
    train_step,
)

sharings = pytest.mark.parametrize("sharing", ["decoupled", "shared"])
auxiliaries = pytest.mark.parametrize("auxiliary", ["full", "sampled", "none"])


@pytest.mark.parametrize("sharing", ["decoupled", "three", "four"])
@pytest.mark.parametrize("auxiliary", ["sampled", "none"])
@pytest.mark.parametrize("short_window", [0, 3])
def test_tables_that_sum_rows_train_as_those_that_hand_them_out(
    sharing: str, auxiliary: str, short_window: int
) -> None:
    config = make_config(sharing=sharing, auxiliary=auxiliary, short_window=short_window)
    handed_out = train_step(make_ranker(config), make_requests())
    ranker = make_ranker(config, sums_rows=True)
    assert ranker.tables.sums_rows
    assert_same_training(train_step(ranker, make_requests()), handed_out)


def make_twin(ranker: LifelongRanker, **changes: Any) -> LifelongRanker:
    """Same parameters, another configuration."""
    twin = make_ranker(dataclasses.replace(ranker.config, **changes))
    # without an auxiliary, there is no auxiliary head to load
    twin.load_state_dict(ranker.state_dict(), strict=twin.config.auxiliary != "none")
    return twin


def assert_same_training(
    one: tuple[RankerOutput, Any, dict[str, Tensor]], other: tuple[RankerOutput, Any, Any]
) -> None:
    """Logits, main loss and the gradients of the parameters that ``other`` has."""
    torch.testing.assert_close(one[0].logits, other[0].logits)
    torch.testing.assert_close(one[1].main, other[1].main)
    for name, gradient in other[2].items():
        torch.testing.assert_close(one[2][name], gradient, msg=lambda text, n=name: f"{n}: {text}")


@sharings
@pytest.mark.parametrize("top_k", [1, TOP_K, 60])
@pytest.mark.parametrize("auxiliary", ["full", "sampled"])
def test_no_auxiliary_trains_as_an_auxiliary_of_weight_zero(
    sharing: str, top_k: int, auxiliary: str
) -> None:
    # lengths 0, 1, K - 1, K, K + 1 and longer for the middle K; all lengths below the last K
    ranker = make_ranker(make_config(sharing=sharing, top_k=top_k, auxiliary=auxiliary))
    requests = make_requests()
    weightless = train_step(ranker, requests, auxiliary_weight=0.0)
    assert_same_training(weightless, train_step(make_twin(ranker, auxiliary="none"), requests))


@sharings
@pytest.mark.parametrize("others", [max(LENGTHS) - TOP_K, 100])
def test_sampling_all_others_is_the_full_auxiliary(sharing: str, others: int) -> None:
    full = make_ranker(make_config(sharing=sharing, auxiliary="full"))
    sampled = make_twin(full, auxiliary="sampled", auxiliary_others=others)
    expected, actual = train_step(full, make_requests()), train_step(sampled, make_requests())
    assert_same_training(actual, expected)
    torch.testing.assert_close(actual[0].auxiliary_logits, expected[0].auxiliary_logits)
    torch.testing.assert_close(actual[1].auxiliary, expected[1].auxiliary)


def chosen_events(ranker: LifelongRanker, requests: list[Request]) -> list[list[int]]:
    """Item ids of each candidate's chosen events."""
    recency = iter(ranker(**pack(requests)).recency)
    return [
        [request.events[-rank]["item"] for rank in next(recency).tolist() if rank]
        for request in requests
        for _ in request.candidates
    ]


def test_without_auxiliary_only_chosen_events_move_the_tables() -> None:
    # every event another item: 0 .. 29 in the history, 39 the candidate
    (request,) = make_requests((30,))
    events = [event | {"item": position} for position, event in enumerate(request.events)]
    candidate = request.candidates[0] | {"item": 39}
    request = dataclasses.replace(request, events=events, candidates=[candidate] * 2, labels=[0, 1])
    ranker = make_ranker(make_config(auxiliary="none"))
    # batch statistics of two equal candidates would leave no gradient
    ranker.head.eval()
    (chosen, _) = chosen_events(ranker, [request])
    _, _, gradients = train_step(ranker, [request], l2=0.0)
    for side in ("attention", "representation"):
        gradient = gradients[f"tables.{side}.embedding_bags.{side}_item.weight"]
        assert set(gradient.any(dim=1).nonzero().flatten().tolist()) == {*chosen, 39}


@auxiliaries
def test_weights_of_chosen_events_sum_to_one(auxiliary: str) -> None:
    requests = make_requests()
    output = make_ranker(make_config(auxiliary=auxiliary))(**pack(requests))
    expected = [float(bool(r.events)) for r in requests for _ in r.candidates]
    torch.testing.assert_close(output.weights.sum(1).tolist(), expected)
    assert ((output.weights > 0) == (output.recency > 0)).all()
    assert not output.weights.requires_grad


def ranker_that_prefers(*ranks: int) -> LifelongRanker:
    """Scores events by their recency alone: these first, in this order; K is their number."""
    ranker = make_ranker(make_config(top_k=len(ranks)))
    with torch.no_grad():
        for weight in ranker.tables.attention.parameters():
            weight.zero_()
        recency = ranker.tables.attention.embedding_bags["attention_recency"].weight
        # a candidate has recency 0
        recency[0, 0] = 1.0
        recency[list(ranks), 0] = torch.arange(len(ranks), 0, -1).double()
    return ranker


@pytest.mark.parametrize("training", [True, False])
def test_recency_counts_from_the_end_of_the_own_history(training: bool) -> None:
    ranker = ranker_that_prefers(3, 7, 2).train(training)
    recency = ranker(**pack(make_requests((20, 7, 8)))).recency
    assert recency.tolist() == [[3, 7, 2]] * len(recency)


def test_recency_is_zero_where_there_are_fewer_events() -> None:
    # histories of 2, 1 and 0 events, with 1, 2 and 3 candidates
    recency = ranker_that_prefers(1, 2, 3)(**pack(make_requests((2, 1, 0)))).recency
    assert recency.tolist() == [[1, 2, 0], *[[1, 0, 0]] * 2, *[[0, 0, 0]] * 3]


@auxiliaries
def test_a_prediction_does_not_depend_on_batch_mates(auxiliary: str) -> None:
    ranker, requests = make_ranker(make_config(auxiliary=auxiliary)).eval(), make_requests()
    together = ranker(**pack(requests)).logits
    apart = torch.cat([ranker(**pack([request])).logits for request in requests])
    backwards = torch.cat(
        ranker(**pack(requests[::-1])).logits.split(
            [len(request.candidates) for request in requests[::-1]]
        )[::-1]
    )
    torch.testing.assert_close(apart, together)
    torch.testing.assert_close(backwards, together)


@pytest.mark.parametrize("pooling", ["attention", "self_attention", "collisions", "mean"])
def test_padding_to_twice_the_longest_history_changes_no_logit(pooling: str) -> None:
    """A request of 50 events makes all others as long with padding."""
    config = make_config(pooling=pooling, sharing="shared", search="all", auxiliary="none")
    ranker = make_ranker(config).eval()
    *requests, longer = make_requests((0, 5, 1, 25, 50))
    expected = ranker(**pack(requests)).logits
    found = ranker(**pack([*requests, longer])).logits[: len(expected)]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    # in single precision where parameters are of ordinary size: as a training begins
    ranker = LifelongRanker(config, fields_for("shared")).eval()
    initialize_tables_(ranker, seed=1)
    expected = ranker(**pack(requests)).logits
    found = ranker(**pack([*requests, longer])).logits[: len(expected)]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_a_prediction_does_not_depend_on_the_auxiliary() -> None:
    full, requests = make_ranker(make_config(auxiliary="full")).eval(), make_requests()
    expected = full(**pack(requests)).logits
    for auxiliary in ("sampled", "none"):
        actual = make_twin(full, auxiliary=auxiliary).eval()(**pack(requests)).logits
        assert torch.equal(actual, expected)


def sampling_ranker() -> LifelongRanker:
    """Draws others, and its candidates do not meet in batch statistics."""
    ranker = make_ranker(make_config(auxiliary="sampled"))
    ranker.head.eval()
    ranker.auxiliary_head.eval()
    return ranker


def test_draws_depend_on_the_request_and_not_on_its_batch_mates() -> None:
    ranker, requests = sampling_ranker(), make_requests()
    together = ranker(**pack(requests), seed=3).auxiliary_logits
    apart = [ranker(**pack([request]), seed=3).auxiliary_logits for request in requests]
    torch.testing.assert_close(torch.cat(apart), together)


def test_draws_differ_by_seed_request_and_candidate() -> None:
    # the same history under two numbers, with the same candidate twice
    (request,) = make_requests((40,))
    request = dataclasses.replace(request, candidates=request.candidates * 2, labels=[0, 1])
    twin = dataclasses.replace(request, number=request.number + 1)
    ranker, batch = sampling_ranker(), pack([request, twin])
    logits = torch.stack([ranker(**batch, seed=seed).auxiliary_logits for seed in (0, 1)])
    for coordinate in range(3):
        one, other = logits.view(2, 2, 2).unbind(coordinate)
        assert not torch.allclose(one, other)


@pytest.mark.parametrize("auxiliary", ["sampled", "none"])
def test_padding_is_looked_up_as_unknown_not_as_an_event(auxiliary: str) -> None:
    # an optimizer with momentum moves every row that was looked up, whatever its gradient
    ranker = make_ranker(make_config(auxiliary=auxiliary), sums_rows=True)
    looked_up = []
    for name in ranker.tables.roles:
        ranker.tables.get_submodule(name).register_forward_pre_hook(
            lambda _, arguments: looked_up.append(arguments[0])
        )
    # one event, seen by one candidate; two candidates without history
    requests = make_requests((1, 0))
    ranker(**pack(requests))
    *_, attention, representation = looked_up  # the search comes before
    candidates = sum(len(request.candidates) for request in requests)
    for field in FIELDS:
        event = requests[0].events[0][field.name]
        for ids, times in ((attention, 1), (representation, 2 if auxiliary == "sampled" else 1)):
            of_events = ids[field.name].values()[:-candidates].tolist()
            assert {*of_events} == {0, event}
            assert of_events.count(event) == times


@auxiliaries
@pytest.mark.parametrize("block_events", [1, 16])
def test_training_does_not_depend_on_the_size_of_the_blocks(
    auxiliary: str, block_events: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(auxiliary=auxiliary)
    expected = train_step(make_ranker(config), make_requests())
    monkeypatch.setattr("modules.jagged.BLOCK_EVENTS", block_events)
    assert_same_training(train_step(make_ranker(config), make_requests()), expected)


@auxiliaries
def test_mixed_precision_is_near_full_precision(auxiliary: str) -> None:
    # every event is chosen: bfloat16 scores would choose others among near ones
    ranker = make_ranker(make_config(auxiliary=auxiliary, top_k=60), torch.float32)
    expected, _, _ = train_step(ranker, make_requests())
    with torch.autocast("cpu", torch.bfloat16):
        output = ranker(**pack(make_requests()))
    # 8 bits of mantissa through three layers
    torch.testing.assert_close(output.logits.float(), expected.logits, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 0),
        ("auxiliary_others", 0),
        ("hidden", (200, 0)),
        ("auxiliary_hidden", (-1,)),
        ("temperature", 0.0),
        ("sharing", "decopled"),
        ("score", "cos"),
        ("auxiliary", "all"),
        ("search", "exakt"),
        ("pooling", "sum"),
        ("projection", "row"),
        ("short_window", -1),
        ("hash_bits", -8),
        ("hash_groups", 0),
        ("hash_group_bits", 0),
        ("hash_group_bits", 9),
    ],
)
def test_a_bad_value_stops_at_construction(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} .*{re.escape(str(value))}"):
        RankerConfig(**{name: value})


@pytest.mark.parametrize(
    ("changes", "way_out"),
    [
        ({"search": "all"}, "auxiliary='none'"),
        ({"search": "category", "auxiliary": "sampled"}, "auxiliary='full' or 'none'"),
        ({"search": "clusters", "auxiliary": "sampled"}, "auxiliary='full' or 'none'"),
        ({"search": "soft", "auxiliary": "none"}, "auxiliary='full'"),
        ({"pooling": "mean", "sharing": "shared"}, "search='all'"),
        # a decoupled SDIM would hash with tables that no gradient reaches
        ({"pooling": "collisions", "search": "all", "auxiliary": "none"}, "sharing='shared'"),
        ({"score": "mlp", "search": "simhash"}, "score='dot' or 'cosine'"),
        ({"score": "mlp", "search": "clusters"}, "score='dot' or 'cosine'"),
        ({"score": "mlp", "search": "category_filled"}, "score='dot' or 'cosine'"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(changes: dict[str, str], way_out: str) -> None:
    with pytest.raises(ValueError, match=re.escape(way_out)):
        RankerConfig(**changes)


@pytest.mark.parametrize("search", ["category", "category_filled"])
def test_a_category_search_needs_categories(search: str) -> None:
    with pytest.raises(ValueError, match="category"):
        LifelongRanker(RankerConfig(search=search), (FieldConfig(name="item", num_embeddings=4),))


@pytest.mark.parametrize("sharing", COLLECTIONS)
@pytest.mark.parametrize("search", ["exact", "simhash", "category", "recent", "clusters", "all"])
def test_every_table_of_a_searching_model_learns(search: str, sharing: str) -> None:
    auxiliary = "none" if search == "all" else "full"
    ranker = make_ranker(make_config(search=search, sharing=sharing, auxiliary=auxiliary))
    _, _, gradients = train_step(ranker, make_requests(), l2=0.0)
    for name, gradient in gradients.items():
        assert gradient.any(), name


WHOLE = {"search": "all", "auxiliary": "none", "sharing": "shared"}
EVERY_KIND = [
    *(
        {"sharing": sharing, "search": search, "auxiliary": "full"}
        for sharing in COLLECTIONS
        for search in ("exact", "simhash", "category", "soft", "recent", "clusters")
    ),
    *({"sharing": sharing, "auxiliary": "sampled", "short_window": 2} for sharing in COLLECTIONS),
    *(WHOLE | {"sharing": sharing} for sharing in COLLECTIONS),
    {"sharing": "projected", "projection": "event"},
    {"score": "mlp", "auxiliary": "sampled"},
    WHOLE | {"score": "mlp"},
    WHOLE | {"pooling": "mean"},
    WHOLE | {"pooling": "collisions", "score": "dot"},
    WHOLE | {"pooling": "mean", "short_window": 2},
]


@pytest.mark.parametrize("lengths", [LENGTHS, (0, 0, 0)], ids=["histories", "none"])
@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: "-".join(map(str, kind.values())))
def test_every_parameter_gets_a_gradient_in_every_batch(
    kind: dict[str, Any], lengths: tuple[int, ...]
) -> None:
    """A rank whose histories are empty must run every backward that the others run."""
    ranker = make_ranker(make_config(**{"score": "cosine"} | kind))
    requests = make_requests(lengths)
    output = ranker(**pack(requests))
    total = output.logits.sum()
    if output.auxiliary_logits is not None:
        total = total + output.auxiliary_logits.sum()
    total.backward()
    for name, parameter in ranker.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
