"""Reads setup.cfg for the tests of the set-up."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def setup_config() -> configparser.ConfigParser:
    """setup.cfg as it stands."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(REPOSITORY / "setup.cfg")
    return config


def requirement_lines() -> list[str]:
    """All requirements, extras included, without comments."""
    config = setup_config()
    blocks = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    lines = (line.strip() for block in blocks for line in block.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def dependencies() -> dict[str, str]:
    """Version by distribution."""
    pinned = (re.fullmatch(r"([\w.-]+)(?:\[[\w,]+])?==([\w.]+)", x) for x in requirement_lines())
    return {match[1]: match[2] for match in pinned if match}
