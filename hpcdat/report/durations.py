"""Durations as people write them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds as text in units that fit: ``14.2 s``, ``3 min 5 s``, ``2 h 40 min``, ``2 d 3 h``.

    Args:
        seconds: 0 or more.
    """
    if round(seconds, 1) < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min {rest} s"
    days, rest_of_day = divmod(hours, 24)
    return f"{days} d {rest_of_day} h" if days > 1 else f"{hours} h {minutes} min"
