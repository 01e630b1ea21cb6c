"""Means, standard deviations and differences, against NumPy and scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from data.errors import InputError
from data.store import numpy_columns, read_arrow, write_arrow
from tests.trainer.sweep.small_sweeps import lines
from trainer.metrics import Predictions, paired_difference
from trainer.sweep.compare import RESAMPLES, Resampled, compare, resampled


def predictions(noise: float, seed: int) -> Predictions:
    """120 requests of 30 users, three candidates each; less noise is a better model."""
    labels = np.random.default_rng(0).permuted(np.tile([1, 0, 0], (120, 1)), axis=1).ravel()
    rng = np.random.default_rng(seed)
    probability = 1 / (1 + np.exp(-(labels + rng.normal(0, noise, 360))))
    request = np.repeat(np.arange(120), 3)
    return Predictions(probability.astype(np.float32), labels, request // 4, request)


def saved(folder: Path, p: Predictions) -> Resampled:
    folder.mkdir(parents=True)
    write_arrow(
        folder / "predictions-test.arrow",
        {name: getattr(p, name) for name in p.__dataclass_fields__},
    )
    return resampled(folder, folder / "cache.json")


def test_intervals_are_those_of_paired_difference(tmp_path: Path) -> None:
    ours = [predictions(0.8, seed) for seed in (1, 2, 3)]
    theirs = [predictions(1.5, seed) for seed in (4, 5, 6)]
    found = compare(
        [saved(tmp_path / f"a{i}", p) for i, p in enumerate(ours)],
        [saved(tmp_path / f"b{i}", p) for i, p in enumerate(theirs)],
    )
    for by, interval in (("request", found.by_request), ("user", found.by_user)):
        expected = paired_difference(ours, theirs, bootstrap=RESAMPLES, by=by)
        assert found.auc == pytest.approx(expected.auc)
        assert interval == pytest.approx(expected.interval)
    single = [
        roc_auc_score(a.label, a.probability) - roc_auc_score(b.label, b.probability)
        for a, b in zip(ours, theirs, strict=True)
    ]
    assert found.auc == pytest.approx(np.mean(single))
    assert found.seed_std == pytest.approx(np.std(single, ddof=1))
    assert found.seeds == 3


def test_the_order_of_requests_does_not_matter(tmp_path: Path) -> None:
    p = predictions(1.0, 1)
    order = np.argsort(-p.request, kind="stable")
    turned = Predictions(*(getattr(p, name)[order] for name in p.__dataclass_fields__))
    a, b = saved(tmp_path / "a", p), saved(tmp_path / "b", turned)
    assert a.candidates == b.candidates
    np.testing.assert_allclose(a.by["user"], b.by["user"])


def test_a_cache_holds_for_one_content_only(tmp_path: Path) -> None:
    first = saved(tmp_path / "run", predictions(1.0, 1))
    cache = tmp_path / "run" / "cache.json"
    written = cache.stat().st_mtime_ns
    again = resampled(tmp_path / "run", cache)
    assert again.auc == first.auc
    assert cache.stat().st_mtime_ns == written
    (tmp_path / "run" / "predictions-test.arrow").unlink()
    p = predictions(1.0, 2)
    write_arrow(
        tmp_path / "run" / "predictions-test.arrow",
        {name: getattr(p, name) for name in p.__dataclass_fields__},
    )
    assert resampled(tmp_path / "run", cache).auc != first.auc
    cache.write_text("{")
    assert resampled(tmp_path / "run", cache).auc != first.auc


def test_one_seed_has_no_deviation(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", predictions(0.8, 1))
    b = saved(tmp_path / "b", predictions(1.5, 2))
    assert np.isnan(compare([a], [b]).seed_std)


def test_other_candidates_cannot_be_compared(tmp_path: Path) -> None:
    p = predictions(1.0, 1)
    other = Predictions(p.probability, 1 - p.label, p.user, p.request)
    with pytest.raises(InputError, match="different candidates"):
        compare([saved(tmp_path / "a", p)], [saved(tmp_path / "b", other)])


@pytest.mark.slow
def test_the_table_agrees_with_its_cells(swept: Path) -> None:
    cells = lines(swept / "results.csv")
    auc = {}
    for row in lines(swept / "table.csv"):
        of_row = [cell for cell in cells if cell["row"] == row["row"]]
        for name in ("test_auc", "test_gauc", "test_logloss", "val_auc"):
            values = np.array([float(cell[name]) for cell in of_row])
            assert float(row[f"{name}_mean"]) == pytest.approx(values.mean())
            assert float(row[f"{name}_std"]) == pytest.approx(values.std(ddof=1))
        auc[row["row"]] = np.array(
            [roc_auc(swept / "cells" / f"{row['row']}-seed{seed}") for seed in (1, 2)]
        )
    narrow = lines(swept / "table.csv")[1]
    assert narrow["reference"] == "wide"
    difference = auc["narrow"] - auc["wide"]
    assert float(narrow["difference"]) == pytest.approx(difference.mean())
    assert float(narrow["difference_seed_std"]) == pytest.approx(difference.std(ddof=1))
    assert float(narrow["user_low"]) <= float(narrow["user_high"])


def roc_auc(run: Path) -> float:
    columns = numpy_columns(read_arrow(run / "predictions-test.arrow"))
    return roc_auc_score(columns["label"], columns["probability"])
