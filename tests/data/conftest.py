"""What the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Where a store would be; checks that nothing is there in the end."""
    folder = tmp_path / "stores"
    folder.mkdir()
    yield folder / "store"
    assert list(folder.iterdir()) == []
