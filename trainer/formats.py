"""Numbers as people read them, the same in the terminal and in the report."""

from __future__ import annotations

import math

MISSING = "–"


def count(value: float | None) -> str:
    """Whole number with thousands separators: 1,234,567."""
    return MISSING if _missing(value) else f"{value:,.0f}"


def decimal(value: float | None, digits: int = 4) -> str:
    """Fixed number of decimals: 0.7969."""
    return MISSING if _missing(value) else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 4) -> str:
    """Fixed number of decimals with its sign: +0.0123, −0.0040."""
    return MISSING if _missing(value) else f"{value:+.{digits}f}".replace("-", "−")


def interval(bounds: tuple[float | None, ...] | list[float | None] | None, digits: int = 4) -> str:
    """Both ends of an interval: 0.7921–0.8015."""
    if bounds is None or any(_missing(bound) for bound in bounds):
        return MISSING
    return "–".join(f"{bound:.{digits}f}" for bound in bounds)


def size(value: float | None) -> str:
    """Bytes in binary units: 512 B, 1.5 MiB, 24.0 GiB."""
    if _missing(value):
        return MISSING
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log2(max(value, 1)) // 10), len(units) - 1)
    digits = 1 if power and value / 1024**power < 100 else 0
    return f"{value / 1024**power:,.{digits}f} {units[power]}"


def duration(seconds: float | None) -> str:
    """41 s, 3 min 20 s, 2 h 5 min."""
    if _missing(seconds):
        return MISSING
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _missing(value: float | None) -> bool:
    return value is None or not math.isfinite(value)
