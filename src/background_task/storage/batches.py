"""How many rows go into one statement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

MOST_ROWS = 500
# MySQL refuses a statement that is larger than its max_allowed_packet, by default 16 MB; some
# servers are set to 1 MB, and one row may have a million characters by itself.
LARGEST_STATEMENT = 1_000_000


def in_batches(
    items: Iterable[Item],
    weigh: Callable[[Item], int] = lambda item: 0,
    most: int = MOST_ROWS,
) -> Iterator[list[Item]]:
    """Yield ``items`` in lists that are fit for one statement each, in order.

    Args:
        items: rows, or keys of rows.
        weigh: how many characters an item adds to the statement, where that may be many.
        most: the length of the longest list.
    """
    batch: list[Item] = []
    size = 0
    for item in items:
        size += weigh(item)
        if batch and (len(batch) == most or size > LARGEST_STATEMENT):
            yield batch
            batch, size = [], weigh(item)
        batch.append(item)
    if batch:
        yield batch
