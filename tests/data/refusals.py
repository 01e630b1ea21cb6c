"""How a wrong input has to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import InputError
from data.prepare import prepare


def expect_refused(source: object, out: Path, *parts: str) -> None:
    """The message has all parts, in this order."""
    with pytest.raises(InputError) as error:
        prepare(source, out)
    position = 0
    for part in parts:
        assert part in str(error.value)[position:], f"{part!r} not in: {error.value}"
        position += str(error.value)[position:].index(part) + len(part)
