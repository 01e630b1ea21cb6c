"""Context fields and the heads that see them, against loops over requests and fields."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modules.bags import initialize_tables_
from modules.context import (
    NO_CONTEXT,
    ContextConfig,
    ContextFields,
    Numbers,
)
from modules.crossing.config import CrossingConfig
from modules.crossing.history import HistoryConfig
from modules.crossing.presets import PRESETS
from modules.loss import ranking_losses, regularized_parameters
from modules.ranker import LifelongRanker
from modules.ranker_config import RankerConfig
from tests.batches import CONTEXT, bags, collate, fields, random_requests

WITHOUT_HISTORY: dict[str, Any] = {
    "sharing": "shared", "search": "all", "pooling": "none", "auxiliary": "none"
}  # fmt: skip
NAN = float("nan")


def of(name: str) -> CrossingConfig:
    return PRESETS[name]()


def make_ranker(
    context: ContextConfig = CONTEXT, *, events: bool = True, **settings: Any
) -> LifelongRanker:
    torch.manual_seed(3)
    config = RankerConfig(hidden=(5,), auxiliary_hidden=(5,), **{"top_k": 3, **settings})
    chosen = fields(representation_init_std=0.3, attention_init_std=0.3) if events else ()
    if config.pooling == "none":
        chosen = tuple(f for f in chosen if f.semantic)
    ranker = LifelongRanker(config, chosen, context=context)
    initialize_tables_(ranker, seed=1)
    for module in ranker.modules():  # a linear term of zeros would prove nothing
        if type(module).__name__ in ("FirstOrder", "Numbers"):
            for name, parameter in module.named_parameters():
                if "norm" not in name:
                    nn.init.normal_(parameter)
    return ranker


def table(ranker: LifelongRanker, name: str) -> Tensor:
    return next(w for n, w in ranker.named_parameters() if n.split(".")[-2] == name)


def numbers_by_hand(module: Numbers, x: Tensor) -> tuple[list[list[list[float]]], list[float]]:
    """Vectors and linear term, number by number."""
    logs = [[0.0 if math.isnan(v) else math.copysign(math.log1p(abs(v)), v) for v in row]
            for row in x.tolist()]  # fmt: skip
    vectors, weights = [], []
    for r, row in enumerate(x.tolist()):
        of_row, total = [], 0.0
        for n, value in enumerate(row):
            column = [log[n] for log in logs]
            mean = sum(column) / len(column)
            variance = sum((v - mean) ** 2 for v in column) / len(column)
            z = (logs[r][n] - mean) / math.sqrt(variance + module.norm.eps)
            missing = math.isnan(value)
            of_row.append(
                module.missing[n].tolist()
                if missing
                else [z * v for v in module.vectors[n].tolist()]
            )
            total += module.missing_weights[n].item() if missing else z * module.weights[n].item()
        vectors.append(of_row)
        weights.append(total)
    return vectors, weights


def test_numbers_are_those_of_a_loop() -> None:
    torch.manual_seed(0)
    module = Numbers(3, 4, vectors=True, first_order=True)
    nn.init.normal_(module.weights)
    nn.init.normal_(module.missing_weights)
    x = torch.tensor([[1.0, -20.0, NAN], [NAN, 0.0, 3e9], [7.5, NAN, -1.0], [0.0, 2.0, 5.0]])
    vectors, weights = module(x)
    expected_vectors, expected_weights = numbers_by_hand(module, x)
    torch.testing.assert_close(vectors, torch.tensor(expected_vectors))
    torch.testing.assert_close(weights, torch.tensor(expected_weights))


def test_a_missing_number_passes_no_gradient_to_the_vector_of_known_ones() -> None:
    module = Numbers(1, 2, vectors=True, first_order=True)
    vectors, weights = module(torch.full((3, 1), NAN))
    (vectors.sum() + weights.sum()).backward()
    assert not module.vectors.grad.any() and not module.weights.grad.any()
    assert module.missing.grad.tolist() == [[3.0, 3.0]]
    assert module.missing_weights.grad.tolist() == [3.0]


def test_of_the_batch_s_numbers_only_its_own_are_read() -> None:
    chosen = ContextConfig(numbers=("b", "d"), number_columns=(1, 3), width=4)
    alone = ContextConfig(numbers=("b", "d"), width=4)
    torch.manual_seed(0)
    fields_of_some, fields_of_all = ContextFields(chosen), ContextFields(alone)
    fields_of_all.load_state_dict(fields_of_some.state_dict())
    nothing, numbers = (
        bags({"user": torch.zeros(5).long()}, torch.ones(5).long()),
        torch.randn(5, 4),
    )
    found = fields_of_some(nothing, numbers)
    expected = fields_of_all(nothing, numbers[:, [1, 3]])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_context_fields_are_rows_of_their_tables_then_numbers() -> None:
    torch.manual_seed(0)
    module = ContextFields(CONTEXT)
    initialize_tables_(module, seed=2)
    nn.init.normal_(table(module, "linear_context_store"))
    store, hour = torch.tensor([5, 0, 2]), torch.tensor([1, 8, 8])
    numbers = torch.tensor([[1.0, NAN], [4.0, 2.0], [NAN, 3.0]])
    context = bags(
        {"user": torch.tensor([9, 9, 9]), "hour": hour, "store": store}, torch.ones(3).long()
    )
    rows, first_order = module(context, numbers)
    vectors, weights = module.numbers(numbers)
    assert rows.shape == (3, len(CONTEXT), CONTEXT.width)
    torch.testing.assert_close(rows[:, 0], table(module, "context_store")[store])
    torch.testing.assert_close(rows[:, 1], table(module, "context_hour")[hour])
    torch.testing.assert_close(rows[:, 2:], vectors)
    linear = table(module, "linear_context_store")[store].squeeze(1)
    torch.testing.assert_close(first_order, linear + weights)


@pytest.mark.parametrize("head", ["mlp", "crossing"])
def test_the_head_sees_candidate_interest_and_context(head: str) -> None:
    """The ranker's logits are those of its head on rows put together by hand."""
    settings = {"head": "crossing", "crossing": of("secn_b_deep")} if head == "crossing" else {}
    ranker = make_ranker(auxiliary="none", **settings).eval()
    arguments, _ = collate(random_requests(4, 6))
    logits = ranker(**arguments).logits
    seen: dict[str, Any] = {}
    ranker.head.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(args=args, kwargs=kwargs), with_kwargs=True
    )
    torch.testing.assert_close(ranker(**arguments).logits, logits)
    targets, interest = seen["args"]
    item, category = (arguments["candidates"][n].values() for n in ("item", "category"))
    torch.testing.assert_close(targets[:, :4], table(ranker, "representation_item")[item])
    request_of = arguments["request_of"]
    rows, first_order = ranker.context(arguments["context"], arguments["numbers"])
    torch.testing.assert_close(seen["kwargs"]["context"], rows[request_of])
    if head == "mlp":
        product = targets * interest
        features = torch.cat([targets, interest, product, rows[request_of].flatten(1)], 1)
        click, no_click = ranker.head.layers(features).unbind(1)
        torch.testing.assert_close(logits, click - no_click)
        return
    linear = first_order[request_of]
    for name, ids in (("item", item), ("category", category)):
        linear = linear + table(ranker, f"linear_candidate_{name}")[ids].squeeze(1)
    crossed = torch.cat([targets.view(-1, 3, 4), interest.view(-1, 3, 4), rows[request_of]], 1)
    torch.testing.assert_close(logits, ranker.head.layers(crossed, linear))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_network_trains_on_context_alone(preset: str) -> None:
    """Every parameter of a network, and no other, is there and gets its gradient."""
    wide = ContextConfig(fields=CONTEXT.fields, numbers=CONTEXT.numbers, width=8, init_std=0.3)
    ranker = make_ranker(
        wide, events=False, head="crossing", crossing=of(preset), **WITHOUT_HISTORY
    )
    arguments, labels = collate(random_requests(4, 12))
    losses = ranking_losses(
        ranker(**arguments), labels, regularized_parameters(ranker), num_candidates=len(labels)
    )
    losses.total().backward()
    for name, parameter in ranker.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name


