"""The encoder of a history: padding, order, causality, and the whole against loops."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from modules.crossing import HistoryConfig, HistoryEncoder
from tests.modules.crossing import naive

WIDTH, CANDIDATES = 4, 2


def make(**settings: object) -> HistoryEncoder:
    return HistoryEncoder(WIDTH, HistoryConfig(**{"hidden": 5, "places": 8} | settings))


def some_history(lengths: tuple[int, ...] = (3, 6, 1)) -> tuple[Tensor, Tensor, Tensor]:
    events = torch.randn(len(lengths), max(lengths), WIDTH)
    valid = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return events, valid, torch.randn(len(lengths), CANDIDATES, WIDTH)


def in_loops(encoder: HistoryEncoder, events: Tensor, target: Tensor) -> Tensor:
    """(T, D) events without padding and (D,) -> (2, D)."""
    count, width = len(events), WIDTH // encoder.heads
    last = encoder.place.num_embeddings - 1
    placed = [events[t] + encoder.place.weight[min(count - 1 - t, last)] for t in range(count)]
    q, k, v = ([matrix @ row for row in placed] for matrix in encoder.in_projection.weight.chunk(3))
    encoded = []
    for t in range(count):
        seen = range(t + 1) if encoder.causal else range(count)
        heads = []
        for h in range(encoder.heads):
            c = slice(h * width, (h + 1) * width)
            weights = naive.softmax([q[t][c] @ k[j][c] / width**0.5 for j in seen])
            heads.append(sum(w * v[j][c] for w, j in zip(weights, seen, strict=True)))
        mixed = encoder.out_projection.weight @ torch.cat(heads)
        row = naive.layer_norm(encoder.attention_norm, events[t] + mixed)
        first, _, second = encoder.feed_forward
        forward = naive.apply(second, naive.apply(first, row).clamp(min=0))
        encoded.append(naive.layer_norm(encoder.forward_norm, row + forward))
    weights = naive.softmax([row @ target / WIDTH**0.5 for row in encoded])
    attended = sum(w * row for w, row in zip(weights, encoded, strict=True))
    return torch.stack([attended, sum(encoded) / count])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("places", [2, 8])
def test_the_encoder_is_its_equation(causal: bool, places: int) -> None:
    encoder = make(causal=causal, places=places).double()
    events, valid, targets = (x.double() if x.is_floating_point() else x for x in some_history())
    rows = zip(events, valid, targets, strict=True)
    expected = torch.stack(
        [torch.stack([in_loops(encoder, e[m], t) for t in targets]) for e, m, targets in rows]
    )
    sources = list(encoder.parameters())
    found = encoder(events, valid, targets)
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found.square().sum(), sources)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.square().sum(), sources))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("rubbish", [0.0, 1e6, float("nan")])
def test_padding_to_twice_the_length_changes_nothing(
    causal: bool, left: bool, rubbish: float
) -> None:
    encoder, (events, valid, targets) = make(causal=causal), some_history()
    padding, absent = torch.full_like(events, rubbish), torch.zeros_like(valid)
    pieces = ([padding, events], [absent, valid])
    longer, mask = (torch.cat(p if left else p[::-1], dim=1) for p in pieces)
    expected = encoder(events, valid, targets)
    torch.testing.assert_close(encoder(longer, mask, targets), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [0, 3])
def test_no_history_gives_zeros_and_finite_gradients(causal: bool, length: int) -> None:
    encoder = make(causal=causal)
    events = torch.randn(2, length, WIDTH, requires_grad=True)
    valid = torch.zeros(2, length, dtype=torch.bool)
    valid[0, :1] = True  # the second row has nothing, and neither has any where length is 0
    out = encoder(events, valid, torch.randn(2, CANDIDATES, WIDTH))
    assert out[1].eq(0).all()
    assert out[0].any() == (length > 0)
    out.square().sum().backward()
    assert events.grad[1].eq(0).all()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


@pytest.mark.parametrize("causal", [False, True])
def test_every_query_sees_a_key(causal: bool) -> None:
    """Also where there is no history: not every kernel's softmax over nothing is zero."""
    _, valid, _ = some_history((0, 2, 4))
    for mask in (valid, valid.flip(1)):
        assert make(causal=causal).mask(mask).any(dim=3).all()


@pytest.mark.parametrize("causal", [False, True])
def test_all_is_computed_where_the_input_is(causal: bool) -> None:
    history = [tensor.to("meta") for tensor in some_history()]
    assert make(causal=causal).to("meta")(*history).device.type == "meta"


def test_an_empty_batch_goes_through() -> None:
    encoder = make()
    valid = torch.zeros(0, 3, dtype=torch.bool)
    out = encoder(torch.randn(0, 3, WIDTH), valid, torch.zeros(0, CANDIDATES, WIDTH))
    out.sum().backward()
    assert out.shape == (0, CANDIDATES, 2, WIDTH)


@pytest.mark.parametrize("causal", [False, True])
def test_a_causal_event_does_not_see_the_future(causal: bool) -> None:
    encoder, (events, valid, _) = make(causal=causal), some_history((5,))
    jacobian = torch.autograd.functional.jacobian(lambda x: encoder.encode(x, valid), events)
    reached = jacobian[0, :, :, 0].abs().amax(dim=(1, 3)) > 0
    expected = torch.ones(5, 5, dtype=torch.bool)
    assert torch.equal(reached, expected.tril() if causal else expected)


def test_recency_counts_from_the_newest_event() -> None:
    """The order of events matters, but a history's place in its row does not."""
    encoder, (events, valid, targets) = make(), some_history((4,))
    swapped = encoder(events[:, [1, 0, 2, 3]], valid, targets)
    assert not torch.allclose(swapped, encoder(events, valid, targets))
    torch.nn.init.zeros_(encoder.place.weight)
    swapped = encoder(events[:, [1, 0, 2, 3]], valid, targets)
    torch.testing.assert_close(swapped, encoder(events, valid, targets))


def test_every_parameter_gets_a_gradient() -> None:
    encoder = make(places=6)
    encoder(*some_history()).square().sum().backward()
    unreached = [name for name, p in encoder.named_parameters() if not p.grad.any()]
    assert unreached == []


@pytest.mark.parametrize(("causal", "length"), itertools.product([False, True], [1, 700]))
def test_bfloat16_has_no_nan(causal: bool, length: int) -> None:
    encoder, history = make(causal=causal), some_history((length, 0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        out = encoder(*history)
    out.float().square().sum().backward()
    assert out.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


@pytest.mark.parametrize("name", ["heads", "hidden", "places"])
def test_sizes_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        HistoryConfig(**{name: 0})


def test_heads_divide_the_width() -> None:
    with pytest.raises(ValueError, match="heads=3 do not divide the width 4: take a divisor of 4"):
        HistoryEncoder(4, HistoryConfig(heads=3))
