"""Seconds, bytes and counts as a person writes them."""


def duration(seconds: float) -> str:
    """'6 min 02 s', '3.1 h', '12 days', '3 years'."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    if seconds < 2 * 86_400:
        return f"{seconds / 3600:.1f} h"
    if seconds < 730 * 86_400:
        return f"{seconds / 86_400:,.0f} days"
    return f"{seconds / 86_400 / 365.25:,.0f} years"


def size(n_bytes: float) -> str:
    """'179 MB', '1.7 GB'."""
    if n_bytes < 1e6:
        return f"{n_bytes / 1e3:.0f} kB"
    return f"{n_bytes / 1e6:,.0f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:,.1f} GB"


def count(number: float) -> str:
    """'-', '4,280', '1.1 M', '48 T'."""
    if not number:
        return "-"
    for limit, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= limit:
            shown = number / limit
            return f"{shown:,.1f} {letter}" if shown < 10 else f"{shown:,.0f} {letter}"
    return f"{number:,.0f}"