def test_a_model_that_reads_no_history_does_not_depend_on_it() -> None:
    ranker = make_ranker(head="crossing", crossing=of("secn_a"), **WITHOUT_HISTORY).eval()
    requests = random_requests(4, 6)
    logits = ranker(**collate(requests)[0]).logits
    assert not ranker.reads_history
    for request in requests:
        request["history"] = {name: ids[:1] for name, ids in request["history"].items()}
    assert torch.equal(ranker(**collate(requests)[0]).logits, logits)


def test_self_attention_gives_the_head_what_its_encoder_says_of_each_history() -> None:
    settings = {**WITHOUT_HISTORY, "pooling": "self_attention"}
    ranker = make_ranker(NO_CONTEXT, **settings).eval()
    requests = random_requests(4, 6)
    arguments, _ = collate(requests)
    seen: list[tuple[Tensor, ...]] = []
    ranker.head.register_forward_pre_hook(lambda module, args: seen.append(args))
    ranker(**arguments)
    targets, attended, mean = seen[0]
    history, place = arguments["history"], 0
    fields_of_events = [table(ranker, f"shared_{f.name}")[history[f.name].values()]
                        for f in ranker.fields]  # fmt: skip
    rows = torch.cat(fields_of_events, 1).split(arguments["history_lengths"].tolist())
    for events, request in zip(rows, requests, strict=True):
        count = len(request["labels"])
        mask = torch.ones(1, len(events), dtype=torch.bool)
        mine = slice(place, place + count)
        expected = ranker.encoder(events[None], mask, targets[mine][None])[0]
        torch.testing.assert_close(attended[mine], expected[:, 0])
        torch.testing.assert_close(mean[mine], expected[:, 1])
        place += count


@pytest.mark.parametrize("auxiliary", ["full", "sampled", "none"])
def test_context_leaves_the_auxiliary_task_alone(auxiliary: str) -> None:
    arguments, _ = collate(random_requests(4, 6))
    outputs = [
        make_ranker(context, auxiliary=auxiliary)(**arguments) for context in (NO_CONTEXT, CONTEXT)
    ]
    assert not torch.equal(outputs[0].logits, outputs[1].logits)
    assert torch.equal(outputs[0].weights, outputs[1].weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "mlp", "crossing": CrossingConfig(kind="fm")}, "set head='crossing'"),
        ({"pooling": "none", "search": "exact", "sharing": "shared"}, "goes with search='all'"),
        ({**WITHOUT_HISTORY, "short_window": 3}, "short_window=0, not 3"),
        ({"encoder": HistoryConfig(causal=True)}, "of pooling='self_attention'"),
        ({"head": "tree"}, "head is one of mlp, crossing, separation; got 'tree'"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RankerConfig(**settings)


def test_crossing_wants_one_width_and_says_which_there_are() -> None:
    wider = ContextConfig(fields=CONTEXT.fields, width=6)
    with pytest.raises(ValueError, match=r"'item': 4.*the context's fields\W+6"):
        make_ranker(wider, head="crossing", auxiliary="none")


def test_a_model_without_any_field_is_refused() -> None:
    with pytest.raises(ValueError, match="no field left"):
        make_ranker(NO_CONTEXT, events=False, head="crossing", **WITHOUT_HISTORY)
