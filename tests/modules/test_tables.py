"""Tables: their start, their rows, their configuration."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor, KeyedTensor

from modules.bags import initialize_shard_, initialize_tables_
from modules.tables import COLLECTIONS, EventTables, FieldConfig
from tests.modules.cases import TABLES

ITEM = FieldConfig(name="item", num_embeddings=3000, attention_dim=3, representation_dim=5)
CATEGORY = FieldConfig(
    name="category",
    num_embeddings=2000,
    attention_dim=2,
    representation_dim=4,
    attention_init_std=1.0,
    representation_init_std=0.1,
)
EVENTS = {"item": torch.tensor([7, 1, 7]), "category": torch.tensor([0, 4, 2])}
CANDIDATES = {"item": torch.tensor([1, 9]), "category": torch.tensor([4, 4])}


def sides_equal(field: FieldConfig) -> FieldConfig:
    return dataclasses.replace(
        field,
        representation_dim=field.attention_dim,
        representation_init_std=field.attention_init_std,
    )


def make(sharing: str, **changes: str) -> EventTables:
    fields = (ITEM, CATEGORY)
    if sharing in ("shared", "projected"):
        fields = tuple(map(sides_equal, fields))
    return EventTables(fields, sharing, **changes)


def table(tables: nn.Module, side: str, field: str) -> Tensor:
    return getattr(tables, side).embedding_bags[f"{side}_{field}"].weight


def filled(name: str = "item", seed: int = 3, **part: int) -> Tensor:
    """A part of a table of 10 rows and 6 columns: from (row, column) on."""
    shape = (part.pop("rows", 10), part.pop("columns", 6))
    weight = torch.empty(shape)
    initialize_shard_(weight, name, 0.5, seed, **part)
    return weight


def test_shards_start_as_the_whole_table_does() -> None:
    whole = filled()
    assert torch.equal(filled(rows=4, row=3), whole[3:7])
    assert torch.equal(filled(columns=2, column=4), whole[:, 4:])
    assert torch.equal(filled(rows=3, columns=3, row=7, column=1), whole[7:, 1:4])


@pytest.mark.parametrize("rows_at_a_time", [1, 3, 10])
def test_a_table_starts_the_same_however_many_rows_are_drawn_at_a_time(
    rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, part = filled(), filled(rows=5, row=4)
    monkeypatch.setattr("modules.bags.INIT_ROWS", rows_at_a_time)
    assert torch.equal(filled(), whole)
    assert torch.equal(filled(rows=5, row=4), part)


def test_tables_and_seeds_start_differently() -> None:
    assert not filled().eq(filled(name="category")).any()
    assert not filled().eq(filled(seed=4)).any()


def test_every_table_starts_with_its_own_standard_deviation() -> None:
    tables = make("decoupled")
    initialize_tables_(tables, seed=1)
    for side, field, std in (
        ("attention", "item", 0.01),
        ("representation", "item", 0.01),
        ("attention", "category", 1.0),
        ("representation", "category", 0.1),
    ):
        weight = table(tables, side, field)
        # standard error of a standard deviation: std / sqrt(2 n)
        assert abs(weight.std() - std) < 4 * std / (2 * weight.numel()) ** 0.5
        assert abs(weight.mean()) < 4 * std / weight.numel() ** 0.5


def test_an_unsharded_table_starts_as_its_shards_do() -> None:
    tables = make("shared")
    initialize_tables_(tables, seed=6)
    shard = torch.empty(5, 1)
    initialize_shard_(shard, "shared_category", 1.0, 6, row=20, column=1)
    assert torch.equal(table(tables, "shared", "category")[20:25, 1:], shard)


@pytest.mark.parametrize("sharing", ["decoupled", "shared", "three", "four"])
def test_rows_are_those_of_the_ids_fields_side_by_side(sharing: str) -> None:
    tables = make(sharing)

    def rows(side: str, ids: dict[str, Tensor]) -> Tensor:
        return torch.cat([table(tables, side, field)[ids[field]] for field in ids], dim=1)

    found = tables(EVENTS, CANDIDATES)
    for role, side in zip(found._fields, TABLES[sharing], strict=True):
        ids = EVENTS if role in ("keys", "values") else CANDIDATES
        assert torch.equal(getattr(found, role), rows(side, ids))
    search_keys, search_queries = tables.attend(EVENTS, CANDIDATES)
    assert torch.equal(search_keys, found.keys)
    assert torch.equal(search_queries, found.queries)


@pytest.mark.parametrize("projection", ["field", "event"])
def test_projections_map_shared_rows_for_each_role(projection: str) -> None:
    tables = make("projected", projection=projection)
    plain = EventTables(tuple(map(sides_equal, (ITEM, CATEGORY))), "shared")
    plain.shared.load_state_dict(tables.shared.state_dict())
    # they start as the identity
    for actual, row in zip(tables(EVENTS, CANDIDATES), plain(EVENTS, CANDIDATES), strict=True):
        torch.testing.assert_close(actual, row)
    for parameter in tables.projections.parameters():
        nn.init.normal_(parameter)
    for role, row in plain(EVENTS, CANDIDATES)._asdict().items():
        maps = tables.projections.get_submodule(role)
        parts = row.split([3, 2] if projection == "field" else [5], dim=1)
        expected = torch.cat(
            [
                part @ linear.weight.T + (0 if linear.bias is None else linear.bias)
                for part, linear in zip(parts, maps, strict=True)
            ],
            dim=1,
        )
        torch.testing.assert_close(getattr(tables(EVENTS, CANDIDATES), role), expected)
    keys, queries = tables.attend(EVENTS, CANDIDATES)
    assert torch.equal(keys, tables(EVENTS, CANDIDATES).keys)
    assert torch.equal(queries, tables(EVENTS, CANDIDATES).queries)


def test_projections_may_change_the_width() -> None:
    field = dataclasses.replace(ITEM, attention_dim=2)
    tables = EventTables((field,), "projected")
    assert table(tables, "shared", "item").shape[1] == 5
    rows = tables({"item": EVENTS["item"]}, {"item": CANDIDATES["item"]})
    assert [row.shape[1] for row in rows] == [2, 2, 5, 5]


@pytest.mark.parametrize("sharing", COLLECTIONS)
def test_no_events_give_no_rows(sharing: str) -> None:
    none = {name: ids[:0] for name, ids in EVENTS.items()}
    keys, queries, values, targets = make(sharing)(none, CANDIDATES)
    assert [len(rows) for rows in (keys, queries, values, targets)] == [0, 2, 0, 2]


class Reordered(nn.Module):
    """Answers with its fields in the other order, as a sharded collection may."""

    def __init__(self, bags: nn.Module) -> None:
        super().__init__()
        self.bags = bags

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        out = self.bags(features)
        keys, widths = out.keys()[::-1], out.length_per_key()[::-1]
        return KeyedTensor(keys, widths, torch.cat([out[key] for key in keys], dim=1))


def test_the_order_of_a_sharded_collection_does_not_matter() -> None:
    tables = make("decoupled")
    expected = tables(EVENTS, CANDIDATES)
    tables.attention = Reordered(tables.attention)
    for actual, rows in zip(tables(EVENTS, CANDIDATES), expected, strict=True):
        assert torch.equal(actual, rows)


@pytest.mark.parametrize("sharing", COLLECTIONS)
def test_each_table_is_looked_up_once(sharing: str) -> None:
    tables, calls = make(sharing), []
    for name in tables.roles:
        tables.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    tables(EVENTS, CANDIDATES)
    assert sorted(calls) == sorted(COLLECTIONS[sharing])


@pytest.mark.parametrize("sharing", ["decoupled", "three", "four"])
def test_a_search_reads_attention_tables_alone(sharing: str) -> None:
    tables, calls = make(sharing), []
    for name in tables.roles:
        tables.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    tables.attend(EVENTS, CANDIDATES)
    assert calls
    assert all(name.startswith("attention") for name in calls)


def test_shared_tables_refuse_two_widths() -> None:
    with pytest.raises(ValueError, match=r"'item'.* 3 .* 5.*sharing='decoupled'"):
        EventTables((ITEM, CATEGORY), "shared")


@pytest.mark.parametrize("name", ["num_embeddings", "attention_dim", "representation_dim"])
def test_a_field_needs_rows_and_widths(name: str) -> None:
    with pytest.raises(ValueError, match=f"'item'.*{name} must be at least 1"):
        dataclasses.replace(ITEM, **{name: 0})
