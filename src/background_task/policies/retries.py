"""When a task that raised is tried again."""

from __future__ import annotations

from datetime import timedelta

LONGEST_DELAY = timedelta(days=3650)


def backoff(attempts: int, exponent: float = 4) -> timedelta:
    """Return how long to wait after attempt number ``attempts``: ``attempts ** exponent + 5`` s.

    The predecessor's ladder: 6, 21, 86, 261, 630, 1301 … seconds. It is cut off after ten years,
    where adding it to a date would soon overflow.
    """
    try:
        return min(timedelta(seconds=int(max(attempts, 0) ** exponent) + 5), LONGEST_DELAY)
    except OverflowError:
        return LONGEST_DELAY
