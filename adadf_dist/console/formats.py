"""Format counts, durations and sizes for display."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, such as `1 face`, `2,000 faces`, `3 copies` or `7 classes`."""
    if count != 1:
        noun = noun[:-1] + "ies" if noun.endswith("y") else noun + ("es" if noun.endswith("s") else "s")
    return f"{count:,} {noun}"


def format_duration(seconds: float) -> str:
    """Format a duration given in seconds, such as `3m07s` or `2h05m`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m:02d}m" if hours else f"{m}m{s:02d}s"


def format_gb(count: float) -> str:
    """Format a number of bytes in GB, such as `0.52 GB`, or `1,200 GB` without decimals from 10 GB on."""
    size = count / 1e9
    return f"{size:.2f} GB" if size < 10 else f"{size:,.0f} GB"


def format_mib(count: float) -> str:
    """Format a number of bytes in MiB, such as `1,024.5 MiB`."""
    return f"{count / 2**20:,.1f} MiB"
