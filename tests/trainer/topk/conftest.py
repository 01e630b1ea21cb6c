"""Small stores, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.topk.logs import write_groups, write_store


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of ``logs.TRAINING`` and ``logs.FUTURE``. Do not change it."""
    return write_store(tmp_path_factory.mktemp("topk"))


@pytest.fixture(scope="session")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of ``logs.write_groups``. Do not change it."""
    return write_groups(tmp_path_factory.mktemp("groups"))
