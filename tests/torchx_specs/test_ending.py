"""How a rank ended, in words."""

import signal

import pytest

from torchx_specs.ending import ending


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (1, "failed with exit code 1"),
        (-signal.SIGTERM, "was ended by SIGTERM"),
        (-signal.SIGKILL, "was ended by SIGKILL (often: out of memory)"),
        (-(signal.SIGRTMIN + 1), f"was ended by signal {signal.SIGRTMIN + 1}"),
    ],
)
def test_an_end_is_told_by_signal_or_code(code: int, told: str) -> None:
    assert ending(code) == told
