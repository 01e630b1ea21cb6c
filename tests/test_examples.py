"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOMS = ("data", "modules", "sharding", "trainer", "torchx_specs")
WITH_EXAMPLES = [
    ".".join(file.relative_to(REPOSITORY).with_suffix("").parts)
    for room in ROOMS
    for file in sorted((REPOSITORY / room).rglob("*.py"))
    if ">>> " in file.read_text()
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_are_true(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed
