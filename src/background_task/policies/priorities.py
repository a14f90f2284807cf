"""Which way priorities run."""

from __future__ import annotations


def mirrored(priority: int, *, ascending: bool) -> int:
    """Translate between Django's priorities, where the highest comes first, and the column's.

    With ``BACKGROUND_TASK_PRIORITY_ORDERING = "ASC"`` the lowest number of the column comes first,
    so there the sign changes, both ways.
    """
    return -priority if ascending else priority
