"""Numbers as people say them, in logs and on the page about a night."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """Three digits that count, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def size(count: float) -> str:
    """Bytes: 7 B, 1.5 MiB."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(len(units) - 1, int(math.log(max(count, 1), 1024)))
    return f"{number(count / 1024**power)} {units[power]}"


def duration(seconds: float) -> str:
    """A time: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def count(number: int, what: str) -> str:
    """One shard, 3,000 shards; `process` has another plural."""
    plural = what + ("es" if what.endswith("s") else "s")
    return f"{number:,} {what if number == 1 else plural}"
