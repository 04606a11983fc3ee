"""Formats of numbers in texts for users."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """Return `1 face`, `2,000 faces`, `3 copies` or `7 classes`."""
    if count != 1:
        noun = noun[:-1] + "ies" if noun.endswith("y") else noun + ("es" if noun.endswith("s") else "s")
    return f"{count:,} {noun}"


def format_duration(seconds: float) -> str:
    """Format a duration in seconds, as `3m07s` or `2h05m`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m:02d}m" if hours else f"{m}m{s:02d}s"


def format_gb(count: float) -> str:
    """Return bytes as `0.52 GB` or, from 10 GB on, `1,200 GB`."""
    size = count / 1e9
    return f"{size:.2f} GB" if size < 10 else f"{size:,.0f} GB"


def format_mib(count: float) -> str:
    """Return bytes as `1,024.5 MiB`."""
    return f"{count / 2**20:,.1f} MiB"
