"""A table without users has no AUC within users: neither in files nor in what people read."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from rich.console import Console

from trainer.metrics import Predictions, evaluate
from trainer.tables import results_table


def predictions(users: list[int]) -> Predictions:
    return Predictions(
        probability=np.array([0.1, 0.4, 0.35, 0.8]),
        label=np.array([0, 0, 1, 1]),
        user=np.array(users),
        request=np.arange(4),
    )


def test_gauc_of_a_single_user_is_undefined_and_the_auc_is_not() -> None:
    metrics = evaluate(predictions([0, 0, 0, 0]), bootstrap=3)
    assert metrics.auc == 0.75  # 3 of 4 pairs
    assert math.isnan(metrics.gauc)
    assert metrics.to_json()["gauc"] is None


def test_gauc_of_two_users_stays() -> None:
    # user 0: 0.1 < 0.35, user 1: 0.4 < 0.8
    assert evaluate(predictions([0, 1, 0, 1]), bootstrap=0).gauc == pytest.approx(1.0)


def test_the_results_table_shows_a_dash() -> None:
    summary = evaluate(predictions([0, 0, 0, 0]), bootstrap=3).to_json()
    console = Console(file=io.StringIO(), width=100)
    console.print(results_table({"lr": summary}))
    (row,) = (
        line for line in console.file.getvalue().splitlines() if line.lstrip().startswith("lr")
    )
    assert row.split()[3] == "–"
