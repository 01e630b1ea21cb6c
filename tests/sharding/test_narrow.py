"""Tables 1 and 2 wide, which FBGEMM holds as rows of four floats."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from modules.bags import initialize_shard_, look_up, make_collection, one_each
from sharding.narrow import NarrowBags, hold_narrow_tables, widths_within

WIDTHS = {"a": 1, "b": 4, "c": 2}
ROWS = 5
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, weight_decay=0.1),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.1, eps=0.1),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1),
}


def start_(weight: Tensor, key: str) -> None:
    initialize_shard_(weight, f"t_{key}", 1.0, seed=4, period=WIDTHS[key])


class Model(nn.Module):
    """Tables of three widths."""

    def __init__(self) -> None:
        super().__init__()
        tables = {f"t_{key}": (key, ROWS, width) for key, width in WIDTHS.items()}
        self.tables = make_collection(tables, None)

    def forward(self, ids: dict[str, Tensor]) -> Tensor:
        return look_up(self.tables, one_each(ids))


def trained(*, narrow: bool, optimizer: str) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs of three steps, and the tables after them."""
    model = Model()
    if narrow:
        hold_narrow_tables(model)
    held = model.tables.bags if narrow else model.tables
    with torch.no_grad():
        for key in WIDTHS:
            start_(held.embedding_bags[f"t_{key}"].weight, key)
    update = OPTIMIZERS[optimizer](model.parameters())
    draw = torch.Generator().manual_seed(2)
    seen = []
    for _ in range(3):
        ids = {key: torch.randint(ROWS, (7,), generator=draw) for key in WIDTHS}
        rows = model(ids)
        seen.append(rows.detach())
        update.zero_grad()
        (rows * torch.randn(rows.shape, generator=draw)).sum().backward()
        update.step()
    return seen, {key: held.embedding_bags[f"t_{key}"].weight.detach() for key in WIDTHS}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_rows_held_more_than_once_train_as_single_ones(optimizer: str) -> None:
    """With decay, and an epsilon that sees the scale of gradients."""
    expected, singles = trained(narrow=False, optimizer=optimizer)
    rows, held = trained(narrow=True, optimizer=optimizer)
    for actual, wanted in zip(rows, expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    for key, single in singles.items():
        torch.testing.assert_close(held[key], single.repeat(1, 4 // WIDTHS[key]))


def test_only_collections_with_narrow_tables_are_replaced() -> None:
    model = nn.ModuleList([Model(), Model()])
    model[1].tables = wide = make_collection({"t": ("a", ROWS, 8)}, torch.device("meta"))
    hold_narrow_tables(model)
    assert isinstance(model[0].tables, NarrowBags)
    assert model[1].tables is wide
    assert widths_within(model) == {f"t_{key}": width for key, width in WIDTHS.items()}


def test_a_lookup_of_nothing_has_the_width_of_its_rows() -> None:
    model = Model()
    hold_narrow_tables(model)
    assert model({key: torch.empty(0, dtype=torch.int64) for key in WIDTHS}).shape == (0, 7)
