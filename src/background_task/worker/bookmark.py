"""Where in the order of the queue the last batch ended, for databases that keep deleted rows."""

from __future__ import annotations

import time

from background_task.records import Claim, Wanted
from background_task.storage import claim
from background_task.storage.engine import Engine

# How long it is relied on, in seconds, and how much of the time is to be spent in searches that
# begin at the head of the queue: there may be what is more urgent, or was given back.
SHORTEST_USE = 0.1
LONGEST_USE = 1.0
LARGEST_SHARE = 0.1


class Bookmark:
    """Holds rows without reading those again that the last batches have deleted.

    MariaDB leaves these in its indexes until it gets to purge them, which under load is thousands
    of tasks later. To pass them takes ten times as long as to find the rows that are wanted.

    Args:
        engine: the connection of who takes the rows.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._wanted: Wanted | None = None
        self._place: claim.Place | None = None
        self._relied_on_until = 0.0

    def hold(self, wanted: Wanted, most: int) -> list[Claim]:
        """Return what :func:`claim.hold` does; what has come meanwhile may be missing for a moment.

        It may begin the transaction anew, in which nothing else has happened. There are fewer than
        ``most`` only where there are no more.
        """
        began = time.monotonic()
        if self._place and wanted == self._wanted and began < self._relied_on_until:
            claims = claim.hold(self._engine, wanted, most, self._place)
            if len(claims) == most:
                return claims
            if claims:  # others are to find those again that are not among the most urgent
                self._engine.roll_back()
                self._engine.begin()
            began = time.monotonic()
        claims = claim.hold(self._engine, wanted, most)
        if claims:
            took = time.monotonic() - began
            self._wanted, self._place = wanted, None
            use = min(max(SHORTEST_USE, took / LARGEST_SHARE), LONGEST_USE)
            self._relied_on_until = began + use
        return claims

    def put(self, last: Claim) -> None:
        """Begin the next search behind this row, which is held, where that spares it something."""
        self._place = claim.place(self._engine, last)

    def remove(self) -> None:
        """Begin the next search at the head of the queue."""
        self._place = None
