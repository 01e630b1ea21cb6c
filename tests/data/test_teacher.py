"""The teacher source: its truth recomputed with loops, and the properties of its table."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from data.errors import InputError
from data.prepare import prepare
from data.source import SPLITS
from data.sources import teacher
from data.sources.teacher import Teacher, logit
from data.store import EventStore
from tests.data.flat_logs import check_columns, split_by_hash

SMALL = Teacher(rows=20_000, fields=4, ids=12, width=4)
KAPPAS = (0.0, 0.2, 0.5, 0.7, 1.0)


def table(source: Teacher, seed: int = 0) -> pl.DataFrame:
    return pl.concat(source.row_frames(seed))


def ids_of(source: Teacher, rows: pl.DataFrame) -> np.ndarray:
    return rows.select(source.columns).to_numpy()


def truth(source: Teacher, rows: pl.DataFrame) -> np.ndarray:
    """True click probability of each row."""
    log_odds = logit(
        ids_of(source, rows), source.vectors(), source.matrix(), source.triple_groups()
    )
    return 1 / (1 + np.exp(-log_odds))


def all_rows(source: Teacher) -> tuple[np.ndarray, np.ndarray]:
    """Every possible row, and how often it comes."""
    grids = np.meshgrid(*[np.arange(source.ids)] * source.fields, indexing="ij")
    ids_NF = np.stack(grids, axis=-1).reshape(-1, source.fields)
    return ids_NF, source.popularity()[ids_NF].prod(axis=1)


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("pairs", [0.5, 1])
def test_the_log_odds_are_the_sum_over_pairs_and_dimensions(kappa: float, pairs: float) -> None:
    source = dataclasses.replace(SMALL, kappa=kappa, pairs=pairs)
    chosen, matrices, u = source.interacting(), source.pair_matrices(), source.vectors()
    assert len(chosen) == 6 * pairs
    ids_NF = ids_of(source, table(source))[:20]
    found = logit(ids_NF, u, source.matrix())
    for ids, odds in zip(ids_NF, found, strict=True):
        expected = 0.0
        for (i, j), c in zip(chosen, matrices, strict=True):
            for d in range(4):
                for e in range(4):
                    expected += c[d, e] * u[i, ids[i], d] * u[j, ids[j], e]
        assert odds == pytest.approx(expected * 2 / math.sqrt(len(chosen)), abs=1e-12)


@pytest.mark.parametrize("kappa", KAPPAS)
def test_triples_take_their_share_of_the_log_odds(kappa: float) -> None:
    source = dataclasses.replace(SMALL, kappa=kappa, triples=0.3)
    u, (ids_NF, share) = source.vectors(), all_rows(source)
    found = logit(ids_NF, u, source.matrix(), source.triple_groups())
    of_pairs = logit(ids_NF, u, source.matrix())
    of_triples = found - of_pairs
    assert (share * of_pairs**2).sum() == pytest.approx(0.7 * 2**2)
    assert (share * of_triples**2).sum() == pytest.approx(0.3 * 2**2)
    assert (share * of_pairs * of_triples).sum() == pytest.approx(0, abs=1e-9)
    row = 1234
    expected = 0.0
    for (i, j, k), c in source.triple_groups():
        for d, e, f in itertools.product(range(4), repeat=3):
            a, b, h = ids_NF[row, [i, j, k]]
            expected += c[d, e, f] * u[i, a, d] * u[j, b, e] * u[k, h, f]
    assert of_triples[row] == pytest.approx(expected, abs=1e-12)


def test_triples_meet_in_the_dimensions_that_kappa_says() -> None:
    diagonal = np.zeros((4, 4, 4), bool)
    diagonal[(np.arange(4),) * 3] = True
    for kappa in (0.0, 0.5, 1.0):
        source = dataclasses.replace(SMALL, kappa=kappa, triples=1.0)
        tensors = np.stack([c for _, c in source.triple_groups()])
        assert len(tensors) == 4
        assert (source.matrix() == 0).all()
        of_diagonal = tensors[:, diagonal]
        if kappa == 1:
            np.testing.assert_allclose(np.abs(tensors), np.abs(tensors[0, 0, 0, 0]))
        else:
            assert (tensors[:, ~diagonal] == 0).all()
            alike = np.abs(of_diagonal.sum(axis=1))
            np.testing.assert_allclose(alike, np.abs(of_diagonal).sum(1) if kappa == 0 else 0)


def test_triples_do_not_change_what_pairs_are() -> None:
    with_triples = dataclasses.replace(SMALL, triples=0.5)
    np.testing.assert_array_equal(with_triples.pair_matrices(), SMALL.pair_matrices())
    np.testing.assert_allclose(with_triples.matrix(), SMALL.matrix() * math.sqrt(0.5))
    assert table(with_triples).select(SMALL.columns).equals(table(SMALL).select(SMALL.columns))


@pytest.mark.parametrize("pairs", [0.3, 1])
@pytest.mark.parametrize("zipf", [0, 1.3])
def test_the_spread_of_the_log_odds_is_the_scale_whatever_kappa(zipf: float, pairs: float) -> None:
    for kappa in KAPPAS:
        source = dataclasses.replace(SMALL, kappa=kappa, zipf=zipf, pairs=pairs, scale=1.7)
        ids_NF, share = all_rows(source)
        odds = logit(ids_NF, source.vectors(), source.matrix())
        assert (share * odds).sum() == pytest.approx(0, abs=1e-9)
        assert (share * odds**2).sum() == pytest.approx(1.7**2)


def test_no_field_alone_says_anything_of_a_click() -> None:
    ids_NF, share = all_rows(SMALL)
    odds = share * logit(ids_NF, SMALL.vectors(), SMALL.matrix())
    for column in ids_NF.T:
        np.testing.assert_allclose(np.bincount(column, weights=odds), 0, atol=1e-9)


def test_kappa_0_is_one_sign_a_pair() -> None:
    matrices = dataclasses.replace(SMALL, kappa=0).pair_matrices()
    np.testing.assert_allclose(np.abs(matrices), np.broadcast_to(np.eye(4) / 2, (6, 4, 4)))
    signs = np.sign(matrices.trace(axis1=1, axis2=2))
    np.testing.assert_allclose(matrices, signs[:, None, None] * np.eye(4) / 2)


def test_kappa_half_is_a_sign_for_each_dimension_and_half_of_them_are_positive() -> None:
    matrices = dataclasses.replace(SMALL, kappa=0.5).pair_matrices()
    np.testing.assert_allclose(np.abs(matrices), np.broadcast_to(np.eye(4) / 2, (6, 4, 4)))
    np.testing.assert_allclose(matrices.trace(axis1=1, axis2=2), 0)


def test_kappa_1_is_a_sign_for_each_two_dimensions() -> None:
    matrices = dataclasses.replace(SMALL, fields=8, kappa=1).pair_matrices()
    np.testing.assert_allclose(np.abs(matrices), 0.25)
    assert abs(matrices.mean()) < 0.25 * 4 / math.sqrt(matrices.size)
    off_diagonal = matrices[:, ~np.eye(4, dtype=bool)]
    assert np.square(off_diagonal).sum() == pytest.approx(28 * 12 / 16)


def test_no_signs_of_the_fields_make_the_dimensions_of_kappa_half_alike() -> None:
    """A shared filter is right for embeddings whose dimension d has its sign changed in some
    fields, if c_ijd / c_ij0 = a_i a_j: then the product around every triangle is 1.
    """
    source = dataclasses.replace(SMALL, fields=8, kappa=0.5)
    ratio = np.ones((8, 8, 4))
    for (i, j), c in zip(source.interacting(), source.pair_matrices(), strict=True):
        ratio[i, j] = ratio[j, i] = np.diag(c) / c[0, 0]
    triangles = np.einsum("ijd,jkd,kid->ijkd", ratio, ratio, ratio)
    i, j, k = np.array([(i, j, k) for i in range(8) for j in range(i) for k in range(j)]).T
    frustrated = (triangles[i, j, k] < 0).mean(axis=0)
    assert frustrated[0] == 0
    assert (frustrated[1:] > 0.25).all()


def test_ids_come_as_often_as_zipf_says() -> None:
    source = Teacher(rows=100_000, fields=3, ids=40, zipf=1.0)
    expected = np.array([1 / rank for rank in range(1, 41)])
    expected *= 100_000 / expected.sum()
    for column in ids_of(source, table(source)).T:
        counts = np.bincount(column, minlength=40)
        assert (np.abs(counts - expected) < 4.5 * np.sqrt(expected)).all()


def test_fields_are_drawn_apart() -> None:
    ids_NF = ids_of(SMALL, table(SMALL))
    correlation = np.corrcoef(ids_NF.T) - np.eye(4)
    assert np.abs(correlation).max() < 4.5 / math.sqrt(SMALL.rows)


def test_clicks_are_as_frequent_as_their_probability_says() -> None:
    rows = table(SMALL)
    probability, label = truth(SMALL, rows), rows["label"].to_numpy()
    assert 0.47 < label.mean() < 0.53
    for low in np.arange(0, 1, 0.125):
        chosen = (probability >= low) & (probability < low + 0.125)
        expected = probability[chosen].sum()
        deviation = math.sqrt((probability * (1 - probability))[chosen].sum())
        assert abs(label[chosen].sum() - expected) < 4 * deviation


@pytest.mark.parametrize("scale", [0.5, 2, 30])
def test_the_best_auc_is_that_of_the_true_probability(scale: float) -> None:
    source = dataclasses.replace(SMALL, scale=scale)
    rows = table(source)
    test = rows.filter(pl.col("split") == SPLITS.index("test"))
    expected = roc_auc_score(test["label"], truth(source, test))
    assert source.best_auc() == pytest.approx(expected, abs=2e-6)


def test_kappa_does_not_change_how_good_a_model_can_be() -> None:
    best = []
    for kappa in KAPPAS:
        source = Teacher(rows=50_000, kappa=kappa)
        table(source)
        best.append(source.best_auc())
    assert max(best) - min(best) < 0.02


def test_few_test_rows_have_no_best_auc() -> None:
    few = dataclasses.replace(SMALL, rows=500)
    table(few)
    assert few.best_auc() is None


def test_one_table_s_clicks_do_not_count_for_the_next() -> None:
    used, fresh = dataclasses.replace(SMALL), dataclasses.replace(SMALL)
    table(used, seed=1)
    table(used, seed=2)
    table(fresh, seed=2)
    assert used.best_auc() == fresh.best_auc()


def test_the_size_of_frames_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, best = table(SMALL), SMALL.best_auc()
    monkeypatch.setattr(teacher, "ROWS_PER_FRAME", 777)
    assert len(list(SMALL.row_frames(0))) == 26
    assert table(SMALL).equals(whole)
    assert SMALL.best_auc() == pytest.approx(best, abs=1e-9)


def test_a_longer_table_begins_with_the_shorter_one() -> None:
    longer = dataclasses.replace(SMALL, rows=30_000)
    assert table(longer).head(20_000).equals(table(SMALL))


def test_fewer_pairs_are_some_of_the_same() -> None:
    few = dataclasses.replace(SMALL, pairs=0.5)
    matrices = dict(zip(SMALL.interacting(), SMALL.pair_matrices(), strict=True))
    for pair, matrix in zip(few.interacting(), few.pair_matrices(), strict=True):
        np.testing.assert_array_equal(matrix, matrices[pair])
    assert len(dataclasses.replace(SMALL, pairs=0).interacting()) == 1


def test_the_seed_changes_clicks_and_splits_but_not_the_rows() -> None:
    one, other = table(SMALL), table(SMALL, seed=1)
    assert one.equals(table(SMALL))
    assert one.select(SMALL.columns).equals(other.select(SMALL.columns))
    for changed in ("label", "split"):
        assert 0.2 < (one[changed] != other[changed]).mean() < 0.7


def test_the_log_seed_changes_rows_and_truth() -> None:
    other = dataclasses.replace(SMALL, log_seed=1)
    assert not table(SMALL).select(SMALL.columns).equals(table(other).select(SMALL.columns))
    assert not np.allclose(SMALL.vectors(), other.vectors())
    assert not np.allclose(SMALL.pair_matrices(), other.pair_matrices())


def test_a_store_holds_the_table(tmp_path: Path) -> None:
    source = dataclasses.replace(SMALL, rows=3_000, split_ratio=(2, 1, 1))
    info = prepare(source, tmp_path / "store", seed=3, partitions=2)
    assert info.flat
    assert info.best_auc == source.best_auc()
    assert len(info.partitions) == 2
    rows = table(source, seed=3)
    columns = {name: [str(i) for i in rows[name]] for name in ("f1", "f2", "f3", "f4")}
    splits = [split_by_hash(row, 3, (2, 1, 1)) for row in range(3_000)]
    store = EventStore.open(tmp_path / "store")
    check_columns(store, rows["label"].to_list(), columns, splits, min_count=1)


def test_one_preparation_is_like_another(tmp_path: Path) -> None:
    infos = [prepare(SMALL, tmp_path / name) for name in "ab"]
    assert infos[0] == infos[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"fields": 1}, "fields must be at least 2, got 1"),
        ({"width": 2}, "width must be at least 4, got 2"),
        ({"width": 5}, "width is 5; give an even number"),
        ({"ids": 8, "width": 8}, "ids is 8 for vectors of width 8.*at least 9 ids"),
        ({"kappa": 1.01}, "kappa must be from 0 to 1, got 1.01"),
        ({"kappa": math.nan}, "kappa must be from 0 to 1, got nan"),
        ({"zipf": -0.1}, "zipf must be from 0 to 4, got -0.1"),
        ({"triples": -0.5}, "triples must be from 0 to 1, got -0.5"),
        ({"triples": 0.5, "fields": 2}, "triples is 0.5 and there are 2 fields: give fields 3"),
        ({"pairs": 2.0}, "pairs must be from 0 to 1, got 2.0"),
        ({"scale": 0.0}, "scale must be a positive number, got 0.0"),
        ({"scale": math.inf}, "scale must be a positive number, got inf"),
        ({"log_seed": -1}, "log_seed must be at least 0, got -1"),
        ({"split_ratio": (1, 0, 1)}, "split_ratio is 1 0 1"),
    ],
)
def test_bad_flags_are_refused(flags: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Teacher(**flags)  # type: ignore[arg-type]


def test_a_table_too_short_for_its_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="every split needs rows with label 1"):
        prepare(dataclasses.replace(SMALL, rows=3), tmp_path / "store")
