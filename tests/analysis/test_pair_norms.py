"""Norms by pair of fields, against second derivatives of the first layer's maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian

from analysis.pair_norms import field_names, first_layer, pair_norms, partner_sums
from modules.crossing.presets import PRESETS
from modules.crossing.separation import FullFilter, LowRankFilter, Separation
from modules.ranker import LifelongRanker
from modules.ranker_config import RankerConfig
from tests.batches import CONTEXT, fields

FIELDS, WIDTH = 3, 4
FORMS = {
    "full": {},
    "few maps": {"maps": 2},
    "rank 1": {"rank": 1},
    "rank 2": {"rank": 2},
    "cross": {"form": "cross", "residual": True, "layer_bias": True},
    "shared": {"shared": True},
    "shared cross": {"shared": True, "form": "cross"},
    "groups": {"form": "cross", "group": 2},
    "one group": {"form": "cross", "group": 4},
}


def make(form: str) -> Separation:
    part = Separation(FIELDS, WIDTH, 1, **FORMS[form])
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return part.double()


def second_derivatives(part: Separation) -> np.ndarray:
    """(F, F): root of the sum of squares, over all maps and dimensions."""
    rows = torch.randn(1, FIELDS, WIDTH, dtype=torch.float64)
    maps = part.maps(rows)[0].numel()
    total = torch.zeros(FIELDS, FIELDS, dtype=torch.float64)
    for number in range(maps):

        def of_map(x: Tensor, number: int = number) -> Tensor:
            if isinstance(part.layers[0], FullFilter | LowRankFilter):
                x0 = part._slice(x)
                return part.layers[0](x0, x0).flatten()[number]
            return cross_by_hand(part, x).flatten()[number]

        total += hessian(of_map, rows)[0, :, :, 0].square().sum((1, 3))
    # shared weights come again in each dimension
    return (total / (WIDTH if part.shared else 1)).sqrt().numpy()


def cross_by_hand(part: Separation, x: Tensor) -> Tensor:
    """The cross layers' own gradient cannot be derived again."""
    slices, weight = part._slice(x), part.layers[0].weight
    return slices * torch.einsum("nrc,nkc->nrk", slices, weight.expand(len(slices), -1, -1))


@pytest.mark.parametrize("form", FORMS)
def test_a_norm_is_that_of_the_second_derivatives(form: str) -> None:
    part = make(form)
    found, expected = pair_norms(part.layers[0], part.group), second_derivatives(part)
    apart = ~np.eye(FIELDS, dtype=bool)
    np.testing.assert_allclose(found[apart], expected[apart], rtol=1e-10)
    np.testing.assert_array_equal(found, found.T)
    if part.group == 1:  # of a square the second derivative is twice the weight
        np.testing.assert_allclose(np.diag(found), np.diag(expected) / 2, rtol=1e-10)
    else:
        blocks = part.layers[0].weight.unflatten(1, (part.group, -1)).unflatten(3, (part.group, -1))
        squares = torch.stack([blocks[:, :, f, :, f].square().sum() for f in range(FIELDS)])
        np.testing.assert_allclose(np.diag(found) ** 2, squares.detach().numpy(), rtol=1e-10)


def test_what_cannot_change_a_logit_has_no_norm() -> None:
    part = make("full")
    weight = part.layers[0].weight.data
    weight.sub_(weight.transpose(1, 2).clone())  # antisymmetric in the two fields
    assert part(torch.randn(5, FIELDS, WIDTH, dtype=torch.float64)).abs().max() < 1e-12
    assert pair_norms(part.layers[0]).max() < 1e-12


def test_a_field_sums_over_its_partners() -> None:
    norms = np.array([[9.0, 1, 2], [1, 9, 4], [2, 4, 9]])
    assert partner_sums(norms).tolist() == [3, 5, 6]


def test_names_are_those_of_the_vectors_that_cross() -> None:
    model = RankerConfig(
        sharing="shared", search="all", pooling="mean", auxiliary="none", head="crossing",
        crossing=PRESETS["secn_a1"](),
    )  # fmt: skip
    ranker = LifelongRanker(model, fields(), torch.device("cpu"), CONTEXT)
    names = field_names(ranker, CONTEXT.numbers)
    assert names == [
        "item", "category", "recency", "interest: item", "interest: category", "interest: recency",
        "store", "hour", "price", "visits",
    ]  # fmt: skip
    layer, group = first_layer(ranker)
    assert pair_norms(layer, group).shape == (len(names),) * 2


def test_a_head_without_filters_has_none() -> None:
    model = RankerConfig(
        sharing="shared", search="all", pooling="none", auxiliary="none", head="crossing",
        crossing=PRESETS["fm"](),
    )  # fmt: skip
    assert first_layer(LifelongRanker(model, fields(), None, CONTEXT)) is None
    assert first_layer(LifelongRanker(RankerConfig(), fields())) is None
